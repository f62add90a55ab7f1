"""Default configs of the engines."""

from fvcore.common.config import CfgNode

from ..engine import choose_engine, default_cfg
from .keys import add_deformable_detr_config


def get_cfg(engine: str = "auto") -> CfgNode:
    """Returns a new config with the default values of an engine and of the project's keys.

    Args:
        engine: ``"detectron2"``, ``"standalone"``, or ``"auto"`` for Detectron2 if it is installed.

    Raises:
        UserError: for an unknown name, or ``"detectron2"`` if it is not installed.
    """
    cfg: CfgNode = default_cfg(choose_engine(engine).name)
    add_deformable_detr_config(cfg)
    return cfg
