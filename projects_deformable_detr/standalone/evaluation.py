"""COCO's detection metrics with pycocotools, reported as Detectron2's evaluator reports them."""

import contextlib
import io
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate
from torch import distributed

from ..data import masks
from ..data.catalog import DatasetSpec
from ..data.coco import CocoSummary
from ..evaluation.average_precision import METRICS, mean_percent
from ..modeling import Detections

logger = logging.getLogger(__name__)
T = TypeVar("T")
Result = dict[str, Any]
# The id of an image; (K, 6): x1, y1, x2, y2, score, class; K masks as run lengths, or None.
Found = tuple[int, np.ndarray, list[masks.Rle] | None]


class CocoEvaluator:
    """Gathers detections of one data set, over all ranks, and computes its metrics.

    Args:
        spec: the data set; its JSON file, in the instances format, is the ground truth, as it stands.
        summary: its class names and category ids.
        max_detections: per image, the best first.
    """

    results_name = "coco_instances_results.json"

    def __init__(self, spec: DatasetSpec, summary: CocoSummary, max_detections: int = 100) -> None:
        self.spec = spec
        self.summary = summary
        self.max_detections = max_detections
        self._found: list[Found] = []
        self._truth: Any = None

    def reset(self) -> None:
        """Forgets all detections."""
        self._found = []

    def add(self, image_ids: Sequence[int], detections: Sequence[Detections]) -> None:
        """Takes detections in pixels of the original images."""
        for image_id, found in zip(image_ids, detections, strict=True):
            columns = [found.boxes, found.scores[:, None], found.labels[:, None].to(found.boxes.dtype)]
            table = np.concatenate([column.float().cpu().numpy() for column in columns], axis=1)
            rles = None if found.masks is None else [masks.encode(mask) for mask in found.masks.cpu().numpy()]
            self._found.append((image_id, table, rles))

    def evaluate(self, output_dir: Path) -> dict[str, dict[str, float]]:
        """Writes COCO's results file and returns metrics in percent: ``{"bbox": …}``, with masks also ``{"segm": …}``.

        ``{}`` on ranks other than 0.
        """
        gathered = gather(self._found)
        if gathered is None:
            return {}
        # One order however the work was shared: equal scores are ranked by it.
        found = sorted(gathered, key=lambda item: item[0])
        results = self._results(found)
        path = output_dir / self.results_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results))
        logger.info("%s: %d detections written to %s", self.spec.name, len(results), path)
        metrics = {}
        for kind in ("bbox", "segm") if any(item[2] is not None for item in found) else ("bbox",):
            metrics[kind] = self.compute(results, kind, output_dir)
            logger.info("Results of %s (%s):\n%s", self.spec.name, kind, format_metrics(metrics[kind]))
        return metrics

    def compute(self, results: list[Result], kind: str, output_dir: Path) -> dict[str, float]:
        """Metrics of ``kind``, bbox or segm, in percent."""
        return compute_metrics(self.truth, results, self.summary.class_names, self.max_detections, kind)

    @property
    def truth(self) -> Any:
        """The ground truth, read once."""
        if self._truth is None:
            self._truth = self.read_truth(Path(self.spec.json_file))
        return self._truth

    @staticmethod
    def read_truth(path: Path) -> Any:
        """The ground truth, by what evaluates."""
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(str(path))

    def _results(self, found: list[Found]) -> list[Result]:
        """COCO's results format: corners become (x, y, w, h), contiguous ids the file's categories."""
        results = []
        for image_id, table, rles in found:
            sizes = table[:, 2:4] - table[:, :2]
            rows = np.concatenate([table[:, :2], sizes, table[:, 4:]], axis=1).tolist()
            for index, (x, y, width, height, score, label) in enumerate(rows):
                category = self.summary.category_ids[int(label)]
                box = [x, y, width, height]
                result = {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
                if rles is not None:
                    result["segmentation"] = rles[index]
                results.append(result)
        return results


def gather(found: list[T]) -> list[T] | None:
    """All ranks' items on rank 0; None on others."""
    if distributed.is_available() and distributed.is_initialized():
        rank = distributed.get_rank()
        parts: list[Any] | None = [None] * distributed.get_world_size() if rank == 0 else None
        distributed.gather_object(found, parts)
        if parts is None:
            return None
        return [item for part in parts for item in part]
    return found


def compute_metrics(
    truth: COCO, results: list[Result], class_names: Sequence[str], max_detections: int = 100, kind: str = "bbox"
) -> dict[str, float]:
    """AP, AP50, AP75, APs, APm, APl and AP of each class, in percent; NaN where there is nothing to measure.

    Args:
        truth: the ground truth.
        results: in COCO's results format.
        class_names: in the order of the file's sorted category ids.
        max_detections: detections of an image that count, the best first; COCO's own is 100.
        kind: ``"bbox"`` or ``"segm"``.
    """
    if kind == "segm":  # pycocotools takes the box's area where there is one, and sizes are to be those of masks
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    if not results:
        logger.warning("There are no detections at all: every metric is NaN.")
        names = [name for name, _, _ in METRICS]
        return dict.fromkeys([*names, *(f"AP-{name}" for name in class_names if len(class_names) > 1)], math.nan)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, params = evaluation.eval["precision"], evaluation.params  # (IoU, recall, class, size, maxDets)
    metrics = {}
    for name, threshold, size in METRICS:
        chosen = slice(None) if threshold is None else np.isclose(params.iouThrs, threshold)
        metrics[name] = mean_percent(precision[chosen, :, :, params.areaRngLbl.index(size), -1])
    if len(class_names) > 1:
        for index, name in enumerate(class_names):
            metrics[f"AP-{name}"] = mean_percent(precision[:, :, index, 0, -1])
    return metrics


def format_metrics(metrics: dict[str, float]) -> str:
    """A table of the metrics over all classes, and one of the classes."""
    names = [name for name in metrics if not name.startswith("AP-")]
    text = tabulate([[metrics[name] for name in names]], names, tablefmt="pipe", floatfmt=".3f", stralign="center")
    classes = [(name.removeprefix("AP-"), value) for name, value in metrics.items() if name.startswith("AP-")]
    if classes:
        columns = min(3, len(classes))
        rows = [
            [cell for pair in classes[begin : begin + columns] for cell in pair]
            for begin in range(0, len(classes), columns)
        ]
        text += "\n" + tabulate(rows, ["category", "AP"] * columns, tablefmt="pipe", floatfmt=".3f")
    return text
