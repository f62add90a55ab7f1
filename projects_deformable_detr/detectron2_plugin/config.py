"""Extends Detectron2's default config, and checks keys that have no effect on the project's models."""

import logging

from detectron2.config import CfgNode, get_cfg
from detectron2.config.defaults import _C as _DEFAULTS
from detectron2.modeling import BACKBONE_REGISTRY

from ..config import add_deformable_detr_config, leaves
from ..config.keys import SECTIONS_WITHOUT_EFFECT
from ..config.reading import get
from ..errors import UserError

_logger = logging.getLogger(__name__)

_COUNTERPARTS = {
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": "MODEL.DETR.PANOPTIC.SCORE_THRESH",
    "MODEL.RETINANET.NUM_CLASSES": "MODEL.DETR.NUM_CLASSES",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "MODEL.DETR.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NUM_CLASSES": "MODEL.DETR.NUM_CLASSES",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "MODEL.DETR.SCORE_THRESH_TEST",
}


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


def check_foreign_keys(cfg: CfgNode) -> None:
    """Warns about keys of Detectron2's own models that were changed although they have no effect.

    Raises:
        UserError: for a key that enables an unsupported feature, or an unknown backbone.
    """
    if cfg.MODEL.BACKBONE.NAME not in BACKBONE_REGISTRY:
        raise UserError(
            f"MODEL.BACKBONE.NAME must be one of {', '.join(sorted(name for name, _ in BACKBONE_REGISTRY))}, got "
            f"{cfg.MODEL.BACKBONE.NAME!r}"
        )
    if cfg.MODEL.LOAD_PROPOSALS:
        raise UserError(
            "MODEL.LOAD_PROPOSALS must be False: these models do not accept proposals; they compute proposals with "
            "MODEL.DETR.TWO_STAGE True"
        )
    if cfg.MODEL.KEYPOINT_ON:
        raise UserError("MODEL.KEYPOINT_ON must be False: these models have no keypoints")
    defaults = get_cfg()
    sections = tuple(f"{name}." for name in SECTIONS_WITHOUT_EFFECT)
    keys = [key for key, _ in leaves(defaults) if key.startswith(sections)]
    changed = [key for key in keys if get(cfg, key) != get(defaults, key)]
    if changed:
        names = [f"{key} (here: {_COUNTERPARTS[key]})" if key in _COUNTERPARTS else key for key in changed]
        _logger.warning("The config sets keys without effect on %s: %s", cfg.MODEL.META_ARCHITECTURE, ", ".join(names))
