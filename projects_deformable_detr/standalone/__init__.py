"""The standalone engine, for machines without Detectron2: the same models, YAML files and metrics on Lightning.

Lightning is imported when `main` runs.
"""

from argparse import Namespace
from typing import Any


def main(args: Namespace) -> dict[str, Any]:
    """Trains or evaluates; see `projects_deformable_detr.standalone.run.main`."""
    from .run import main as run  # imports lightning

    return run(args)
