"""Configuration of data sets and of the loader of training images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import ArgumentError

_BY_CLASS = ("RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler")
_BY_DATASET = ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler")
SAMPLERS = ("TrainingSampler", *dict.fromkeys(_BY_CLASS + _BY_DATASET))


@dataclass(frozen=True)
class SamplerConfig:
    """How often a pass over the training images has each of them.

    Attributes:
        name: one of `SAMPLERS`, or a sampler of Detectron2 that has no options here.
        repeat_threshold: images of classes that are in a smaller share of the images are repeated.
        repeat_sqrt: repeat by the square root of threshold / share.
        dataset_weights: data set to factor of its images; 1 where there is none.
    """

    name: str = "TrainingSampler"
    repeat_threshold: float = 0.0
    repeat_sqrt: bool = True
    dataset_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.by_class and not 0 < self.repeat_threshold <= 1:
            raise ArgumentError(
                "repeat_threshold",
                f"must be in (0, 1] for {self.name}, got {self.repeat_threshold}: images of classes that are in a "
                "smaller share of the images are repeated; LVIS's paper uses 0.001",
            )
        for name, weight in self.dataset_weights.items():
            if self.by_dataset and not (isinstance(weight, int | float) and 0 < weight < math.inf):
                raise ArgumentError("dataset_weights", f"must be above 0, got {weight!r} for {name}")

    @property
    def by_class(self) -> bool:
        """Whether images are repeated by their rarest class."""
        return self.name in _BY_CLASS

    @property
    def by_dataset(self) -> bool:
        """Whether images are repeated by the weight of their data set."""
        return self.name in _BY_DATASET


@dataclass(frozen=True)
class DataConfig:
    """Data sets of a run, and the loader of its training images.

    Attributes:
        train, test: names of data sets.
        invalid_boxes: ``"error"`` or ``"drop"``; see `load.load_dataset`.
        max_objects: largest number of objects in a training image; None: no limit.
        masks: load masks.
        filter_empty: leave out training images without objects.
        batch_size: training images per iteration of all processes together.
        num_workers: loader processes per process.
        group_by_aspect_ratio: put landscape and portrait images into separate batches.
        pin_memory: copy batches to page-locked memory.
        sampler: how often a pass has each training image.
    """

    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    invalid_boxes: str = "error"
    max_objects: int | None = None
    masks: bool = False
    filter_empty: bool = True
    batch_size: int = 16
    num_workers: int = 4
    group_by_aspect_ratio: bool = True
    pin_memory: bool = False
    sampler: SamplerConfig = SamplerConfig()
