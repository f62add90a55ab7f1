"""Checks annotations in COCO instances and LVIS formats.

Invalid rows are excluded from later checks, so that each problem is reported only once.
"""

from collections.abc import Callable

import numpy as np

from .annotations import FIELDS
from .files import ImageEntry
from .problems import Problems
from .records import Array, positions
from .segmentations import Segmentations

RULES = ("error", "drop", "drop_many")  # for boxes and masks without area
_MANY = 0.2  # larger fractions of clipped, empty or mismatched boxes are an error
_SOME = 0.02  # larger fractions are a warning
_MIN_ROWS = 10  # fractions are not meaningful for fewer boxes
_ALMOST_ALL = 0.99
_NORMALIZED = 1.01  # largest coordinate of normalized boxes, including rounding errors


def clip(boxes: Array, sizes: Array) -> Array:
    """Clips boxes (N, 4) as x, y, width, height to images of ``sizes`` (N, 2) or (2,) as height, width.

    Boxes inside their image are returned unchanged.
    """
    limits, stop = sizes[..., ::-1], boxes[:, :2] + boxes[:, 2:]
    low, high = np.maximum(boxes[:, :2], 0), np.minimum(stop, limits)
    is_inside = np.all((boxes[:, :2] >= 0) & (stop <= limits), axis=1)
    return np.where(is_inside[:, None], boxes, np.concatenate([low, high - low], axis=1))


