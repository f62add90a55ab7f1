"""Reads and checks data sets that the project's reader cannot read, such as functions that return records."""

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog

from ..config.data import readable_images
from ..data.config import DataConfig
from ..data.image_check import ImageFiles
from ..data.problems import Problems
from .classes import class_names
from .data import is_read_from_file


def check(config: DataConfig) -> None:
    """Checks the records and images of these data sets before a run; see `read_once`.

    Raises:
        DatasetError: for invalid records or images; the message names the data set, the file and a remedy.
    """
    read_once(config)
    for name in dict.fromkeys([*config.train, *config.test]):
        if isinstance(DatasetCatalog.data.get(name), _CheckedFunction):
            DatasetCatalog.get(name)


def read_once(config: DataConfig) -> None:
    """Replaces, in Detectron2's catalog, the functions of data sets that the project's reader cannot read.

    Detectron2 calls such a function for the classes, the training loader, every test loader and every evaluator. The
    replacement calls it once, checks the records, and skips images as the project's reader does. Idempotent; `restored`
    undoes it.
    """
    for name in dict.fromkeys([*config.train, *config.test]):
        function = DatasetCatalog.data.get(name)
        if isinstance(function, _CheckedFunction):
            if function.config == config:
                continue
            function = function.function
        elif function is None or is_read_from_file(name):
            continue
        DatasetCatalog.data[name] = _CheckedFunction(name, function, config)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restores the functions that `read_once` replaces in the context."""
    try:
        yield
    finally:
        for name, function in DatasetCatalog.data.items():
            if isinstance(function, _CheckedFunction):
                DatasetCatalog.data[name] = function.function


class _CheckedFunction:
    """Returns the checked records of a function that is called once; data sets of PyTorch are returned unchanged."""

    def __init__(self, name: str, function: Callable[[], Any], config: DataConfig) -> None:
        self.name, self.function, self.config = name, function, config
        self._content = b""  # smaller than the records, which callers may modify

    def __call__(self) -> Any:
        if not self._content:
            records = self.function()
            if not isinstance(records, list):
                return records
            _check_records(self.name, records)
            labels = [
                str(path)
                for record in records
                if (path := record.get("pan_seg_file_name") or record.get("sem_seg_file_name"))
            ]
            files = ImageFiles(
                f"data set {self.name}",
                os.path.dirname(records[0]["file_name"]) if records else "",
                [str(record["file_name"]) for record in records],
                labels if len(labels) == len(records) else (),
                np.array([(record.get("height") or 0, record.get("width") or 0) for record in records]),
            )
            kept = readable_images(files, self.config)
            self._content = pickle.dumps([records[index] for index in kept.tolist()])
        return pickle.loads(self._content)


def _check_records(name: str, records: list[Any]) -> None:
    """Checks the keys, boxes and classes of records in Detectron2's standard format."""
    problems, num_classes = Problems(f"data set {name}"), len(class_names(name) or ())
    for index, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("file_name"), str | os.PathLike):
            remedy = "Return a list of dicts in Detectron2's standard format."
            problems.add("records without a file_name", f"record {index} is {record!r:.80}", remedy)
            continue
        for item in record.get("annotations", ()):
            where = record["file_name"]
            if lacking := {"bbox", "bbox_mode", "category_id"} - item.keys():
                problems.add("annotations that lack keys", f"{where}: {', '.join(sorted(lacking))}", "Add them.")
                continue
            box, label = np.asarray(item["bbox"], float), item["category_id"]
            if box.shape != (4,) or not np.isfinite(box).all():
                remedy = "Use four numbers in pixels, in the order of bbox_mode."
                problems.add("boxes that are not four finite numbers", f"{where} has {item['bbox']!r:.80}", remedy)
            if num_classes and not (isinstance(label, Integral) and 0 <= int(label) < num_classes):
                remedy = f"The metadata has {num_classes} thing_classes: use whole numbers from 0 to {num_classes - 1}."
                problems.add("category_ids that are not valid class ids", f"{where} has {label!r:.40}", remedy)
    problems.raise_if_any()
