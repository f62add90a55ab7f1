"""Options of a call of `Detector`: validation, selection of detections, and tiles."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated

import torch
from torchvision.ops import batched_nms

from ..config.inference import ModelMetadata
from ..errors import ArgumentError, PositiveInt, Range, check_choice, check_ranges, did_you_mean
from ..evaluation import TestTimeAugmentationConfig
from ..modeling import Detections
from .tiles import Tile, make_tiles, select

DEFAULT_THRESHOLD = 0.3
MIN_TILE = 32  # pixels
Classes = Iterable[str | int] | str | int


@dataclass(frozen=True)
class Options:
    """Validated options of a call, see `Detector.stream`.

    Attributes:
        thresholds: minimum score of each class.
        top_k: maximum number of detections of an image.
        candidates: maximum number of detections before class thresholds and NMS.
        classes: ids of the classes to detect; None: all.
        nms_threshold: IoU above which detections of one class are duplicates; None: no NMS.
        tile: size and overlap of tiles in pixels; None: whole images.
        tta: test-time augmentation; None: off.
        color: channel order of arrays.
        batch_size: maximum number of images in a batch.
        max_pixels: maximum number of pixels in a batch of several images; None: no limit.
        merged_top_k: maximum number of detections of an image with several tiles; None: ``top_k`` in each tile.
    """

    thresholds: Annotated[tuple[float, ...], Range(0, 1)]
    top_k: PositiveInt
    candidates: PositiveInt
    classes: tuple[int, ...] | None
    nms_threshold: Annotated[float | None, Range(0, 1)]
    tile: tuple[int, int] | None
    tta: TestTimeAugmentationConfig | None
    color: str
    batch_size: PositiveInt
    max_pixels: int | None = None
    merged_top_k: int | None = None

    def __post_init__(self) -> None:
        check_ranges(Options, vars(self))
        check_choice("color", self.color, ("rgb", "bgr"))
        if self.tile is not None and not _is_tile(self.tile):
            wanted = f"(size, overlap) in pixels with size >= {MIN_TILE} and 0 <= overlap < size"
            raise ArgumentError("tile", f"must be {wanted}, got {self.tile}")
        if self.tta is not None and not isinstance(self.tta, TestTimeAugmentationConfig):
            raise ArgumentError("tta", f"must be True, False or a TestTimeAugmentationConfig, got {self.tta!r}")

    @property
    def min_score(self) -> float:
        """Smallest threshold of the classes to detect."""
        return min(self.thresholds if self.classes is None else [self.thresholds[index] for index in self.classes])

    def select(self, found: Detections) -> Detections:
        """Applies class thresholds and NMS, and returns at most ``top_k`` detections."""
        if len(set(self.thresholds)) > 1:
            thresholds = torch.tensor(self.thresholds, device=found.scores.device)
            found = select(found, (found.scores >= thresholds[found.labels]).nonzero()[:, 0])
        if self.nms_threshold is not None:
            found = select(found, batched_nms(found.boxes, found.scores, found.labels, self.nms_threshold))
        return (
            select(found, torch.arange(self.top_k, device=found.scores.device))
            if len(found.scores) > self.top_k
            else found
        )

    def tiles(self, size: tuple[int, int]) -> list[Tile]:
        """Returns tiles that cover an image of size (H, W); the last tile of a row ends at the border."""
        if self.tile is None:
            return [(0, 0, *size)]
        return make_tiles(size, *self.tile)


def _is_tile(value: object) -> bool:
    """Returns whether a value is a valid (size, overlap) of tiles."""
    if not isinstance(value, tuple | list) or len(value) != 2 or not all(type(side) is int for side in value):
        return False
    return 0 <= value[1] < value[0] and value[0] >= MIN_TILE


def make_options(
    metadata: ModelMetadata,
    score_threshold: float | Mapping[str, float],
    top_k: int | None,
    classes: Classes | None,
    nms_threshold: float | None,
    tile: tuple[int, int] | None,
    tta: bool | TestTimeAugmentationConfig,
    color: str,
    batch_size: int,
    max_pixels: int | None = None,
) -> Options:
    """Checks the arguments of `Detector.stream` and converts class names to ids.

    Raises:
        ArgumentError: for an invalid argument.
    """
    config = metadata.evaluation
    thresholds = class_thresholds(score_threshold, metadata.class_names)
    merged_top_k, top_k = top_k, config.max_detections if top_k is None else top_k
    if tta is True:
        if metadata.tta is None:
            raise ArgumentError(
                "tta",
                "must be a TestTimeAugmentationConfig for a model without a test-time augmentation config, got True",
            )
        sizes, size = metadata.tta.min_sizes, metadata.min_size
        if size and not min(sizes) / 2 <= size <= 2 * max(sizes):
            raise ArgumentError(
                "tta",
                f"must be off or have sizes near the {size} pixels (shorter side) of the model's evaluation, got "
                f"TEST.AUG.MIN_SIZES {sizes}: pass a TestTimeAugmentationConfig, or a config with other sizes",
            )
    augmentation = metadata.tta if tta is True else (tta or None)
    for name, value in (("tta", augmentation), ("tile", tile)):
        if value is not None and config.is_panoptic:
            raise ArgumentError(name, "must be off for a panoptic model, whose segments cannot be merged")
    if augmentation is not None and metadata.input_size is not None:
        raise ArgumentError("tta", "must be off for a model with a fixed input size")
    is_filtered = nms_threshold is not None or len(set(thresholds)) > 1
    return Options(
        thresholds,
        top_k,
        max(top_k, config.max_detections) if is_filtered and isinstance(top_k, int) else top_k,
        _class_ids(classes, metadata),
        nms_threshold,
        tile,
        augmentation,
        color,
        batch_size,
        max_pixels,
        merged_top_k,
    )


def class_thresholds(
    given: float | Mapping[str, float], names: Sequence[str], argument: str = "score_threshold"
) -> tuple[float, ...]:
    """Returns the minimum score of each class; raises `ArgumentError` for unknown classes and invalid scores."""
    if not isinstance(given, Mapping):
        values: dict[str, float] = dict.fromkeys(names, given)
    else:
        for name in given:
            _check_name(argument, name, names)
        values = dict.fromkeys(names, DEFAULT_THRESHOLD) | dict(given)
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
            where = f" for {name!r}" if isinstance(given, Mapping) else ""
            raise ArgumentError(argument, f"must be a number in [0, 1], got {value!r}{where}")
    return tuple(float(values[name]) for name in names)


def _class_ids(classes: Classes | None, metadata: ModelMetadata) -> tuple[int, ...] | None:
    """Returns class ids, or None for all classes. Stuff classes are rejected: they have no instances."""
    names, things = metadata.class_names, metadata.evaluation.thing_classes
    if classes is None:
        return things or None
    ids: list[int] = []
    for item in [classes] if isinstance(classes, str) or not isinstance(classes, Iterable) else classes:
        if isinstance(item, str):
            _check_name("classes", item, names)
            ids.append(names.index(item))
        else:
            try:
                ids.append(operator.index(item))
            except TypeError:
                ids.append(-1)
            if isinstance(item, bool) or not 0 <= ids[-1] < len(names):
                raise ArgumentError("classes", f"must be names or ids from 0 to {len(names) - 1}, got {item!r}")
        if things and ids[-1] not in things:
            raise ArgumentError("classes", f"must be things, got the stuff class {names[ids[-1]]!r}")
    if not ids:
        raise ArgumentError("classes", "must have at least one class, got none")
    return tuple(dict.fromkeys(ids))


def _check_name(argument: str, name: object, names: Sequence[str]) -> None:
    if name not in names:
        hint = did_you_mean(str(name), names)
        hint = hint or f"; choose from {', '.join(names[:8])}" + ", …" * (len(names) > 8)
        raise ArgumentError(argument, f"must contain only known class names, got {name!r}{hint}")