class AnnotationChecks:
    """Checks of a table of annotations.

    Args:
        images: images of the file.
        categories: category names by id.
        table: annotations, ordered by image.
        owners: (annotations,) index of the image of each annotation; -1 if the file lacks the image.
        rule: one of `RULES`.
        problems: collects errors and warnings.

    Attributes:
        spans: (images, 2) range [start, stop) of each image's rows.
        sizes: (annotations, 2) height and width of the images.
        labels: (annotations,) contiguous class ids.
        is_used: (annotations,) bool, False for invalid and dropped rows.
        dropped: number of dropped annotations.
        clipped: number of clipped boxes.
    """

    def __init__(
        self,
        images: list[ImageEntry],
        categories: dict[int, str],
        table: Array,
        owners: Array,
        rule: str,
        problems: Problems,
    ) -> None:
        self.images = images
        self.table = table
        self.owners = owners
        self.rule = rule
        self.problems = problems
        self.category_ids = np.array(list(categories), np.int64)
        self.labels = positions(self.category_ids, table["category_id"])
        index = np.arange(len(images))
        self.spans = np.stack([np.searchsorted(owners, index, side) for side in ("left", "right")], axis=1)
        self.sizes = np.array([(image.height, image.width) for image in images])[owners]
        self.is_used = np.ones(len(table), bool)
        self.dropped = self.clipped = 0
        self._is_repeated = _repeated(table["id"])
        self._has_ids = bool(table["id"].min(initial=0) >= 0 and not self._is_repeated.any())

    def _reject(self, kind: str, is_invalid: Array, example: Callable[[int], str], remedy: str) -> None:
        rows = np.flatnonzero(is_invalid & self.is_used)
        if rows.size:
            self.problems.add(kind, map(example, rows.tolist()), remedy, rows.size)
            self.is_used[rows] = False

    def _warn(self, kind: str, is_reported: Array, example: Callable[[int], str], consequence: str) -> None:
        rows = np.flatnonzero(is_reported & self.is_used)
        if rows.size:
            self.problems.warn(kind, map(example, rows.tolist()), consequence, rows.size)

    def _drop_or_reject(self, kind: str, is_empty: Array, example: Callable[[int], str]) -> None:
        if self.rule == "error":
            remedy = "Correct or remove them, or set `invalid_boxes=drop` to drop them."
            self._reject(kind, is_empty, example, remedy)
            return
        self._warn(kind, is_empty, example, f"They are dropped, out of {len(self.table)} annotations in total.")
        self.dropped += int((is_empty & self.is_used).sum())
        self.is_used &= ~is_empty

    def _name(self, row: int) -> str:
        entry = self.table[row]
        name = f"annotation {entry['id']}" if self._has_ids else f"annotations[{entry['row']}]"
        return name if self.owners[row] < 0 else f"{name} of {self.images[self.owners[row]].file_name}"

    def _describe_box(self, row: int) -> str:
        box = ", ".join(f"{value:.10g}" for value in self.table["bbox"][row])
        return f"{self._name(row)} has bbox [{box}]"

    def _describe_box_in_image(self, row: int) -> str:
        return f"{self._describe_box(row)} in an image of {self.sizes[row][1]} x {self.sizes[row][0]}"

    def check_ids(self, hint: str = "") -> None:
        """Checks the ids of annotations, images and categories; appends ``hint`` to the message about unknown ones."""
        table = self.table
        self._reject(
            "annotations of images that are not in 'images'",
            self.owners < 0,
            lambda row: f"{self._name(row)} has image_id {table['image_id'][row]}",
            "Add the images, or remove the annotations.",
        )
        known = ", ".join(str(category_id) for category_id in self.category_ids[:20])
        more = f" and {len(self.category_ids) - 20} more" if len(self.category_ids) > 20 else ""
        self._reject(
            "annotations whose category_id is not in 'categories'",
            self.labels < 0,
            lambda row: f"{self._name(row)} has category_id {table['category_id'][row]}",
            f"Known ids are {known}{more}: add the category, or correct the id.{hint}",
        )
        self._warn(
            "annotation ids that are missing, duplicate or not positive 64-bit integers",
            (table["id"] <= 0) | self._is_repeated,
            self._name,
            "They are ignored: annotations are numbered from 1 in evaluation.",
        )

    def check_boxes(self, read_corners: Callable[[], Array]) -> None:
        """Checks boxes and clips them to their images.

        Args:
            read_corners: returns (annotations, 4) corners of the masks, NaN without a mask.
        """
        boxes = self.table["bbox"]
        kind, remedy = FIELDS["bbox"]
        is_finite = np.isfinite(boxes).all(axis=1)
        self._reject(kind, ~is_finite, self._describe_box, remedy)
        boxes = boxes if is_finite.all() else np.where(is_finite[:, None], boxes, 0)
        remedy = "Write bbox as [x, y, width, height] in pixels; check the order of the corners."
        is_negative = np.any(boxes[:, 2:] < 0, axis=1)
        self._reject("boxes with negative width or height", is_negative, self._describe_box, remedy)
        if self._are_normalized(boxes, np.all(boxes[:, 2:] > 0, axis=1)):
            self._reject(
                "boxes in normalized coordinates",
                np.ones(len(boxes), bool),
                self._describe_box_in_image,
                "Write bbox in pixels: multiply x and width by the image width, and y and height by the image height.",
            )
        if self._are_corners(read_corners):
            self._reject(
                "boxes in corner format [x1, y1, x2, y2]",
                np.ones(len(boxes), bool),
                self._describe_box_in_image,
                "Write bbox as [x, y, width, height]: subtract x1 from x2 and y1 from y2. If the boxes are correct, "
                "set `invalid_boxes=drop_many`.",
            )
        clipped = clip(boxes, self.sizes)
        is_empty = np.any(clipped[:, 2:] <= 0, axis=1)
        self._check_fraction(boxes, is_empty, _moves(boxes, clipped))
        self._drop_or_reject("boxes without area inside their image", is_empty, self._describe_box_in_image)
        self._warn(
            "boxes smaller than a pixel",
            np.all(boxes[:, 2:] < 1, axis=1),
            self._describe_box,
            "They are kept; check that bbox is in pixels.",
        )
        self.clipped = int((clipped != boxes)[self.is_used].any(1).sum())

    def _are_normalized(self, boxes: Array, is_counted: Array) -> bool:
        is_counted = is_counted & self.is_used & (self.sizes > 1).all(1)
        counted = boxes[is_counted]
        if not (counted % 1).any() and (self.rule == "drop_many" or len(counted) < _MIN_ROWS):
            return False  # integers may be boxes of one pixel
        return _fraction(np.abs(counted).max(1) <= _NORMALIZED) >= _ALMOST_ALL

    def _are_corners(self, read_corners: Callable[[], Array]) -> bool:
        """Returns whether areas, image sizes and masks indicate corner format instead of x, y, width, height."""
        used = np.flatnonzero(self.is_used)
        boxes, limits, area = self.table["bbox"][used], self.sizes[used, ::-1], self.table["area"][used]
        low, high = boxes[:, :2], boxes[:, 2:]
        is_possible = np.all((low >= 0) & (high > low) & (high <= limits + 1), axis=1)
        if self.rule == "drop_many" or len(used) < _MIN_ROWS or _fraction(is_possible) < _ALMOST_ALL:
            return False
        if _fraction(np.any(low + high > 1.02 * limits + 1, axis=1)) > _MANY:
            return True
        of_corners, of_sizes = (high - low).prod(1), high.prod(1)
        tolerance = 0.02 * of_corners + (high - low).sum(1) + 1  # some tools count pixels inclusively
        is_different = of_sizes - of_corners > 2 * tolerance
        known = is_different & (area > 0)
        if known.sum() >= _MIN_ROWS and _fraction((np.abs(area - of_corners) <= tolerance)[known]) > 0.9:
            return True
        masks = read_corners()[used]
        tolerance = np.maximum(2, 0.1 * (high - low).max(1))
        known = is_different & np.isfinite(masks).all(1)
        return bool(known.sum() >= _MIN_ROWS and _fraction((np.abs(masks - boxes).max(1) <= tolerance)[known]) > 0.9)

    def _check_fraction(self, boxes: Array, is_empty: Array, is_moved: Array) -> None:
        """Reports a large fraction of boxes without area in their image or moved by clipping, with a likely cause."""
        is_changed = is_empty | is_moved
        fraction = _fraction(is_changed[self.is_used])
        if fraction <= _SOME:
            return
        moved_if_swapped = _moves(boxes, clip(boxes, self.sizes[:, ::-1]))
        if _fraction(np.any(boxes[:, 2:] == 0, axis=1)[is_changed & self.is_used]) > 0.5:
            cause = "the width or height of most of them is 0"
        elif _fraction(moved_if_swapped[self.is_used]) < 0.1 * fraction:
            cause = "the width and height of the images are swapped in the annotation file"
        else:
            cause = "the images were resized or rotated after annotation, or bbox is not in pixels"
        if fraction > _MANY and len(boxes) >= _MIN_ROWS and self.rule != "drop_many":
            kind = f"boxes without area in their image or extending more than a pixel beyond it, {fraction:.0%} of all"
            remedy = f"Likely cause: {cause}. If the boxes are correct, set `invalid_boxes=drop_many`."
            self._reject(kind, is_changed, self._describe_box_in_image, remedy)
        else:
            kind, is_clipped = "boxes that extend more than a pixel beyond their image", is_moved & ~is_empty
            self._warn(kind, is_clipped, self._describe_box_in_image, f"They are clipped. Likely cause: {cause}.")

    def check_masks(self, segmentations: Segmentations) -> None:
        """Checks that segmentations are valid and match their boxes.

        Polygons with fewer than three points are dropped, as in Detectron2, unless the rule is ``"error"``.
        """
        shapes = segmentations.inspect(np.flatnonzero(self.is_used), self.sizes)
        self._reject(
            "annotations without a segmentation",
            shapes.num_parts == 0,
            self._name,
            "Add polygons or RLEs, or set `masks=False`.",
        )
        is_invalid = np.zeros(len(self.table), bool)
        is_invalid[list(shapes.faults)] = True
        remedy = "Correct or remove the annotations."
        self._reject(
            "invalid segmentations", is_invalid, lambda row: f"{self._name(row)} has {shapes.faults[row]}", remedy
        )
        if self.rule == "error":
            self._reject(
                "polygons with fewer than three points",
                shapes.num_short > 0,
                self._name,
                "Correct or remove the annotations, or set `invalid_boxes=drop` to drop such polygons.",
            )
        is_short = shapes.num_parts == shapes.num_short
        self._drop_or_reject("masks without a polygon of three or more points", is_short, self._name)
        corners = np.nan_to_num(shapes.corners)

        def describe(row: int) -> str:
            return f"{self._name(row)} has a mask from ({_format(corners[row, :2])}) to ({_format(corners[row, 2:])})"

        if self._are_normalized(corners, np.isfinite(shapes.corners).all(1)):
            fix = "Write polygons in pixels: multiply x by the image width and y by the image height."
            self._reject("polygons in normalized coordinates", np.ones(len(corners), bool), self._name, fix)
        limits = self.sizes[:, ::-1]
        is_far = np.abs(corners).max(1, initial=0) > 100 * limits.max(1, initial=0)
        self._reject("masks with coordinates beyond 100 times the size of their image", is_far, describe, remedy)
        is_empty = ((corners[:, 2:] <= 0) | (corners[:, :2] >= limits) | (corners[:, 2:] < corners[:, :2])).any(1)
        # Thin masks are rasterized, because they may cover no pixel.
        is_thin = ((corners[:, 2:] - corners[:, :2]).min(1, initial=np.inf) < 2) | (shapes.areas < 2)
        for row in np.flatnonzero(self.is_used & is_thin & ~is_empty).tolist():
            is_empty[row] = segmentations.area(row, *self.sizes[row].tolist()) == 0
        self._drop_or_reject("masks without a pixel inside their image", is_empty, describe)
        self._compare_masks(corners)

    def _compare_masks(self, corners: Array) -> None:
        """Reports boxes whose IoU with the bounding box of their mask is below 0.5."""
        boxes = self.table["bbox"]
        box_corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        overlap = np.minimum(box_corners, corners)[:, 2:] - np.maximum(box_corners, corners)[:, :2]
        intersection = overlap.clip(0).prod(1)
        union = boxes[:, 2:].prod(1) + (corners[:, 2:] - corners[:, :2]).prod(1) - intersection
        is_different = (intersection < 0.5 * union) & (np.abs(box_corners - corners).max(1, initial=0) > 2)
        kind = "boxes that do not match their masks"

        def describe(row: int) -> str:
            low, high = corners[row, :2], corners[row, 2:]
            return f"{self._describe_box(row)}, but the box of its mask is [{_format(low)}, {_format(high - low)}]"

        if _fraction(is_different[self.is_used]) > _MANY and len(boxes) >= _MIN_ROWS and self.rule != "drop_many":
            remedy = (
                "Write bbox as [x, y, width, height] and segmentation as [x1, y1, x2, y2, …], both in pixels. "
                "If both are correct, set `invalid_boxes=drop_many`."
            )
            self._reject(kind, is_different, describe, remedy)
        else:
            self._warn(kind, is_different, describe, "Both are used as they are.")

    def fill_in(self, segmentations: Segmentations | None, *, needs_crowd: bool) -> None:
        """Replaces invalid areas with the area of the mask or box; warns about them and about missing ``iscrowd``."""
        table = self.table
        boxes, area = table["bbox"], table["area"]
        of_box = boxes[:, 2:].prod(1)
        is_wrong = ~(np.isfinite(area) & (area > 0)) & self.is_used
        self._warn(
            "annotations whose area is missing or not a positive number",
            is_wrong,
            self._name,
            f"The area of the {'mask' if segmentations else 'box'} is used.",
        )
        self._warn(
            "annotations whose area does not match their box",
            ~is_wrong & ((area > 1.1 * of_box + boxes[:, 2:].sum(1) + 1) | (area < 0.001 * of_box)),
            lambda row: f"{self._describe_box(row)} and area {area[row]:.10g}",
            "The area determines whether an object is small, medium or large in APs, APm and APl.",
        )
        rows = np.flatnonzero(is_wrong)
        area[rows] = clip(boxes[rows], self.sizes[rows])[:, 2:].prod(1)
        if segmentations is not None:
            area[rows] = [segmentations.area(row, *self.sizes[row].tolist()) for row in rows.tolist()]
        if needs_crowd:
            self._warn("annotations without iscrowd", ~table["has_iscrowd"], self._name, "It defaults to 0.")

    def check_duplicates(self) -> None:
        """Warns about objects, except crowds, that have the same class and box as another object in their image."""
        is_crowd = self.table["iscrowd"] != 0
        keys = np.zeros(len(self.table), np.uint64)
        for column in (self.owners, self.labels, *self.table["bbox"].view(np.int64).T):
            keys = (keys ^ column.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)  # faster than sorting rows
            keys ^= keys >> np.uint64(29)
        self._warn(
            "duplicate boxes of the same class in an image",
            _repeated(np.where(is_crowd, np.arange(len(keys), dtype=np.uint64), keys)),
            self._describe_box,
            "Each is treated as a separate object in training and evaluation.",
        )


def _repeated(values: Array) -> Array:
    """Returns (N,) bool, True for values that are equal to an earlier one."""
    is_repeated = np.ones(len(values), bool)
    is_repeated[np.unique(values, return_index=True)[1]] = False
    return is_repeated


def _moves(boxes: Array, clipped: Array) -> Array:
    """Returns (N,) bool, True for boxes with a side that clipping moves by more than a pixel."""
    return np.asarray(np.abs(clipped - boxes).max(1, initial=0) > 1)


def _fraction(is_counted: Array) -> float:
    return float(is_counted.mean()) if is_counted.size else 0.0


def _format(values: Array) -> str:
    return ", ".join(f"{value:.10g}" for value in values.tolist())
