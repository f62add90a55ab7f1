"""COCO's instances format: every check that can be made before training, and Detectron2's records.

Category ids, sorted, become contiguous class ids 0, 1, …, as in Detectron2. The rule for boxes:

- a box that is not four finite numbers, or of negative width or height, is always an error;
- every other box is clipped to its image;
- a box without area then is an error, or (``"drop"``) is left out, with one warning that counts such boxes;
- crowds are never objects to train on; they stay in the records, marked ``iscrowd``.
"""

import contextlib
import functools
import gc
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import lvis
from .catalog import DatasetSpec
from .coco_annotations import AnnotationReader
from .coco_files import KEYS, Record, read_categories, read_images, read_json
from .problems import Problems

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoSummary:
    """What is known of a data set that passed its checks.

    Attributes:
        name: of the data set.
        class_names: of class 0, 1, ….
        category_ids: the file's category id of class 0, 1, ….
        num_images: in the file.
        num_annotations: kept, crowds included.
        num_crowd: crowds among them.
        dropped: boxes without area and masks of short polygons, left out (``invalid_boxes="drop"``).
        clipped: boxes that reached out of their image.
        most_objects: the largest number of objects to train on in one image.
        num_things: how many classes, the first ones, are things; all of them unless the data set is panoptic.
        is_lvis: in LVIS's format (see `lvis`).
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_images: int
    num_annotations: int
    num_crowd: int
    dropped: int
    clipped: int
    most_objects: int
    num_things: int | None = None
    is_lvis: bool = False


def inspect(
    spec: DatasetSpec,
    invalid_boxes: str = "error",
    max_objects: int | None = None,
    *,
    for_evaluation: bool = False,
    masks: bool = False,
) -> CocoSummary:
    """Checks a data set in full, its pixels excepted.

    Args:
        spec: where it lies.
        invalid_boxes: ``"error"`` or ``"drop"``: what becomes of boxes without area.
        max_objects: the number of queries, for a set to train on; an image with more objects is an error. None: any
            number.
        for_evaluation: also ask for ``area`` and ``iscrowd``, which pycocotools needs in every annotation. Without
            ``max_objects``, the file may then have no objects, and no list of annotations, as COCO's test-dev.
        masks: also ask for a ``segmentation`` in every annotation.

    Raises:
        DatasetError: for everything that is wrong, at once: files, records, remedies. Annotations are looked at
            only when images and categories are sound.
        ValueError: for another ``invalid_boxes``.
    """
    return load(spec, invalid_boxes, max_objects, for_evaluation=for_evaluation, masks=masks)[0]


def load_records(
    spec: DatasetSpec,
    invalid_boxes: str = "error",
    filter_empty: bool = False,
    *,
    for_evaluation: bool = False,
    masks: bool = False,
) -> list[Record]:
    """Detectron2's standard records, one an image, in the order of the image ids.

    Each has ``file_name``, ``height``, ``width``, ``image_id`` and ``annotations``: ``bbox`` as [x, y, width,
    height] in pixels, clipped to the image, ``bbox_mode`` 1 (``BoxMode.XYWH_ABS``), ``category_id`` contiguous,
    ``iscrowd``, and ``segmentation`` as it stands in the file, where it has one.

    Args:
        spec: where the data set lies.
        invalid_boxes: as for `inspect`.
        filter_empty: leave out images without an object to train on.
        for_evaluation, masks: as for `inspect`.

    Raises:
        DatasetError: as `inspect`.
    """
    records = load(spec, invalid_boxes, for_evaluation=for_evaluation, masks=masks)[1]
    if filter_empty:
        records = [record for record in records if any(not item["iscrowd"] for item in objects(record))]
    return records


def objects(record: Record) -> list[dict[str, Any]]:
    """The annotations of a record, or the segments of a panoptic one; crowds among them."""
    found: list[dict[str, Any]] = record["segments_info"] if "segments_info" in record else record["annotations"]
    return found


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """Millions of new objects, none of them garbage: looking for it takes as long as the work itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@paused_gc()
def load(
    spec: DatasetSpec,
    invalid_boxes: str = "error",
    max_objects: int | None = None,
    *,
    for_evaluation: bool = False,
    masks: bool = False,
) -> tuple[CocoSummary, list[Record]]:
    """`inspect` and `load_records` in one reading of the file."""
    if invalid_boxes not in ("error", "drop"):
        raise ValueError(f"DATASETS.INVALID_BOXES is {invalid_boxes!r}: choose error or drop")
    if spec.panoptic_root is not None:
        from . import panoptic  # late: it reads files and images as this module does

        return panoptic.load(spec, max_objects)
    may_be_empty = for_evaluation and max_objects is None
    content = read_json(spec, KEYS[:2] if may_be_empty else KEYS)
    annotations = content.get("annotations", [])
    problems = Problems()
    is_lvis = lvis.as_coco(content, problems)
    if not os.path.isdir(spec.image_root):
        problems.add("missing image folder", str(spec.image_root), "Correct the path, or put the images there.")
    categories = read_categories(content["categories"], problems)
    where = " In LVIS's files the last two parts of coco_url tell where an image lies." if is_lvis else ""
    records = read_images(content["images"], spec, problems, where)
    problems.raise_if_any(spec.name, spec.json_file)

    reader = AnnotationReader(records, categories, problems, invalid_boxes == "drop", for_evaluation, masks)
    for annotation in annotations:
        reader.read(annotation)
    most_objects = _check_counts(records, reader, max_objects, problems)
    if reader.kept == reader.crowds:
        if not may_be_empty:
            problems.add(
                "empty list of objects", "'annotations' has none to train on", "List the objects' boxes there."
            )
        else:
            _warn_once(f"data set {spec.name} ({spec.json_file}) has no objects: there are no metrics to compute on it")
    problems.raise_if_any(spec.name, spec.json_file)
    if reader.dropped:
        _warn_once(
            f"data set {spec.name} ({spec.json_file}): boxes or masks without area, left out as DATASETS.INVALID_BOXES "
            f"is drop: {len(reader.dropped)} of {len(annotations)} (annotation ids "
            f"{', '.join(map(str, reader.dropped[:5]))}{', …' if len(reader.dropped) > 5 else ''})"
        )
    summary = CocoSummary(
        spec.name,
        class_names=tuple(categories.values()),
        category_ids=tuple(categories),
        num_images=len(records),
        num_annotations=reader.kept,
        num_crowd=reader.crowds,
        dropped=len(reader.dropped),
        clipped=reader.clipped,
        most_objects=most_objects,
        is_lvis=is_lvis,
    )
    return summary, [records[image_id] for image_id in sorted(records)]


