"""Configuration of data sets and of the training data loader."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from ..errors import ArgumentError, Fraction, NonNegativeInt, PositiveInt, Range, check_ranges
from .images import ImageReader

_BY_CLASS = ("RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler")
_BY_DATASET = ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler")
SAMPLERS = ("TrainingSampler", *dict.fromkeys(_BY_CLASS + _BY_DATASET))


@dataclass(frozen=True)
class SamplerConfig:
    """Sampler of training images, see `sampling.repeat_factors`.

    Attributes:
        name: one of `SAMPLERS`, or another sampler of Detectron2.
        repeat_threshold: images with a class that occurs in a smaller fraction of the images are repeated.
        repeat_sqrt: whether to repeat by the square root of threshold / fraction.
        dataset_weights: repeat factor of the images of each data set, by name; 1 for other data sets.
    """

    name: str = "TrainingSampler"
    repeat_threshold: Fraction = 0.0
    repeat_sqrt: bool = True
    dataset_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(SamplerConfig, vars(self))
        if self.by_class and self.repeat_threshold == 0:
            raise ArgumentError(
                "repeat_threshold",
                f"must be in (0, 1] for {self.name}, got {self.repeat_threshold}: images with a class that occurs in a "
                "smaller fraction of the images are repeated; the LVIS paper uses 0.001",
            )
        for name, weight in self.dataset_weights.items():
            if self.by_dataset and not (isinstance(weight, int | float) and 0 < weight < math.inf):
                raise ArgumentError("dataset_weights", f"must be above 0, got {weight!r} for {name}")

    @property
    def by_class(self) -> bool:
        """Whether an image is repeated according to its rarest class."""
        return self.name in _BY_CLASS

    @property
    def by_dataset(self) -> bool:
        """Whether an image is repeated according to the weight of its data set."""
        return self.name in _BY_DATASET


@dataclass(frozen=True)
class DataConfig:
    """Data sets of a run and options of the data loaders.

    Attributes:
        train, test: names of the data sets.
        invalid_boxes, drop_root_category: see `load.load_dataset`.
        max_objects: maximum number of objects in a training image; None: no limit.
        max_detections: maximum number of detections per image in evaluation; None: no limit.
        masks: whether to load masks.
        panoptic: whether the model predicts panoptic segmentations.
        filter_empty: whether to exclude training images without objects.
        batch_size: training images per iteration over all processes.
        num_workers: loader processes per training process.
        group_by_aspect_ratio: whether to put landscape and portrait images into separate batches.
        pin_memory: whether to copy batches to page-locked memory.
        reader: reader of image files.
        check_images, unreadable_images: see `image_check.check_images`.
        sampler: sampler of training images.
    """

    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    invalid_boxes: str = "error"
    drop_root_category: bool = False
    max_objects: Annotated[int | None, Range(1)] = None
    max_detections: Annotated[int | None, Range(1)] = None
    masks: bool = False
    panoptic: bool = False
    filter_empty: bool = True
    batch_size: PositiveInt = 16
    num_workers: NonNegativeInt = 4
    group_by_aspect_ratio: bool = True
    pin_memory: bool = False
    reader: ImageReader = ImageReader()
    check_images: str = "auto"
    unreadable_images: str = "error"
    sampler: SamplerConfig = SamplerConfig()

    def __post_init__(self) -> None:
        check_ranges(DataConfig, vars(self))
        for argument, names in (("train", self.train), ("test", self.test)):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ArgumentError(argument, f"must list each data set once, got {', '.join(repeated)} more than once")
