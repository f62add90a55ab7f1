"""Detectron2's default config, and the project's keys in it."""

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.config.defaults import _C as _DEFAULTS

from ..config import add_deformable_detr_config


def get_cfg() -> CfgNode:
    """Detectron2's defaults, as a copy that may be changed."""
    return get_detectron2_cfg()


def extend_defaults() -> None:
    """Adds the project's keys to the defaults that Detectron2's ``get_cfg`` copies; a second call changes nothing.

    Keys that Detectron2 has keep its defaults, so that configs of other models mean what they meant; the project's
    YAML files set whatever they need of these.
    """
    full = _DEFAULTS.clone()
    add_deformable_detr_config(full)
    _add_missing(_DEFAULTS, full)


def _add_missing(node: CfgNode, full: CfgNode) -> None:
    for key, value in full.items():
        if key not in node:
            node[key] = value
        elif isinstance(value, CfgNode):
            _add_missing(node[key], value)
