"""COCO's instances format, and LVIS's: checks before training, and records.

Category ids, sorted, become contiguous class ids 0, 1, …, as in Detectron2. The rule for boxes:

- a box that is not four finite numbers, or has negative width or height, is always an error;
- every other box is clipped to its image;
- a box without area is then an error or, with ``"drop"``, left out and counted in one warning;
- crowds are kept in the records with ``iscrowd`` 1, and are never objects to train on.
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from . import lvis
from .annotations import (
    FIELDS,
    LACKS_KEYS,
    Annotation,
    MaskAnnotation,
    convert_annotations,
    make_table,
    take_segmentations,
)
from .catalog import DatasetSpec
from .files import KEYS, ImageEntry, check_categories, check_images, convert_images, paused_gc, read_content
from .masks import Segmentations
from .problems import Problems
from .records import Array, Record, Records, Summary, check_counts, positions

_logger = logging.getLogger(__name__)
_XYWH_ABS = 1  # detectron2.structures.BoxMode.XYWH_ABS


class CocoRecords(Records):
    """Records with ``annotations``: ``bbox``, ``bbox_mode``, ``category_id``, ``iscrowd``, perhaps ``segmentation``.

    ``bbox`` is [x, y, width, height] in pixels, clipped to the image; ``category_id`` is contiguous.

    Attributes:
        table: (annotations,) array of dtype `annotations.TABLE`, as in the file.
        segmentations: segmentations of the annotations; None if they were not loaded.
    """

    table: Array
    segmentations: Segmentations | None = None

    def _annotations(self, index: int) -> Record:
        start, stop = self.spans[index].tolist()
        boxes = clip(self.table["bbox"][start:stop], self.sizes[index]).tolist()
        found = []
        for row in (start + np.flatnonzero(self.is_used[start:stop])).tolist():
            item: Record = {
                "bbox": boxes[row - start],
                "bbox_mode": _XYWH_ABS,
                "category_id": int(self.labels[row]),
                "iscrowd": int(self.is_crowd[row]),
            }
            if self.segmentations is not None:
                item["segmentation"] = self.segmentations[row]
            found.append(item)
        return {"annotations": found}

    def ground_truth(self) -> dict[str, Any]:
        """Returns the content of the file for COCO's evaluation: all annotations, with boxes that are not clipped."""
        columns = {key: self.table[key].tolist() for key in ("id", "image_id", "category_id", "bbox", "area")}
        columns["iscrowd"] = self.table["iscrowd"].astype(int).tolist()
        if self.segmentations is not None:
            columns["segmentation"] = [self.segmentations.decode(row) for row in range(len(self.table))]
        images = {
            "id": self.image_ids.tolist(),
            "height": self.sizes[:, 0].tolist(),
            "width": self.sizes[:, 1].tolist(),
        }
        categories = {"id": self.summary.category_ids, "name": self.summary.class_names}
        return {
            key: [dict(zip(part, values, strict=True)) for values in zip(*part.values(), strict=True)]
            for key, part in (("images", images), ("annotations", columns), ("categories", categories))
        }


def clip(boxes: Array, sizes: Array) -> Array:
    """Clips boxes (N, 4) x, y, width, height to images of ``sizes`` (N, 2) or (2,) height, width.

    Boxes inside their image are returned exactly as they are.
    """
    limits = sizes[..., ::-1]
    with np.errstate(over="ignore", invalid="ignore"):  # boxes that are not finite are reported before
        stop = boxes[:, :2] + boxes[:, 2:]
        low, high = np.maximum(boxes[:, :2], 0), np.minimum(stop, limits)
        is_inside = np.all((boxes[:, :2] >= 0) & (stop <= limits), axis=1)
        return np.where(is_inside[:, None], boxes, np.concatenate([low, high - low], axis=1))


