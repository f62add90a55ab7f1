"""COCO, LVIS and panoptic evaluation, and test-time augmentation."""

from .evaluator import EvaluationConfig, Evaluator, results_folder
from .tta import TestTimeAugmentationConfig

__all__ = ["EvaluationConfig", "Evaluator", "TestTimeAugmentationConfig", "results_folder"]
