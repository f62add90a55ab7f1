"""How often a pass of training has each image: Detectron2's samplers for classes, and data sets, of unequal size."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import ConfigError

Labels = Sequence[np.ndarray]  # of every image, the class ids of its objects
Datasets = Sequence[tuple[str, Labels]]


def repeat_factors(cfg: Any, datasets: Datasets) -> Tensor | None:
    """Times that a pass has each image on average, (images,) float32; None: every image once.

    - ``RepeatFactorTrainingSampler``: by the rarest class of the image, over all data sets together.
    - ``WeightedTrainingSampler``: the weight that ``DATASETS.TRAIN_REPEAT_FACTOR`` gives the image's data set, or 1.
    - ``WeightedCategoryTrainingSampler``: both, with classes counted within each data set; the least becomes 1.

    Args:
        cfg: its ``DATALOADER.SAMPLER_TRAIN`` names the sampler.
        datasets: of each of ``DATASETS.TRAIN``, which may name one twice, the objects to train on. Crowds, which
            Detectron2 counts, are none.

    Raises:
        ConfigError: for values that have no meaning; it names the key.
    """
    name, threshold, sqrt = cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.REPEAT_SQRT
    if name == "TrainingSampler":
        return None
    by_class = name in ("RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler")
    if by_class and not 0 < threshold <= 1:
        raise ConfigError(
            f"DATALOADER.REPEAT_THRESHOLD is {threshold}: {name} repeats images of classes that are in a smaller share "
            "of the images, so set it above 0 and to 1 at most; LVIS's paper takes 0.001"
        )
    if name == "RepeatFactorTrainingSampler":
        return factors_of_classes([labels for _, part in datasets for labels in part], threshold, sqrt)
    weights = _weights(cfg, datasets)
    parts = [torch.full((len(part),), weights[key]) for key, part in datasets]
    if name == "WeightedCategoryTrainingSampler":
        by_class_of = [factors_of_classes(part, threshold, sqrt) for _, part in datasets]
        factors = torch.cat(parts) * torch.cat(by_class_of)
        return factors / factors.min()
    return torch.cat(parts)


def factors_of_classes(images: Labels, threshold: float, sqrt: bool = True) -> Tensor:
    """Each image's factor by its rarest class (arXiv 1908.03195, appendix B.2).

    A class that is in the share f of all images has the factor max(1, (threshold / f) ** 0.5), without the root if
    ``sqrt`` is False; an image has the largest factor of its classes, and 1 without an object.
    """
    classes = [set(labels.tolist()) for labels in images]
    counts = Counter(label for found in classes for label in found)
    ratios = {label: threshold * len(images) / count for label, count in counts.items()}
    factors = {label: max(1.0, math.sqrt(ratio) if sqrt else ratio) for label, ratio in ratios.items()}
    return torch.tensor([max((factors[label] for label in found), default=1.0) for found in classes])


def _weights(cfg: Any, datasets: Datasets) -> dict[str, float]:
    key = "DATASETS.TRAIN_REPEAT_FACTOR"
    weights = dict.fromkeys((name for name, _ in datasets), 1.0)
    for item in cfg.DATASETS.TRAIN_REPEAT_FACTOR:
        if not isinstance(item, list | tuple) or len(item) != 2 or item[0] not in weights:
            raise ConfigError(f"{key} has {item!r}: write pairs (name, weight) of {', '.join(weights)}")
        if not isinstance(item[1], int | float) or not 0 < item[1] < math.inf:
            raise ConfigError(f"{key} gives {item[0]} the weight {item[1]!r}: set a number above 0")
        weights[item[0]] = float(item[1])
    return weights
