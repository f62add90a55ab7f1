"""Checks and records of data sets in COCO's instances format or in LVIS's.

As in Detectron2, contiguous class ids 0, 1, … are assigned in the order of the category ids. Boxes:

- a box that is not four finite numbers, or has a negative width or height, is always an error;
- all other boxes are clipped to their image;
- a box that then has no area is an error or, with ``"drop"``, left out and counted in one warning;
- crowds are kept in the records with ``iscrowd`` 1, but are never training targets.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
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
    """Records with ``annotations``.

    These are dicts with ``bbox`` ([x, y, width, height] in pixels, clipped to the image), ``bbox_mode``, contiguous
    ``category_id``, ``iscrowd`` and, if masks were loaded, ``segmentation``.

    Attributes:
        table: (annotations,) values of the file, of dtype `annotations.TABLE`.
        segmentations: segmentations of the annotations; None if masks were not loaded.
        federated: image id to LVIS's lists of its ``lvis.FEDERATED`` categories; empty for other files.
        frequencies: LVIS's frequency of class 0, 1, …; empty for other files.
    """

    table: Array
    segmentations: Segmentations | None = None
    federated: Mapping[int, Mapping[str, list[int]]] = MappingProxyType({})
    frequencies: Sequence[str] = ()

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
        """Returns the objects and crowds of the records as the content of a COCO or LVIS file.

        Annotations are numbered from 1, as pycocotools needs unique positive ids.
        """
        owners = np.repeat(np.arange(len(self)), self.spans[:, 1] - self.spans[:, 0])
        rows = np.concatenate([np.arange(start, stop) for start, stop in self.spans.tolist()] or [np.zeros(0, int)])
        owners, rows = owners[self.is_used[rows]], rows[self.is_used[rows]]
        table = self.table[rows]
        columns = {
            "id": range(1, len(rows) + 1),
            "bbox": clip(table["bbox"], self.sizes[owners]).tolist(),
            "iscrowd": table["iscrowd"].astype(int).tolist(),
            **{key: table[key].tolist() for key in ("image_id", "category_id", "area")},
        }
        if self.segmentations is not None:
            columns["segmentation"] = [self.segmentations[row] for row in rows.tolist()]
        image_ids: list[int] = self.image_ids.tolist()
        images = {"id": image_ids, "height": self.sizes[:, 0].tolist(), "width": self.sizes[:, 1].tolist()}
        categories = {"id": self.summary.category_ids, "name": self.summary.class_names}
        if self.federated:
            images |= {key: [self.federated[image_id][key] for image_id in image_ids] for key in lvis.FEDERATED}
            categories["frequency"] = tuple(self.frequencies)
        return {
            key: [dict(zip(part, values, strict=True)) for values in zip(*part.values(), strict=True)]
            for key, part in (("images", images), ("annotations", columns), ("categories", categories))
        }


def clip(boxes: Array, sizes: Array) -> Array:
    """Clips boxes (N, 4) x, y, width, height to images of ``sizes`` (N, 2) or (2,) height, width.

    Boxes inside their image are returned unchanged, without rounding errors.
    """
    limits = sizes[..., ::-1]
    with np.errstate(over="ignore", invalid="ignore"):  # such boxes are reported before
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
    checker, segmentations = _read(spec, masks, KEYS[:2] if may_be_empty else KEYS, problems)
    images, categories, table, used = checker.images, checker.categories, checker.table, checker.is_used
    is_lvis = lvis.is_lvis(images)
    checker.check_ids(needs_area=for_evaluation, needs_crowd=for_evaluation and not is_lvis)
    checker.check_boxes(drop=drop)
    if segmentations is not None:
        checker.check_masks(segmentations, drop=drop)
    if is_lvis:
        lvis.check_absent_categories(images, list(categories), checker.owners[used], checker.labels[used], problems)
    is_crowd = table["iscrowd"]
    summary = Summary(
        spec.name,
        class_names=tuple(categories.values()),
        category_ids=tuple(categories),
        num_things=len(categories),
        num_images=len(images),
        num_annotations=int(used.sum()),
        num_crowd=int((used & is_crowd).sum()),
        dropped=len(checker.dropped),
        clipped=checker.clipped,
        max_objects_per_image=check_counts(images, checker.owners[used & ~is_crowd], max_objects, problems),
        is_lvis=is_lvis,
    )
    if not summary.max_objects_per_image and not may_be_empty and not problems:
        problems.add("empty list of objects", "'annotations' has none to train on", "Add the boxes of the objects.")
    problems.raise_if_any(spec.name, spec.json_file)
    _warn(spec, summary, checker.dropped, len(table))
    records = CocoRecords(spec, summary, images, checker.spans, checker.labels, is_crowd, used)
    records.table, records.segmentations = table, segmentations
    if is_lvis:
        records.federated = {image.id: {key: getattr(image, key) for key in lvis.FEDERATED} for image in images}
        records.frequencies = [checker.frequencies[category_id] for category_id in categories]
    return records


def _read(
    spec: DatasetSpec, masks: bool, needed: tuple[str, ...], problems: Problems
) -> tuple["_Checker", Segmentations | None]:
    """Decodes the file; the structs of its annotations are released on return."""
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
    checker = _Checker(images, categories, table[order], owners[order], problems)
    if is_lvis:
        checker.frequencies = {entry["id"]: entry["frequency"] for entry in content.categories}
    return checker, segmentations


def _warn(spec: DatasetSpec, summary: Summary, dropped: list[int], total: int) -> None:
    source = f"data set {spec.name} ({spec.json_file})"
    if not summary.max_objects_per_image:
        _warn_once(f"{source} has no objects: no metrics can be computed")
    if dropped:
        _warn_once(
            f"{source}: {len(dropped)} of {total} annotations are left out because their boxes or masks have no area "
            f"(annotation ids {', '.join(map(str, dropped[:5]))}{', …' * (len(dropped) > 5)})"
        )


@cache
def _warn_once(message: str) -> None:
    _logger.warning(message)


class _Checker:
    """Checks a table of annotations. A row with a fault is excluded from later checks.

    Attributes:
        images: images of the file.
        categories: category id to name.
        table: annotations, ordered by image.
        spans: (images, 2) range [start, stop) of each image's rows.
        labels: (annotations,) contiguous class ids.
        is_used: (annotations,) bool; False for faulty and dropped rows.
        dropped: ids of the dropped annotations.
        clipped: number of clipped boxes.
        frequencies: category id to frequency in LVIS's files.
    """

    frequencies: Mapping[int, str] = MappingProxyType({})

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

    def _reject_absent(self, key: str, is_absent: Array) -> None:
        self._reject(LACKS_KEYS[0], is_absent, lambda row: f"{self._name(row)} lacks {key}", LACKS_KEYS[1])

    def _name(self, row: int) -> str:
        return f"annotation {self.table['id'][row]} of {self.images[self.owners[row]].file_name}"

    def _describe_box(self, row: int) -> str:
        box = ", ".join(f"{value:.10g}" for value in self.table["bbox"][row])
        return f"{self._name(row)} has bbox [{box}]"

    def check_ids(self, *, needs_area: bool, needs_crowd: bool) -> None:
        """Checks that ids are unique and known, and that required keys are present."""
        table = self.table
        is_repeated = np.ones(len(table), bool)
        is_repeated[np.unique(table["id"], return_index=True)[1]] = False
        self._reject(
            "annotation ids that are used twice",
            is_repeated,
            lambda row: f"{table['id'][row]}",
            "Give each annotation a unique id.",
        )
        self._reject(
            "annotations of images that are not in 'images'",
            self.owners < 0,
            lambda row: f"annotation {table['id'][row]} has image_id {table['image_id'][row]}",
            "Add the images, or remove the annotations.",
        )
        known = ", ".join(str(category_id) for category_id in self.category_ids[:20])
        more = f" and {len(self.category_ids) - 20} more" if len(self.category_ids) > 20 else ""
        self._reject(
            "annotations whose category_id is not in 'categories'",
            self.labels < 0,
            lambda row: f"{self._name(row)} has category_id {table['category_id'][row]}",
            f"Known ids are {known}{more}: add the category, or correct the id.",
        )
        self._reject_absent("area", np.isnan(table["area"]) & needs_area)
        self._reject_absent("iscrowd", ~table["has_iscrowd"] & needs_crowd)

    def check_boxes(self, *, drop: bool) -> None:
        """Applies the rules for boxes, see the module's docstring."""
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

    def check_masks(self, segmentations: Segmentations, *, drop: bool) -> None:
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
            "Add polygons or RLEs, or set `masks` to False.",
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
