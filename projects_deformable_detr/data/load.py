"""Loading of data sets: COCO's instances, LVIS's format and panoptic files."""

import functools
import os

from ..errors import ArgumentError
from . import coco, lvis, panoptic
from .catalog import DatasetSpec
from .files import check_categories, read_categories
from .problems import Problems
from .records import Classes, Records

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

    Results are cached until the file changes, so that a process decodes every file once.

    Args:
        spec: data set.
        invalid_boxes: ``"error"``, or ``"drop"`` to leave out boxes without area.
        max_objects: number of queries of the model that is trained on the data set; an image with more objects is an
            error. None: no limit.
        for_evaluation: require ``area`` and ``iscrowd`` in every annotation, as pycocotools does. If ``max_objects`` is
            None, the file may then have no objects and even no list of annotations, as COCO's test-dev.
        masks: load segmentations and require a valid one in every annotation.

    Returns:
        records, with a ``summary``.

    Raises:
        DatasetError: with all faults. Annotations are only checked if images and categories have no faults.
        ArgumentError: for an unknown value of ``invalid_boxes``.
    """
    if invalid_boxes not in ("error", "drop"):
        raise ArgumentError("invalid_boxes", f"must be error or drop, got {invalid_boxes!r}")
    return _load(spec, _version(spec), invalid_boxes, max_objects, for_evaluation, masks)


_classes: dict[tuple[DatasetSpec, Version], Classes] = {}


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


def read_classes(spec: DatasetSpec) -> Classes:
    """Returns the classes of a data set: its categories in the order of their ids, in panoptic files things first.

    Only the categories are decoded if the file has not been loaded.

    Raises:
        DatasetError: if the file cannot be read, is not in COCO's format, or has unusable categories.
    """
    key = spec, _version(spec)
    if key in _classes:
        return _classes[key]
    problems, entries = Problems(), read_categories(spec)
    if spec.panoptic_root is None and lvis.is_lvis_file(spec.json_file):
        lvis.prepare([], entries, problems)
    categories = check_categories(entries, problems)
    problems.raise_if_any(spec.name, spec.json_file)
    if spec.panoptic_root is not None:
        _classes[key] = panoptic.read_classes(entries, spec)
    else:
        _classes[key] = Classes(tuple(categories.values()), tuple(categories), len(categories))
    return _classes[key]


def _version(spec: DatasetSpec) -> Version:
    """Returns modification time and size of the annotation file; (-1, -1) if it is missing."""
    try:
        status = os.stat(spec.json_file)
    except OSError:
        return -1, -1
    return status.st_mtime_ns, status.st_size