def read_class_names(spec: DatasetSpec) -> tuple[str, ...]:
    """The names of class 0, 1, …: the file's categories in the order of their ids; in panoptic files things first.

    Raises:
        DatasetError: if the file is missing, not in COCO's format, or has unusable categories.
    """
    return _classes(spec)[0]


def read_num_things(spec: DatasetSpec) -> int:
    """How many of the classes, the first ones, are things: all of them unless the data set is panoptic.

    Raises:
        DatasetError: as `read_class_names`.
    """
    return _classes(spec)[1]


def _classes(spec: DatasetSpec) -> tuple[tuple[str, ...], int]:
    path = Path(spec.json_file)
    if not path.is_file():
        read_json(spec)  # raises
    status = path.stat()
    return _read_classes(spec, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _read_classes(spec: DatasetSpec, modified: int, size: int) -> tuple[tuple[str, ...], int]:
    """The names of all classes, and how many are things; kept while the file does not change, since COCO's takes
    seconds to parse."""
    problems = Problems()
    content = read_json(spec)
    lvis.as_coco(content, problems)
    entries = content["categories"]
    categories = read_categories(entries, problems)
    problems.raise_if_any(spec.name, spec.json_file)
    if spec.panoptic_root is None:
        return tuple(categories.values()), len(categories)
    from . import panoptic

    classes = panoptic.read_classes(entries, spec)
    return tuple(item.name for item in classes), sum(item.is_thing for item in classes)


def _check_counts(
    records: dict[int, Record], reader: AnnotationReader, max_objects: int | None, problems: Problems
) -> int:
    """The most objects to train on in an image, which ``max_objects`` must allow."""
    most = max(reader.objects.values(), default=0)
    if max_objects is not None and most > max_objects:
        remedy = f"A query finds one object: set MODEL.DETR.NUM_OBJECT_QUERIES to at least {most}."
        for image_id, count in reader.objects.items():
            if count > max_objects:
                where = f"{records[image_id]['file_name']} has {count}"
                problems.add(f"images with more objects than the {max_objects} queries", where, remedy)
    return most


@functools.cache
def _warn_once(message: str) -> None:
    _logger.warning(message)
