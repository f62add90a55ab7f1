"""COCO detection metrics, computed by pycocotools, and the COCO results format."""

import contextlib
import io
import json
import logging
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate
from torch import column_stack, distributed

from ..data import masks
from ..data.coco import CocoRecords
from ..data.records import Records
from ..errors import UserError
from ..modeling import Detections

logger = logging.getLogger(__name__)
T = TypeVar("T")
Array = np.ndarray[Any, np.dtype[Any]]
Result = dict[str, Any]  # entry of a COCO results file
Metrics = dict[str, float]
_KEYS = ("category_id", "bbox", "score")  # required in each entry of a results file
# Name of the metric, IoU threshold (None: mean over 0.50, 0.55, …, 0.95) and object size.
METRICS = (
    ("AP", None, "all"),
    ("AP50", 0.5, "all"),
    ("AP75", 0.75, "all"),
    ("APs", None, "small"),
    ("APm", None, "medium"),
    ("APl", None, "large"),
)

# Recall at all IoU thresholds: name, index of the maximum number of detections per image (1, 10, all), and object size.
_RECALLS = (
    ("AR1", 0, "all"),
    ("AR10", 1, "all"),
    ("AR", 2, "all"),
    ("ARs", 2, "small"),
    ("ARm", 2, "medium"),
    ("ARl", 2, "large"),
)


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image in a compact form that can be gathered from all ranks.

    Attributes:
        image_id: id of the image in the annotation file.
        rows: (K, 6) float32: x1, y1, x2, y2, score, label.
        masks: K run-length encoded masks, or None.
    """

    image_id: int
    rows: Array
    masks: list[masks.Rle] | None

    @classmethod
    def from_detections(cls, image_id: int, detections: Detections) -> "ImageDetections":
        """Moves detections to the CPU and encodes their masks."""
        columns = (detections.boxes.float(), detections.scores.float(), detections.labels.float())
        found = detections.masks
        rles = None if found is None else [masks.encode(mask) for mask in found.cpu().numpy()]
        return cls(image_id, column_stack(columns).cpu().numpy(), rles)

    def to_coco(self, category_ids: Sequence[int]) -> list[Result]:
        """Returns entries of a COCO results file; ``category_ids`` maps labels to the category ids of the file."""
        rows = self.rows.copy()
        rows[:, 2:4] -= rows[:, :2]
        results: list[Result] = [
            {"image_id": self.image_id, "category_id": category_ids[int(label)], "bbox": box, "score": score}
            for *box, score, label in rows.tolist()
        ]
        for result, rle in zip(results, self.masks or (), strict=False):
            result["segmentation"] = rle
        return results


class CocoEvaluator:
    """Gathers the detections of one data set from all ranks and computes COCO metrics.

    Args:
        records: data set in the instances format.
        max_detections: maximum number of detections per image, best first.
    """

    results_name = "coco_instances_results.json"

    def __init__(self, records: Records, max_detections: int = 100) -> None:
        self.records = records
        self.spec = records.spec
        self.summary = records.summary
        self.max_detections = max_detections
        self._detections: list[ImageDetections] = []

    def reset(self) -> None:
        """Removes all detections."""
        self._detections = []

    def add(self, image_ids: Sequence[int], detections: Sequence[Detections]) -> None:
        """Adds detections in pixels of the original images."""
        for image_id, found in zip(image_ids, detections, strict=True):
            self._detections.append(ImageDetections.from_detections(image_id, found))

    def evaluate(self, output_dir: Path) -> dict[str, Metrics]:
        """Writes the COCO results file and computes metrics in percent.

        Returns:
            ``{"bbox": metrics}``, with masks also ``"segm"``; ``{}`` on ranks other than 0.
        """
        gathered = gather(self._detections)
        if gathered is None:
            return {}
        # Several ranks may evaluate the same image. Equal scores are ordered by position, so the order of images must
        # not depend on the number of ranks.
        by_image = {item.image_id: item for item in gathered}
        results = [row for _, item in sorted(by_image.items()) for row in item.to_coco(self.summary.category_ids)]
        path = output_dir / self.results_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results))
        logger.info("%s: %d detections written to %s", self.spec.name, len(results), path)
        metrics = {}
        for kind in ("bbox", "segm") if any(item.masks is not None for item in gathered) else ("bbox",):
            metrics[kind] = self.compute(results, kind, output_dir)
            logger.info("Results of %s (%s):\n%s", self.spec.name, kind, format_metrics(metrics[kind]))
        return metrics

    def compute(self, results: list[Result], kind: str, output_dir: Path) -> Metrics:
        """Computes metrics of ``kind``, ``"bbox"`` or ``"segm"``, in percent."""
        return compute_metrics(self.ground_truth, results, self.summary.class_names, self.max_detections, kind)

    @cached_property
    def ground_truth(self) -> Any:
        """Ground truth from the records, so that training and evaluation use the same objects."""
        assert isinstance(self.records, CocoRecords)
        return self.read_ground_truth(self.records.ground_truth())

    def read_ground_truth(self, content: dict[str, Any]) -> Any:
        """Returns the content of a file for pycocotools."""
        ground_truth = COCO()
        ground_truth.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):
            ground_truth.createIndex()
        return ground_truth


def read_results(path: str | Path, records: Records | None = None) -> dict[Any, list[Result]]:
    """Returns the detections of a COCO results file by image id.

    Raises:
        UserError: for an invalid file, boxes or scores that are not finite numbers, or images or categories that are
            not in ``records``.
    """
    by_image: dict[Any, list[Result]] = defaultdict(list)
    try:
        content = json.loads(Path(path).read_text())
        if not isinstance(content, list):
            raise ValueError("it must be a list of detections")
        for index, result in enumerate(content):
            hash(result["category_id"])  # TypeError for lists
            by_image[result["image_id"]].append({key: result[key] for key in _KEYS} | result)
            box, score = result["bbox"], result["score"]
            if not (isinstance(box, list) and len(box) == 4 and _are_finite(*box, score)):
                raise ValueError(
                    f"entry {index}: bbox must be four finite numbers and score one, got bbox {box} and score {score!r}"
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a COCO results file ({error}), such as OUTPUT_DIR/inference/coco_instances_results.json"
        ) from error
    if records is not None:
        categories = {result["category_id"] for results in by_image.values() for result in results}
        if not (by_image.keys() <= set(records.image_ids.tolist()) and categories <= {*records.summary.category_ids}):
            file = records.spec.json_file
            raise UserError(f"{path} has images or categories that {file} lacks: use the evaluated data set")
    return by_image


def _are_finite(*values: Any) -> bool:
    """Returns whether values read from JSON are numbers that are finite as floats."""
    return all(type(value) in (float, int) and abs(value) <= sys.float_info.max for value in values)


def gather(items: list[T]) -> list[T] | None:
    """Gathers the items of all ranks on rank 0; returns None on other ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return list(items)
    parts: list[Any] | None = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(items, parts)
    return None if parts is None else [item for part in parts for item in part]


