"""Runs the checkpoint command: ``python -m projects_deformable_detr.checkpoint``."""

import sys

from ..cli.checkpoint import main

sys.exit(main())
