"""Options for loading and exporting checkpoints, read from a config."""

from pathlib import Path

from fvcore.common.config import CfgNode
from torch import nn

from ..checkpoint import LoadOptions, write_hugging_face
from .model import DETECTOR_KEYS, criterion_config, detector_config
from .reading import naming_keys, read

_OPTIONS = {
    "allow_partial": "MODEL.DETR.ALLOW_PARTIAL_WEIGHTS",
    "keep_logits": "MODEL.DETR.KEEP_CLASS_LOGITS",
    "input_format": "INPUT.FORMAT",
}
# Keys in messages of the functions in `checkpoint`.
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


def export_hugging_face(
    cfg: CfgNode, folder: str | Path, detector: nn.Module, class_names: tuple[str, ...] | None = None
) -> None:
    """Writes the detector of a config with `write_hugging_face`; errors name the config key."""
    with naming_keys(DETECTOR_KEYS):
        write_hugging_face(
            folder,
            detector,
            detector_config(cfg),
            criterion_config(cfg),
            resnet_depth=cfg.MODEL.RESNETS.DEPTH,
            image_size=(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            class_names=class_names,
        )
