"""COCO, LVIS and panoptic evaluation and test-time augmentation, shared by both engines."""

from .evaluator import EvaluationConfig, Evaluator
from .tta import TestTimeAugmentationConfig

__all__ = ["EvaluationConfig", "Evaluator", "TestTimeAugmentationConfig"]
