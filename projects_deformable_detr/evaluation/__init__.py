"""COCO, LVIS and panoptic evaluation, and test-time augmentation."""

from .evaluator import EvaluationConfig, Evaluator
from .tta import TestTimeAugmentationConfig

__all__ = ["EvaluationConfig", "Evaluator", "TestTimeAugmentationConfig"]
