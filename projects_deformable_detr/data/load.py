"""Loads data sets in COCO instances, COCO panoptic and LVIS formats."""

import functools
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import check_choice
from . import coco, lvis, panoptic
from .catalog import DatasetSpec
from .checks import RULES
from .entries import check_categories
from .files import read_categories
from .problems import Problems
from .records import Classes, Records

Version = tuple[int, int]  # modification time and size of a file
_logger = logging.getLogger(__name__)


@functools.cache
def log_once(message: str) -> None:
    """Logs a warning, unless the same message has been logged before."""
    _logger.warning(message)


def load_dataset(
    spec: DatasetSpec,
    invalid_boxes: str = "error",
    max_objects: int | None = None,
    *,
    for_evaluation: bool = False,
    masks: bool = False,
    max_detections: int | None = None,
    drop_root_category: bool = False,
    warn: Callable[[str], Any] = log_once,
) -> Records:
    """Loads a data set and checks everything except the image files; docs/data.md lists the checks.

    Results are cached until the file changes, so that each process decodes a file only once.

    Args:
        spec: data set.
        invalid_boxes: ``"error"``: boxes and masks without area are an error; ``"drop"``: they are dropped, but a large
            fraction of boxes without area or beyond their image is an error; ``"drop_many"``: any number is accepted.
        max_objects: number of queries of the model to train; images with more objects are an error. None: no limit.
        for_evaluation: whether to replace invalid areas and a missing ``iscrowd``, with a warning. If ``max_objects``
            is None, the file may have no objects, or no list of annotations, as in COCO test-dev.
        masks: whether to load segmentations and require a valid one in every annotation.
        max_detections: number of detections per image in evaluation; images with more objects cause a warning.
        drop_root_category: whether to drop the unused category that some exporters add as the supercategory of all
            others.
        warn: called with a message for each kind of accepted problem.

    Returns:
        Records, with a ``summary``.

    Raises:
        DatasetError: with all problems found. Annotations are only checked if images and categories are valid.
        ArgumentError: for an unknown value of ``invalid_boxes``.
    """
    check_choice("invalid_boxes", invalid_boxes, RULES)
    use = _Use(max_objects, for_evaluation, max_detections)
    records = _load((spec, _version(spec), invalid_boxes, masks, drop_root_category), use)
    for message in records.summary.warnings:
        warn(message)
    return records


_classes: dict[tuple[DatasetSpec, Version, bool], Classes] = {}


class _Use(NamedTuple):
    """Arguments of `load_dataset` that affect the checks, but not the records."""

    max_objects: int | None
    for_evaluation: bool
    max_detections: int | None

    def has_checked(self, records: Records, other: "_Use") -> bool:
        """Returns whether records that were loaded for this use also pass the checks for another."""
        most = records.summary.max_objects_per_image
        if other.for_evaluation and not self.for_evaluation:
            return False
        is_warned = other.max_detections in (None, self.max_detections) or most <= (other.max_detections or 0)
        has_objects = most > 0 or (other.for_evaluation and other.max_objects is None)
        return is_warned and has_objects and (other.max_objects is None or most <= other.max_objects)


_Key = tuple[DatasetSpec, Version, str, bool, bool]
_cache: dict[_Key, tuple[Records, _Use]] = {}
_CACHE_SIZE = 8


def _load(key: _Key, use: _Use) -> Records:
    """Loads a data set, or returns the cached records if they pass the checks for this use."""
    if key in _cache and _cache[key][1].has_checked(_cache[key][0], use):
        return _cache[key][0]
    spec, version, invalid_boxes, masks, drop_root_category = key
    if spec.panoptic_root is not None:
        records: Records = panoptic.load(spec, use.max_objects)
    else:
        options = {"masks": masks, "drop_root_category": drop_root_category}
        records = coco.load(spec, invalid_boxes, **use._asdict(), **options)
    while len(_cache) >= _CACHE_SIZE:
        del _cache[next(iter(_cache))]
    _cache[key] = records, use
    summary = records.summary
    classes = Classes(summary.class_names, summary.category_ids, summary.num_things)
    _classes[spec, version, drop_root_category] = classes
    return records


def read_classes(spec: DatasetSpec, *, drop_root_category: bool = False) -> Classes:
    """Returns the classes of a data set in the order of the category ids, things before stuff in panoptic files.

    Only the categories are decoded if the file has not been loaded.

    Raises:
        DatasetError: if the file cannot be read, is not in COCO format, or has invalid categories.
    """
    key = spec, _version(spec), drop_root_category
    if key in _classes:
        return _classes[key]
    problems, entries = Problems(str(spec)), read_categories(spec)
    if spec.panoptic_root is None and lvis.is_lvis_file(spec.json_file):
        lvis.prepare([], entries, problems)
    categories = check_categories(entries, problems, drop_root=drop_root_category and spec.panoptic_root is None)
    problems.raise_if_any()
    if spec.panoptic_root is not None:
        _classes[key] = panoptic.read_classes(entries, spec)
    else:
        _classes[key] = Classes(tuple(categories.values()), tuple(categories), len(categories))
    return _classes[key]


def _version(spec: DatasetSpec) -> Version:
    """Returns the modification time and size of the annotation file; (-1, -1) if it is missing."""
    try:
        status = os.stat(spec.json_file)
    except OSError:
        return -1, -1
    return status.st_mtime_ns, status.st_size
