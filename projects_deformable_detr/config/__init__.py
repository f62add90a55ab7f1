"""Config keys and the functions that read them; other packages receive dataclasses."""

from .engines import get_cfg
from .keys import add_deformable_detr_config, set_thing_classes, thing_classes
from .loading import did_you_mean, leaves, load_cfg, merge
from .model import build_criterion, build_detector

__all__ = [
    "add_deformable_detr_config",
    "build_criterion",
    "build_detector",
    "did_you_mean",
    "get_cfg",
    "leaves",
    "load_cfg",
    "merge",
    "set_thing_classes",
    "thing_classes",
]
