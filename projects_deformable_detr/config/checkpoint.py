"""Reads the options for loading checkpoints."""

from fvcore.common.config import CfgNode

from ..checkpoint import LoadOptions
from .reading import read

_OPTIONS = {
    "allow_partial": "MODEL.DETR.ALLOW_PARTIAL_WEIGHTS",
    "keep_logits": "MODEL.DETR.KEEP_CLASS_LOGITS",
    "input_format": "INPUT.FORMAT",
}
# Maps arguments in messages of `checkpoint` to config keys.
LOADING_KEYS = _OPTIONS | {
    "weights": "MODEL.WEIGHTS",
    "num_classes": "MODEL.DETR.NUM_CLASSES",
    "mask_head": "MODEL.MASK_ON",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "backbone": "MODEL.BACKBONE.NAME",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
}


def load_options(
    cfg: CfgNode, *, for_evaluation: bool = False, class_names: tuple[str, ...] | None = None
) -> LoadOptions:
    """Returns the options for loading ``MODEL.WEIGHTS``; see `LoadOptions` for the arguments."""
    return read(LoadOptions, cfg, _OPTIONS, for_evaluation=for_evaluation, class_names=class_names)
