"""Augmentation policy of DETR, implemented by each engine."""

import logging
from dataclasses import dataclass
from typing import Annotated

from ..errors import ArgumentError, Fraction, PositiveInt, Range, check_ranges

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AugmentationPolicy:
    """DETR's augmentation (arXiv 2005.12872, appendix A.4), which Deformable DETR uses as well.

    In training, images are flipped, then with probability ``crop_prob`` resized to a shorter side from ``crop_resize``
    and cropped, and finally resized. Height and width of the crop are drawn uniformly from ``crop_range`` and limited
    to the image. In evaluation, images are only resized.

    Attributes:
        min_sizes: lengths of the shorter side to choose from, in pixels; ``(0,)`` keeps the image's size.
        max_size: maximum length of the longer side.
        flip_prob: probability of a horizontal flip.
        crop_prob: probability of the crop.
        crop_resize: lengths of the shorter side before the crop.
        crop_range: minimum and maximum side of the crop.
    """

    min_sizes: Annotated[tuple[int, ...], Range(0)]
    max_size: PositiveInt
    flip_prob: Fraction = 0.0
    crop_prob: Fraction = 0.0
    crop_resize: Annotated[tuple[int, ...], Range(1)] = ()
    crop_range: Annotated[tuple[int, ...], Range(1)] = ()

    @property
    def crop_max_size(self) -> int:
        """Maximum length of the longer side before the crop, to limit the memory for very long images."""
        return 10 * self.max_size

    def __post_init__(self) -> None:
        check_ranges(AugmentationPolicy, vars(self))
        if not self.min_sizes or (0 in self.min_sizes and len(self.min_sizes) > 1):
            raise ArgumentError("min_sizes", f"must be sizes in pixels, or one 0, got {self.min_sizes}")
        if self.crop_prob and (len(self.crop_range) != 2 or self.crop_range[0] > self.crop_range[1]):
            raise ArgumentError(
                "crop_range", f"must be the minimum and maximum side of the crop in pixels, got {self.crop_range}"
            )
        if self.crop_prob and not self.crop_resize:
            raise ArgumentError("crop_resize", "must be sizes in pixels, got ()")


class EmptyMasks:
    """Logs the number of objects that were dropped because augmentation left no pixel of their masks.

    The first ones are logged when they occur, later ones at most once in `PERIOD` iterations.
    """

    PERIOD = 1000

    def __init__(self) -> None:
        self._count = 0
        self._next = 0  # iteration of the next message

    def add(self, count: int, iteration: int) -> None:
        """Adds the objects that were dropped from a batch."""
        self._count += count
        if self._count and iteration >= self._next:
            logger.info("%d objects were dropped, as their masks have no pixel after augmentation", self._count)
            self._count, self._next = 0, iteration + self.PERIOD