def load(
    spec: DatasetSpec, invalid_boxes: str, max_objects: int | None, *, for_evaluation: bool, masks: bool
) -> CocoRecords:
    """Loads a data set in COCO's instances format or LVIS's; see `load_dataset` for the arguments."""
    may_be_empty = for_evaluation and max_objects is None
    drop, problems = invalid_boxes == "drop", Problems()
    check, segmentations = _read(spec, masks, KEYS[:2] if may_be_empty else KEYS, problems)
    images, table, is_lvis = check.images, check.table, lvis.is_lvis(check.images)
    check.ids(needs_area=for_evaluation, needs_crowd=for_evaluation and not is_lvis)
    check.boxes(drop=drop)
    if segmentations is not None:
        check.masks(segmentations, drop=drop)
    if is_lvis:
        used = check.is_used
        lvis.check_absent_categories(images, list(check.categories), check.owners[used], check.labels[used], problems)
    is_object = check.is_used & ~table["iscrowd"]
    summary = Summary(
        spec.name,
        class_names=tuple(check.categories.values()),
        category_ids=tuple(check.categories),
        num_things=len(check.categories),
        num_images=len(images),
        num_annotations=int(check.is_used.sum()),
        num_crowd=int((check.is_used & table["iscrowd"]).sum()),
        dropped=len(check.dropped),
        clipped=check.clipped,
        most_objects=check_counts(images, check.owners[is_object], max_objects, problems),
        is_lvis=is_lvis,
    )
    if not summary.most_objects and not may_be_empty and not problems:
        problems.add("empty list of objects", "'annotations' has none to train on", "List the objects' boxes there.")
    problems.raise_if_any(spec.name, spec.json_file)
    _warn(spec, summary, check.dropped, len(table))
    records = CocoRecords(spec, summary, images, check.spans, check.labels, table["iscrowd"], check.is_used)
    records.table, records.segmentations = table, segmentations
    return records


def _read(
    spec: DatasetSpec, masks: bool, needed: tuple[str, ...], problems: Problems
) -> tuple["_Check", Segmentations | None]:
    """Decodes the file; the structs of its annotations are released when this function returns."""
    kind = MaskAnnotation if masks else Annotation
    with paused_gc():
        content = read_content(spec, kind, needed)
        images = convert_images(content.images, problems)
        is_lvis = lvis.is_lvis(images)
        if is_lvis:
            lvis.prepare(images, content.categories, problems)
        categories = check_categories(content.categories, problems)
        images = check_images(images, spec, problems, lvis.FILE_NAME_HINT if is_lvis else "")
        problems.raise_if_any(spec.name, spec.json_file)
        file_names = {image.id: str(image.file_name) for image in images}
        rows = convert_annotations(content.annotations or [], kind, file_names, problems)
        table = make_table(rows)
        owners = positions(np.array(list(file_names), np.int64), table["image_id"])
        order = np.argsort(owners, kind="stable")
        segmentations = take_segmentations(rows, order) if masks else None
    return _Check(images, categories, table[order], owners[order], problems), segmentations


def _warn(spec: DatasetSpec, summary: Summary, dropped: list[int], total: int) -> None:
    source = f"data set {spec.name} ({spec.json_file})"
    if not summary.most_objects:
        _warn_once(f"{source} has no objects: there are no metrics to compute on it")
    if dropped:
        _warn_once(
            f"{source}: {len(dropped)} of {total} annotations are left out, as their boxes or masks have no area "
            f"(annotation ids {', '.join(map(str, dropped[:5]))}{', …' * (len(dropped) > 5)})"
        )


@cache
def _warn_once(message: str) -> None:
    _logger.warning(message)


