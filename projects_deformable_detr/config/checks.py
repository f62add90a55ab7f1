"""Checks of sampler keys, shared by both engines."""

import math
from typing import Any

from ..errors import UserError

SAMPLERS = (
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)
_BY_CLASS = ("RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler")
_BY_DATASET = ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler")


def check_sampler(cfg: Any) -> None:
    """Checks ``DATALOADER.REPEAT_THRESHOLD`` and ``DATASETS.TRAIN_REPEAT_FACTOR`` where the sampler reads them.

    Raises:
        UserError: naming the key.
    """
    name, threshold = cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD
    if name in _BY_CLASS and not 0 < threshold <= 1:
        raise UserError(
            f"DATALOADER.REPEAT_THRESHOLD is {threshold}: {name} repeats images of classes that are in a smaller share "
            "of the images, so set it above 0 and to 1 at most; LVIS's paper takes 0.001"
        )
    if name in _BY_DATASET:
        dataset_weights(cfg)


def dataset_weights(cfg: Any) -> dict[str, float]:
    """What ``DATASETS.TRAIN_REPEAT_FACTOR`` gives each of ``DATASETS.TRAIN``; 1 where it names no weight.

    Raises:
        UserError: for what is no pair of one of these names and a number above 0.
    """
    key = "DATASETS.TRAIN_REPEAT_FACTOR"
    weights = dict.fromkeys(cfg.DATASETS.TRAIN, 1.0)
    for item in cfg.DATASETS.TRAIN_REPEAT_FACTOR:
        if not isinstance(item, list | tuple) or len(item) != 2 or item[0] not in weights:
            raise UserError(f"{key} has {item!r}: write pairs (name, weight) of {', '.join(weights)}")
        if not isinstance(item[1], int | float) or not 0 < item[1] < math.inf:
            raise UserError(f"{key} gives {item[0]} the weight {item[1]!r}: set a number above 0")
        weights[item[0]] = float(item[1])
    return weights
