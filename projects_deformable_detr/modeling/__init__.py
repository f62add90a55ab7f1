"""Models, matcher, criterion and postprocessing in plain PyTorch."""

from .build import DetectorConfig, build_detector
from .criterion import BatchSize, CriterionConfig, SetCriterion, build_criterion, cardinality_error
from .detector import Detector, batch_images
from .layers import LayerConfig
from .matcher import HungarianMatcher
from .postprocess import PanopticSegmentation, panoptic_postprocess, postprocess
from .structures import Detections, Predictions, Targets
from .targets import check_targets

__all__ = [
    "BatchSize",
    "CriterionConfig",
    "Detections",
    "Detector",
    "DetectorConfig",
    "HungarianMatcher",
    "LayerConfig",
    "PanopticSegmentation",
    "Predictions",
    "SetCriterion",
    "Targets",
    "batch_images",
    "build_criterion",
    "build_detector",
    "cardinality_error",
    "check_targets",
    "panoptic_postprocess",
    "postprocess",
]
