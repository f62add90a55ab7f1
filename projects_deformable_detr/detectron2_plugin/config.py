"""The project's keys in Detectron2's default config."""

from detectron2.config import CfgNode
from detectron2.config.defaults import _C as _DEFAULTS

from ..config import add_deformable_detr_config


def extend_defaults() -> None:
    """Adds the project's keys to the defaults that Detectron2's ``get_cfg`` copies. Idempotent.

    Existing keys keep Detectron2's defaults, so that configs of other models do not change.
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
