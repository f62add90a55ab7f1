"""The embedded engine, for a machine without Detectron2: the same models, YAML files, recipe and metrics on Lightning.

Importing this package needs nothing but the standard library; lightning is imported when :func:`main` runs.
"""

from argparse import Namespace
from typing import Any


def main(args: Namespace) -> dict[str, Any]:
    """Trains, or evaluates with ``args.eval_only``; see :func:`projects_deformable_detr.standalone.run.main`."""
    from .run import main as run  # late: lightning is imported only where this engine runs

    return run(args)
