"""How often a pass of training has each image: Detectron2's samplers for classes, and data sets, of unequal size."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.checks import check_sampler, dataset_weights

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
        UserError: for values that have no meaning; it names the key.
    """
    name, threshold, sqrt = cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.REPEAT_SQRT
    if name == "TrainingSampler":
        return None
    check_sampler(cfg)
    if name == "RepeatFactorTrainingSampler":
        return factors_of_classes([labels for _, part in datasets for labels in part], threshold, sqrt)
    weights = dataset_weights(cfg)
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
