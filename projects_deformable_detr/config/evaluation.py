"""Reads the configuration of evaluation and test-time augmentation."""

from fvcore.common.config import CfgNode

from ..errors import UserError
from ..evaluation import EvaluationConfig, TestTimeAugmentationConfig
from .keys import thing_classes
from .reading import get, read

EVALUATION_KEYS = {
    "max_detections": "TEST.DETECTIONS_PER_IMAGE",
    "score_threshold": "MODEL.DETR.SCORE_THRESH_TEST",
    "is_panoptic": "MODEL.DETR.PANOPTIC.ENABLED",
    "panoptic_score_threshold": "MODEL.DETR.PANOPTIC.SCORE_THRESH",
    "panoptic_min_area": "MODEL.DETR.PANOPTIC.MIN_AREA",
}
TTA_KEYS = {
    "min_sizes": "TEST.AUG.MIN_SIZES",
    "max_size": "TEST.AUG.MAX_SIZE",
    "flip": "TEST.AUG.FLIP",
    "nms_threshold": "MODEL.DETR.TTA_NMS_THRESH",
}


def tta_config(cfg: CfgNode) -> TestTimeAugmentationConfig:
    """Reads the configuration of test-time augmentation, whether or not it is enabled."""
    return read(TestTimeAugmentationConfig, cfg, TTA_KEYS)


def evaluation_config(cfg: CfgNode) -> EvaluationConfig:
    """Reads the configuration of the evaluation.

    Raises:
        UserError: for a value out of range, or if test-time augmentation is enabled for a panoptic model.
    """
    tta = tta_config(cfg) if get(cfg, "TEST.AUG.ENABLED") else None
    config = read(EvaluationConfig, cfg, EVALUATION_KEYS, thing_classes=thing_classes(cfg), tta=tta)
    if tta is not None and config.is_panoptic:
        raise UserError(
            "TEST.AUG.ENABLED cannot be combined with panoptic segmentation: set MODEL.DETR.PANOPTIC.ENABLED or "
            "TEST.AUG.ENABLED to False"
        )
    return config
