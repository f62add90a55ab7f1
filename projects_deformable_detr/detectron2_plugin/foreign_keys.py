"""Keys of Detectron2's own models, which a config or a script may still set when its model has been swapped."""

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
    """Names in a warning the keys that the config sets and these models do not read.

    Raises:
        UserError: for a key that asks for what these models cannot do.
    """
    if cfg.MODEL.LOAD_PROPOSALS:
        raise UserError(
            "MODEL.LOAD_PROPOSALS is True, but these models take no proposals: a two-stage one makes its own "
            "(MODEL.DETR.TWO_STAGE); set it to False"
        )
    if cfg.MODEL.KEYPOINT_ON:
        raise UserError("MODEL.KEYPOINT_ON is True, but these models have no keypoints: set it to False")
    defaults = get_cfg().MODEL
    changed = [key for name in _WITHOUT_EFFECT for key in _changed(cfg.MODEL[name], defaults[name], f"MODEL.{name}")]
    if changed:
        said = [f"{key} (here: {_COUNTERPARTS[key]})" if key in _COUNTERPARTS else key for key in changed]
        _logger.warning("The config sets keys without effect on %s: %s", cfg.MODEL.META_ARCHITECTURE, ", ".join(said))


def _changed(node: Any, default: Any, name: str) -> Iterator[str]:
    """Names of the keys below ``node`` that have not the default's value; keys that somebody added do not count."""
    if not isinstance(default, CfgNode):
        if node != default:
            yield name
        return
    for key in default:
        yield from _changed(node[key], default[key], f"{name}.{key}")