class _Check:
    """Checks of a table of annotations. A row with a fault is excluded from later checks.

    Attributes:
        images, categories: those of the file.
        table: annotations, ordered by image.
        spans: (images, 2) first row of each image, and the one after its last.
        labels: (annotations,) contiguous class ids.
        is_used: (annotations,) bool; False for rows that were dropped.
        dropped: annotation ids of these.
        clipped: number of boxes that reach out of their image.
    """

    def __init__(
        self, images: list[ImageEntry], categories: dict[int, str], table: Array, owners: Array, problems: Problems
    ) -> None:
        self.images = images
        self.categories = categories
        self.table = table
        self.owners = owners
        self.problems = problems
        self.category_ids = np.array(list(categories), np.int64)
        self.labels = positions(self.category_ids, table["category_id"])
        index = np.arange(len(images))
        self.spans = np.stack([np.searchsorted(owners, index, side) for side in ("left", "right")], axis=1)
        self.sizes = np.array([(image.height, image.width) for image in images])[owners]
        self.is_used = np.ones(len(table), bool)
        self.dropped: list[int] = []
        self.clipped = 0

    def _reject(self, kind: str, is_faulty: Array, example: Callable[[int], str], remedy: str) -> None:
        rows = np.flatnonzero(is_faulty & self.is_used)
        if rows.size:
            self.problems.add(kind, map(example, rows.tolist()), remedy, rows.size)
            self.is_used[rows] = False

    def _drop(self, is_dropped: Array) -> None:
        rows = np.flatnonzero(is_dropped & self.is_used)
        self.is_used[rows] = False
        self.dropped += self.table["id"][rows].tolist()

    def _name(self, row: int) -> str:
        return f"annotation {self.table['id'][row]} of {self.images[self.owners[row]].file_name}"

    def _describe_absent(self, key: str, row: int) -> str:
        return f"{self._name(row)} lacks {key}"

    def _describe_box(self, row: int) -> str:
        box = ", ".join(f"{value:.10g}" for value in self.table["bbox"][row])
        return f"{self._name(row)} has bbox [{box}]"

    def ids(self, *, needs_area: bool, needs_crowd: bool) -> None:
        """Checks that ids are unique and known, and that ``area`` and ``iscrowd`` are there."""
        table = self.table
        is_repeated = np.ones(len(table), bool)
        is_repeated[np.unique(table["id"], return_index=True)[1]] = False
        self._reject(
            "annotation ids that are used twice",
            is_repeated,
            lambda row: f"{table['id'][row]}",
            "Give each its own id.",
        )
        self._reject(
            "annotations of images that are not in 'images'",
            self.owners < 0,
            lambda row: f"annotation {table['id'][row]} has image_id {table['image_id'][row]}",
            "Add the image, or remove them.",
        )
        known = ", ".join(str(category_id) for category_id in self.category_ids[:20])
        more = f" and {len(self.category_ids) - 20} more" if len(self.category_ids) > 20 else ""
        self._reject(
            "annotations whose category_id is not in 'categories'",
            self.labels < 0,
            lambda row: f"{self._name(row)} has category_id {table['category_id'][row]}",
            f"Known ids are {known}{more}: add the category, or correct the id.",
        )
        is_absent = {"area": np.isnan(table["area"]) & needs_area, "iscrowd": ~table["has_iscrowd"] & needs_crowd}
        for key, absent in is_absent.items():
            self._reject(LACKS_KEYS[0], absent, partial(self._describe_absent, key), LACKS_KEYS[1])

    def boxes(self, *, drop: bool) -> None:
        """Applies the rule for boxes."""
        boxes = self.table["bbox"]
        kind, remedy = FIELDS["bbox"]
        is_finite = np.all(np.isfinite(boxes), axis=1)
        self._reject(kind, ~is_finite, self._describe_box, remedy)
        self._reject(
            "boxes of negative width or height",
            np.any(boxes[:, 2:] < 0, axis=1),
            self._describe_box,
            "Write bbox as [x, y, width, height] in pixels, not as two corners in the wrong order.",
        )
        clipped = clip(boxes, self.sizes)
        is_empty = np.any(clipped[:, 2:] <= 0, axis=1)
        if drop:
            self._drop(is_empty)
        self._reject(
            "boxes without area inside their image",
            is_empty,
            lambda row: f"{self._describe_box(row)} in an image of {self.sizes[row][1]} x {self.sizes[row][0]}",
            "Correct or remove them, or set `invalid_boxes` to drop, which leaves them out.",
        )
        self.clipped = int((clipped != boxes)[self.is_used].any(1).sum())

    def masks(self, segmentations: Segmentations, *, drop: bool) -> None:
        """Checks segmentations. With ``drop``, polygons of fewer than three points are left out, as in Detectron2."""
        faults: dict[int, str] = {}
        is_absent, is_short, has_short = (np.zeros(len(self.table), bool) for _ in range(3))
        for row in np.flatnonzero(self.is_used).tolist():
            fault, num_parts, num_short = segmentations.check(row, *self.sizes[row])
            is_absent[row] = num_parts == 0
            has_short[row], is_short[row] = num_short > 0, 0 < num_parts == num_short
            if fault is not None:
                faults[row] = fault
        self._reject(
            "annotations without a segmentation",
            is_absent,
            self._name,
            "Add polygons or run lengths, or set `masks` to False.",
        )
        is_faulty = np.zeros(len(self.table), bool)
        is_faulty[list(faults)] = True
        remedy = "Correct or remove the annotation."
        self._reject("unusable segmentations", is_faulty, lambda row: f"{self._name(row)} has {faults[row]}", remedy)
        if drop:
            self._drop(is_short)
        else:
            remedy += " Or set `invalid_boxes` to drop, which leaves such polygons out."
            self._reject("polygons of fewer than three points", has_short, self._name, remedy)
