"""Command line: ``python -m projects_deformable_detr.shapes``."""

import sys

from ..errors import run_command
from .dataset import main

sys.exit(run_command("shapes", main))
