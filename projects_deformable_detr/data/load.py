"""Loading of data sets: COCO's instances, LVIS's format and panoptic files."""

import functools
import os
from typing import NamedTuple

from ..errors import ArgumentError
from . import coco, lvis, panoptic
from .catalog import DatasetSpec
from .files import check_categories, read_categories
from .problems import Problems
from .records import Records

Version = tuple[int, int]  # modification time and size of a file


def load_dataset(
    spec: DatasetSpec,
    invalid_boxes: str = "error",
    max_objects: int | None = None,
    *,
    for_evaluation: bool = False,
    masks: bool = False,
) -> Records:
    """Loads a data set and checks all of it except its pixels.

    The result of a call is kept as long as the file does not change, so that a process decodes every file once.

    Args:
        spec: data set.
        invalid_boxes: ``"error"``, or ``"drop"`` to leave out boxes without area.
        max_objects: number of queries of a model that is trained on it; an image with more objects is an error. None:
            no limit.
        for_evaluation: require ``area`` and ``iscrowd``, which pycocotools needs, in every annotation. Without
            ``max_objects``, the file may then have no objects, and no list of annotations, as COCO's test-dev.
        masks: load segmentations and require a usable one in every annotation.

    Returns:
        records, with a ``summary``.

    Raises:
        DatasetError: for all faults at once. Annotations are checked if images and categories have no faults.
        ArgumentError: for another ``invalid_boxes``.
    """
    if invalid_boxes not in ("error", "drop"):
        raise ArgumentError("invalid_boxes", f"must be error or drop, got {invalid_boxes!r}")
    return _load(spec, _version(spec), invalid_boxes, max_objects, for_evaluation, masks)


_classes: dict[tuple[DatasetSpec, Version], "Classes"] = {}


@functools.lru_cache(maxsize=8)
def _load(
    spec: DatasetSpec, version: Version, invalid_boxes: str, max_objects: int | None, for_evaluation: bool, masks: bool
) -> Records:
    if spec.panoptic_root is not None:
        records: Records = panoptic.load(spec, max_objects)
    else:
        records = coco.load(spec, invalid_boxes, max_objects, for_evaluation=for_evaluation, masks=masks)
    summary = records.summary
    _classes[spec, version] = Classes(summary.class_names, summary.category_ids, summary.num_things)
    return records


class Classes(NamedTuple):
    """Classes of a data set: names and category ids of class 0, 1, …, and how many of them, the first, are things."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_things: int


def read_classes(spec: DatasetSpec) -> Classes:
    """Returns the classes of a data set: categories in the order of their ids, in panoptic files things first.

    Of a file that has not been loaded, only the categories are decoded.

    Raises:
        DatasetError: if the file cannot be read, is not in COCO's format, or has unusable categories.
    """
    key = spec, _version(spec)
    if key not in _classes:
        _classes[key] = _read_classes(spec)
    return _classes[key]


def _read_classes(spec: DatasetSpec) -> Classes:
    problems = Problems()
    entries = read_categories(spec)
    if spec.panoptic_root is None and lvis.is_lvis_file(spec.json_file):
        lvis.prepare([], entries, problems)
    categories = check_categories(entries, problems)
    problems.raise_if_any(spec.name, spec.json_file)
    if spec.panoptic_root is None:
        return Classes(tuple(categories.values()), tuple(categories), len(categories))
    classes = panoptic.read_classes(entries, spec)
    names, ids = tuple(item.name for item in classes), tuple(item.category_id for item in classes)
    return Classes(names, ids, sum(item.is_thing for item in classes))


def _version(spec: DatasetSpec) -> Version:
    """Returns modification time and size of the annotation file; a missing file is reported when it is read."""
    try:
        status = os.stat(spec.json_file)
    except OSError:
        return -1, -1
    return status.st_mtime_ns, status.st_size
