"""Records of data sets in COCO instances or LVIS format.

As in Detectron2, contiguous class ids 0, 1, … are assigned in the order of the category ids. Records include crowds,
with ``iscrowd`` 1, but crowds are never training targets. See `checks` for the checks of boxes and masks.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from . import lvis
from .annotations import Annotation, MaskAnnotation, convert_annotations, make_table
from .catalog import DatasetSpec
from .checks import AnnotationChecks, clip
from .entries import check_categories, check_images, convert_images, find_root
from .files import KEYS, ImageEntry, paused_gc, read_content
from .problems import Problems
from .records import Array, Record, Records, Summary, check_classes, check_counts, positions
from .segmentations import Segmentations

_XYWH_ABS = 1  # detectron2.structures.BoxMode.XYWH_ABS


class CocoRecords(Records):
    """Records with ``annotations``.

    Each annotation is a dict with ``bbox`` ([x, y, width, height] in pixels, clipped to the image), ``bbox_mode``,
    contiguous ``category_id``, ``iscrowd`` and, if masks were loaded, ``segmentation``.

    Args:
        arguments, keywords: arguments of `Records`.
        table: (annotations,) values of the file, of dtype `annotations.TABLE`.
        segmentations: segmentations of the annotations; None if masks were not loaded.
        federated: lists of category ids under ``lvis.FEDERATED``, by image id; empty unless the file is LVIS.
        frequencies: LVIS frequency of each class; empty unless the file is LVIS.
    """

    def __init__(
        self,
        *arguments: Any,
        table: Array,
        segmentations: Segmentations | None = None,
        federated: Mapping[int, Mapping[str, list[int]]] = MappingProxyType({}),
        frequencies: Sequence[str] = (),
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.table = table
        self.segmentations = segmentations
        self.federated = federated
        self.frequencies = frequencies

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

        Annotations are numbered from 1, because pycocotools requires unique positive ids.
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


def load(
    spec: DatasetSpec,
    invalid_boxes: str,
    max_objects: int | None,
    *,
    for_evaluation: bool,
    masks: bool,
    max_detections: int | None = None,
    drop_root_category: bool = False,
) -> CocoRecords:
    """Loads a data set in COCO instances or LVIS format; see `load_dataset` for the arguments."""
    may_be_empty = for_evaluation and max_objects is None
    problems = Problems(str(spec))
    found = _read(spec, masks, KEYS[:2] if may_be_empty else KEYS, problems, drop_root_category)
    images, categories, table, is_lvis = found.images, found.categories, found.table, lvis.is_lvis(found.images)
    checks = AnnotationChecks(images, categories, table, found.owners, invalid_boxes, problems)
    with np.errstate(over="ignore", invalid="ignore"):  # huge boxes
        checks.check_ids(" Or set `drop_root_category=False`." if drop_root_category else "")
        checks.check_boxes(lambda: _read_corners(spec, found, checks.sizes))
        if found.segmentations is not None:
            checks.check_masks(found.segmentations)
    used, is_crowd = checks.is_used, table["iscrowd"]
    if is_lvis:
        lvis.check_absent_categories(images, list(categories), found.owners[used], checks.labels[used], problems)
    max_objects_per_image = check_counts(images, found.owners[used & ~is_crowd], max_objects, max_detections, problems)
    if not max_objects_per_image and not problems:
        _report_empty(table, checks, may_be_empty, problems)
    problems.raise_if_any()
    if for_evaluation:
        checks.fill_in(found.segmentations, needs_crowd=not is_lvis)
    checks.check_duplicates()
    if not is_lvis:
        check_classes(checks.labels[used], list(categories.values()), found.root, problems)
    summary = Summary(
        spec.name,
        class_names=tuple(categories.values()),
        category_ids=tuple(categories),
        num_things=len(categories),
        num_images=len(images),
        num_annotations=int(used.sum()),
        num_crowd=int((used & is_crowd).sum()),
        dropped=checks.dropped,
        clipped=checks.clipped,
        max_objects_per_image=max_objects_per_image,
        is_lvis=is_lvis,
        warnings=problems.warnings(),
    )
    return CocoRecords(
        spec,
        summary,
        images,
        checks.spans,
        checks.labels,
        is_crowd,
        used,
        table=table,
        segmentations=found.segmentations,
        federated={image.id: {key: getattr(image, key) for key in lvis.FEDERATED} for image in images if is_lvis},
        frequencies=found.frequencies,
    )


class _Content(NamedTuple):
    """Content of a file. Annotations are ordered by image; ``owners`` contains the image index of each annotation."""

    images: list[ImageEntry]
    categories: dict[int, str]
    root: str | None
    frequencies: list[str]
    table: Array
    owners: Array
    segmentations: Segmentations | None


def _read(
    spec: DatasetSpec, masks: bool, needed: tuple[str, ...], problems: Problems, drop_root: bool = False
) -> _Content:
    """Decodes the file; the structs of its annotations are released on return."""
    kind = MaskAnnotation if masks else Annotation
    with paused_gc():
        content = read_content(spec, kind, needed)
        images = convert_images(content.images, problems)
        is_lvis = lvis.is_lvis(images)
        if is_lvis:
            lvis.prepare(images, content.categories, problems)
        categories = check_categories(content.categories, problems, drop_root=drop_root)
        images = check_images(images, spec, problems, lvis.FILE_NAME_HINT if is_lvis else "")
        problems.raise_if_any()
        root = categories.get(find_root(content.categories))
        frequency = {entry["id"]: entry["frequency"] for entry in content.categories if is_lvis}
        file_names = {image.id: str(image.file_name) for image in images}
        rows = convert_annotations(content.annotations or [], kind, file_names, problems)
        table = make_table(rows)
        owners = positions(np.array(list(file_names), np.int64), table["image_id"])
        order = np.argsort(owners, kind="stable")
        segmentations = Segmentations([row.segmentation for row in rows], order) if masks else None
    frequencies = [frequency[category_id] for category_id in categories if is_lvis]
    return _Content(images, categories, root, frequencies, table[order], owners[order], segmentations)


def _read_corners(spec: DatasetSpec, found: _Content, sizes: Array) -> Array:
    """Returns the corners of all masks (N, 4); decodes the file again if masks were not loaded."""
    segmentations = found.segmentations or _read(spec, True, KEYS[:2], Problems(str(spec))).segmentations
    assert segmentations is not None
    return segmentations.inspect(np.arange(len(sizes)), sizes).corners


def _report_empty(table: Array, checks: AnnotationChecks, may_be_empty: bool, problems: Problems) -> None:
    """Reports that a data set has no objects."""
    if not len(table):
        what, remedy = "the list 'annotations' is empty", "Add the boxes of the objects."
    else:
        what = f"{checks.dropped} of {len(table)} annotations are dropped and all others are crowds (iscrowd 1)"
        remedy = "Crowds are not used for training: set iscrowd of annotations of single objects to 0."
    if may_be_empty:
        problems.warn("data set without objects", what, "Metrics cannot be computed.")
    else:
        problems.add("data set without objects", what, remedy)
