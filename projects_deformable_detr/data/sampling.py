"""Selects training images and computes their repeat factors for class-balanced or weighted sampling."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import DataConfig, SamplerConfig
from .problems import DatasetError
from .records import Records

_logger = logging.getLogger(__name__)

Labels = Sequence[np.ndarray[Any, np.dtype[Any]]]  # class ids of the objects of each image


def select_training_images(
    config: DataConfig, datasets: Mapping[str, Records], *, crowds: bool = False
) -> tuple[list[Records], Tensor | None]:
    """Returns the images of each training set, and their repeat factors (`repeat_factors`).

    Args:
        config: training sets and sampler. With ``filter_empty``, images without objects are dropped.
        datasets: records by data set name.
        crowds: whether to count crowds in the repeat factors, as Detectron2 does.

    Raises:
        DatasetError: if no image is left.
    """
    parts = training_images(config, datasets)
    removed = sum(len(datasets[name]) for name in config.train) - sum(map(len, parts))
    if removed:
        _logger.info("%d training images without objects are dropped", removed)
    if not any(parts):
        raise DatasetError(f"training sets {', '.join(config.train)} have no image with an object to train on")
    labels = [(name, part.object_labels(crowds=crowds)) for name, part in zip(config.train, parts, strict=True)]
    return parts, repeat_factors(config.sampler, labels)


def training_images(config: DataConfig, datasets: Mapping[str, Records]) -> list[Records]:
    """Returns the images of each training set; with ``filter_empty``, only those with objects."""
    return [datasets[name].with_objects() if config.filter_empty else datasets[name] for name in config.train]


def repeat_factors(config: SamplerConfig, datasets: Sequence[tuple[str, Labels]]) -> Tensor | None:
    """Returns the mean number of times that each image occurs in an epoch, (images,) float32; None: every image once.

    - ``RepeatFactorTrainingSampler``: factor of the rarest class in the image, over all data sets.
    - ``WeightedTrainingSampler``: weight of the image's data set.
    - ``WeightedCategoryTrainingSampler``: product of both, with classes counted within each data set, divided by the
      smallest product.

    Args:
        config: sampler and its options.
        datasets: name and class ids of each training set; a set may occur more than once.
    """
    threshold, sqrt = config.repeat_threshold, config.repeat_sqrt
    if not config.by_dataset:
        every = [labels for _, images in datasets for labels in images]
        return class_repeat_factors(every, threshold, sqrt) if config.by_class else None
    parts = [torch.full((len(images),), config.dataset_weights.get(name, 1.0)) for name, images in datasets]
    if not config.by_class:
        return torch.cat(parts)
    factors = torch.cat([class_repeat_factors(images, threshold, sqrt) for _, images in datasets]) * torch.cat(parts)
    return factors / factors.min()


def class_repeat_factors(images: Labels, threshold: float, sqrt: bool = True) -> Tensor:
    """Returns the repeat factor of each image according to its rarest class (arXiv 1908.03195, appendix B.2).

    The factor of a class that occurs in a fraction f of all images is max(1, sqrt(threshold / f)), or
    max(1, threshold / f) if ``sqrt`` is False. The factor of an image is the maximum over its classes, or 1 without
    objects.
    """
    classes = [set(labels.tolist()) for labels in images]
    counts = Counter(label for found in classes for label in found)
    ratios = {label: threshold * len(images) / count for label, count in counts.items()}
    factors = {label: max(1.0, math.sqrt(ratio) if sqrt else ratio) for label, ratio in ratios.items()}
    return torch.tensor([max((factors[label] for label in found), default=1.0) for found in classes])
