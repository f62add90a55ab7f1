"""Config keys and the functions that read them; other packages receive dataclasses."""

from .keys import add_deformable_detr_config, get_cfg, set_thing_classes, thing_classes
from .loading import leaves, load_cfg, merge
from .model import build_criterion, build_detector

__all__ = [
    "add_deformable_detr_config",
    "build_criterion",
    "build_detector",
    "get_cfg",
    "leaves",
    "load_cfg",
    "merge",
    "set_thing_classes",
    "thing_classes",
]
