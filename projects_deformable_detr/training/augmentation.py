"""Augmentation policy of DETR, implemented by each engine."""

from dataclasses import dataclass

from ..errors import ArgumentError


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

    min_sizes: tuple[int, ...]
    max_size: int
    flip_prob: float = 0.0
    crop_prob: float = 0.0
    crop_resize: tuple[int, ...] = ()
    crop_range: tuple[int, ...] = (0, 0)

    @property
    def crop_max_size(self) -> int:
        """Limit of the longer side before the crop, which bounds the memory for very long images."""
        return 10 * self.max_size

    def __post_init__(self) -> None:
        if not self.min_sizes or (min(self.min_sizes) < 1 and tuple(self.min_sizes) != (0,)):
            raise ArgumentError("min_sizes", f"must be at least one size of at least 1 pixel, got {self.min_sizes}")
        if not self.crop_prob:
            return
        if len(self.crop_range) != 2 or not 1 <= self.crop_range[0] <= self.crop_range[1]:
            raise ArgumentError(
                "crop_range", f"must be the minimum and maximum side of the crop in pixels, got {self.crop_range}"
            )
        if not self.crop_resize or min(self.crop_resize) < 1:
            raise ArgumentError("crop_resize", f"must be at least one size of at least 1 pixel, got {self.crop_resize}")
