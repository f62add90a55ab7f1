"""Ranges of all numeric config keys, collected from the dataclasses and constructors that check them.

``python -m projects_deformable_detr.config.ranges`` prints the table in ``docs/config.md``.
"""

from collections.abc import Mapping

from ..data.config import DataConfig, SamplerConfig
from ..errors import Annotation, annotations
from ..evaluation import EvaluationConfig, TestTimeAugmentationConfig
from ..modeling import CriterionConfig, DetectorConfig
from ..modeling.fpn import BackboneWithFPN
from ..modeling.resnet import ResNet
from ..modeling.swin import SwinBackbone
from ..training import (
    AugmentationPolicy,
    CallbacksConfig,
    EarlyStoppingConfig,
    EmaConfig,
    GradientClip,
    OptimizerConfig,
    ScheduleConfig,
)
from .data import DATA_KEYS, SAMPLER_KEYS
from .engines import get_cfg
from .evaluation import EVALUATION_KEYS, TTA_KEYS
from .keys import OTHER_RANGES
from .loading import leaves
from .model import CRITERION_KEYS, DETECTOR_KEYS, FPN_KEYS, RESNET_KEYS, SWIN_KEYS
from .run import PROCESS_KEYS, ProcessConfig
from .training import (
    CALLBACKS_KEYS,
    CLIP_KEYS,
    EARLY_STOPPING_KEYS,
    EMA_KEYS,
    EVALUATION_AUGMENTATION_KEYS,
    OPTIMIZER_KEYS,
    SCHEDULE_KEYS,
    TRAINING_AUGMENTATION_KEYS,
)

_RECEIVERS: tuple[tuple[type, Mapping[str, str]], ...] = (
    (DetectorConfig, DETECTOR_KEYS),
    (CriterionConfig, CRITERION_KEYS),
    (ResNet, RESNET_KEYS),
    (SwinBackbone, SWIN_KEYS),
    (BackboneWithFPN, FPN_KEYS),
    (OptimizerConfig, OPTIMIZER_KEYS),
    (GradientClip, CLIP_KEYS),
    (ScheduleConfig, SCHEDULE_KEYS),
    (CallbacksConfig, CALLBACKS_KEYS),
    (EmaConfig, EMA_KEYS),
    (EarlyStoppingConfig, EARLY_STOPPING_KEYS),
    (AugmentationPolicy, TRAINING_AUGMENTATION_KEYS),
    (AugmentationPolicy, EVALUATION_AUGMENTATION_KEYS),
    (DataConfig, DATA_KEYS),
    (SamplerConfig, SAMPLER_KEYS),
    (EvaluationConfig, EVALUATION_KEYS),
    (TestTimeAugmentationConfig, TTA_KEYS),
    (ProcessConfig, PROCESS_KEYS),
)


def ranges() -> dict[str, Annotation]:
    """Returns the range of each numeric key, sorted by key."""
    found = {
        keys[name]: annotation
        for owner, keys in _RECEIVERS
        for name, annotation in annotations(owner).items()
        if name in keys
    }
    return dict(sorted((found | OTHER_RANGES).items()))


def table() -> str:
    """Returns the keys, their defaults and ranges as a Markdown table."""
    defaults = dict(leaves(get_cfg("standalone")))
    lines = ["| key | default | range |", "|---|---|---|"]
    for key, annotation in ranges().items():
        value = f"`{defaults[key]}`" if key in defaults else "Detectron2's"
        lines.append(f"| `{key}` | {value} | {annotation} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
