"""Default configs of the engines, which are registered when an engine is imported."""

from collections.abc import Callable

from fvcore.common.config import CfgNode

from ..engine import choose_engine
from .keys import add_deformable_detr_config

_DEFAULTS: dict[str, Callable[[], CfgNode]] = {}


def register_engine(name: str, defaults: Callable[[], CfgNode]) -> None:
    """Registers the function that returns a new config with the default values of an engine."""
    _DEFAULTS[name] = defaults


def get_cfg(engine: str = "auto") -> CfgNode:
    """Returns a new config with the default values of an engine and of the project's keys.

    Args:
        engine: ``"detectron2"``, ``"standalone"``, or ``"auto"`` for Detectron2 if it is installed.

    Raises:
        UserError: for an unknown name, or ``"detectron2"`` if it is not installed.
    """
    cfg = _DEFAULTS[choose_engine(engine).name]()
    add_deformable_detr_config(cfg)
    return cfg