def compute_metrics(
    ground_truth: COCO, results: list[Result], class_names: Sequence[str], max_detections: int = 100, kind: str = "bbox"
) -> Metrics:
    """Computes `METRICS`, average recall and the AP of each class, in percent; NaN without ground truth.

    AR1, AR10 and AR are for 1, 10 and ``max_detections`` detections per image.

    Args:
        ground_truth: annotation file, read by pycocotools.
        results: entries of a COCO results file.
        class_names: names in the order of the category ids.
        max_detections: maximum number of detections per image, best first; 100 in COCO.
        kind: ``"bbox"`` or ``"segm"``.
    """
    class_keys = [f"AP-{name}" for name in class_names] if len(class_names) > 1 else []
    if not results:
        logger.warning("There are no detections: all metrics are NaN.")
        return dict.fromkeys([*(name for name, _, _ in METRICS + _RECALLS), *class_keys], math.nan)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(for_kind(results, kind)), kind)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # (IoU, recall, class, size)
    metrics = mean_metrics(precision, evaluation.params)
    recall = evaluation.eval["recall"]  # (IoU, class, size, number of detections)
    for name, count, size in _RECALLS:
        metrics[name] = mean_percent(recall[..., evaluation.params.areaRngLbl.index(size), count])
    return metrics | {key: mean_percent(precision[:, :, index, 0]) for index, key in enumerate(class_keys)}


def for_kind(results: list[Result], kind: str) -> list[Result]:
    """Removes boxes for ``"segm"``, because pycocotools would compute object sizes from boxes instead of masks."""
    if kind != "segm":
        return results
    return [{key: value for key, value in result.items() if key != "bbox"} for result in results]


def mean_metrics(precision: Array, params: Any) -> Metrics:
    """Returns `METRICS` in percent from precision (IoU, recall, class, size) and the parameters of pycocotools."""
    metrics = {}
    for name, threshold, size in METRICS:
        selected = slice(None) if threshold is None else np.isclose(params.iouThrs, threshold)
        metrics[name] = mean_percent(precision[selected, :, :, params.areaRngLbl.index(size)])
    return metrics


def mean_percent(values: Array) -> float:
    """Returns the mean in percent of the entries with ground truth, which are not -1; NaN if there are none."""
    valid = values[values > -1]
    return float(valid.mean() * 100) if valid.size else math.nan


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Returns tables of precision and recall over all classes, and of the AP of each class."""
    tables = []
    for kind in ("AP", "AR"):
        if names := [name for name in metrics if name.startswith(kind) and not name.startswith("AP-")]:
            values = [metrics[name] for name in names]
            tables.append(tabulate([values], names, tablefmt="pipe", floatfmt=".3f", stralign="center"))
    text = "\n".join(tables)
    classes = [(name.removeprefix("AP-"), value) for name, value in metrics.items() if name.startswith("AP-")]
    if classes:
        columns = min(3, len(classes))
        rows = [sum(classes[start : start + columns], ()) for start in range(0, len(classes), columns)]
        text += "\n" + tabulate(rows, ["category", "AP"] * columns, tablefmt="pipe", floatfmt=".3f")
    return text
