"""What is done to images, once for both engines; each carries it out with its own library."""

from dataclasses import dataclass
from typing import Any

from ..errors import UserError


@dataclass(frozen=True)
class AugmentationPolicy:
    """DETR's augmentation (arXiv 2005.12872, appendix A.4), which Deformable DETR keeps.

    In training: flip; with ``crop_prob`` resize the shorter side to one of ``crop_resize`` and crop, each side drawn
    uniformly from ``crop_range`` (never more than there is); then resize. In evaluation: resize only.

    Attributes:
        flip_prob: probability of a horizontal flip.
        min_sizes: the shorter side becomes one of them, in pixels.
        max_size: but the longer side at most this.
        crop_prob: 1/2 where the crop is on, else 0.
        crop_resize: shorter sides before the crop.
        crop_range: least and largest side of the crop.
        image_format: ``"RGB"`` or ``"BGR"``.
    """

    flip_prob: float
    min_sizes: tuple[int, ...]
    max_size: int
    crop_prob: float
    crop_resize: tuple[int, ...]
    crop_range: tuple[int, int]
    image_format: str

    @classmethod
    def from_cfg(cls, cfg: Any, is_train: bool) -> "AugmentationPolicy":
        """Reads ``cfg.INPUT``.

        Raises:
            UserError: for a value that has no meaning here; it names the key.
        """
        source = cfg.INPUT
        if source.FORMAT not in ("RGB", "BGR"):
            raise UserError(f"INPUT.FORMAT {source.FORMAT!r} is not known: choose RGB or BGR")
        if not is_train:
            return cls(0.0, (source.MIN_SIZE_TEST,), source.MAX_SIZE_TEST, 0.0, (), (0, 0), source.FORMAT)
        if source.RANDOM_FLIP not in ("horizontal", "none"):
            raise UserError(f"INPUT.RANDOM_FLIP {source.RANDOM_FLIP!r}: choose horizontal or none")
        if source.MIN_SIZE_TRAIN_SAMPLING not in ("choice", "range"):
            raise UserError(f"INPUT.MIN_SIZE_TRAIN_SAMPLING {source.MIN_SIZE_TRAIN_SAMPLING!r}: choose choice or range")
        crop_prob = 0.5 if source.CROP.ENABLED else 0.0
        if crop_prob:
            _check_crop(source.CROP)
        sizes = tuple(source.MIN_SIZE_TRAIN)
        if not sizes or min(sizes) < 1:
            raise UserError(f"INPUT.MIN_SIZE_TRAIN {sizes}: give at least one size, each at least 1 pixel")
        if source.MIN_SIZE_TRAIN_SAMPLING == "range":
            sizes = tuple(range(min(sizes), max(sizes) + 1))
        return cls(
            flip_prob=0.5 if source.RANDOM_FLIP == "horizontal" else 0.0,
            min_sizes=sizes,
            max_size=source.MAX_SIZE_TRAIN,
            crop_prob=crop_prob,
            crop_resize=tuple(source.CROP.RESIZE) if crop_prob else (),
            crop_range=(int(source.CROP.SIZE[0]), int(source.CROP.SIZE[1])) if crop_prob else (0, 0),
            image_format=source.FORMAT,
        )


def _check_crop(crop: Any) -> None:
    if crop.TYPE != "absolute_range":
        raise UserError(f"INPUT.CROP.TYPE {crop.TYPE!r}: DETR's crop is absolute_range")
    if len(crop.SIZE) != 2 or not 1 <= crop.SIZE[0] <= crop.SIZE[1]:
        raise UserError(f"INPUT.CROP.SIZE {list(crop.SIZE)}: give the least and the largest side in pixels")
    if not crop.RESIZE or min(crop.RESIZE) < 1:
        raise UserError(f"INPUT.CROP.RESIZE {list(crop.RESIZE)}: give at least one size, each at least 1 pixel")
