"""Models, matcher, criterion and postprocess in pure PyTorch: no Detectron2, no Lightning."""

from .build import build_criterion, build_detector
from .criterion import SetCriterion, cardinality_error
from .detector import Detector, batch_images
from .matcher import HungarianMatcher
from .panoptic import PanopticSegmentation, panoptic_postprocess
from .postprocess import postprocess
from .structures import Detections, Predictions, Targets

__all__ = [
    "Detections",
    "Detector",
    "HungarianMatcher",
    "PanopticSegmentation",
    "Predictions",
    "SetCriterion",
    "Targets",
    "batch_images",
    "build_criterion",
    "build_detector",
    "cardinality_error",
    "panoptic_postprocess",
    "postprocess",
]
