"""Keys of Detectron2's own models, which configs and scripts may set although the project's models do not read them."""

import logging
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..errors import UserError

_logger = logging.getLogger(__name__)

_WITHOUT_EFFECT = (
    "ANCHOR_GENERATOR",
    "PANOPTIC_FPN",
    "PROPOSAL_GENERATOR",
    "RETINANET",
    "ROI_BOX_CASCADE_HEAD",
    "ROI_BOX_HEAD",
    "ROI_HEADS",
    "ROI_KEYPOINT_HEAD",
    "ROI_MASK_HEAD",
    "RPN",
    "SEM_SEG_HEAD",
)
_COUNTERPARTS = {
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": "MODEL.DETR.PANOPTIC.SCORE_THRESH",
    "MODEL.RETINANET.NUM_CLASSES": "MODEL.DETR.NUM_CLASSES",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "MODEL.DETR.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NUM_CLASSES": "MODEL.DETR.NUM_CLASSES",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "MODEL.DETR.SCORE_THRESH_TEST",
}


def check(cfg: CfgNode) -> None:
    """Warns of keys that are set and have no effect on the project's models.

    Raises:
        UserError: for a key that enables an unsupported feature.
    """
    if cfg.MODEL.LOAD_PROPOSALS:
        raise UserError(
            "MODEL.LOAD_PROPOSALS must be False: these models take no proposals, and compute their own with "
            "MODEL.DETR.TWO_STAGE True"
        )
    if cfg.MODEL.KEYPOINT_ON:
        raise UserError("MODEL.KEYPOINT_ON must be False: these models have no keypoints")
    defaults = get_cfg().MODEL
    changed = [key for name in _WITHOUT_EFFECT for key in _changed(cfg.MODEL[name], defaults[name], f"MODEL.{name}")]
    if changed:
        names = [f"{key} (here: {_COUNTERPARTS[key]})" if key in _COUNTERPARTS else key for key in changed]
        _logger.warning("The config sets keys without effect on %s: %s", cfg.MODEL.META_ARCHITECTURE, ", ".join(names))


def _changed(node: Any, default: Any, name: str) -> Iterator[str]:
    """Yields the keys of ``default`` below ``node`` whose value differs."""
    if not isinstance(default, CfgNode):
        if node != default:
            yield name
        return
    for key in default:
        yield from _changed(node[key], default[key], f"{name}.{key}")
