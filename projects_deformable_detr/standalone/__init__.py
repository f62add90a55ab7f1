"""The standalone engine, for machines without Detectron2: the same models, YAML files and metrics on Lightning.

Importing this package registers its default config. Lightning is imported when `main` runs.
"""

from argparse import Namespace
from typing import Any

from ..config import register_engine
from .config import default_cfg

register_engine("standalone", default_cfg)


def main(args: Namespace) -> dict[str, Any]:
    """Trains or evaluates; see `projects_deformable_detr.standalone.run.main`."""
    from .run import main as run  # imports lightning

    return run(args)
