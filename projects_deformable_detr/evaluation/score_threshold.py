"""Precision and recall of detections above score thresholds."""

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .coco import Array, Result


@dataclass(frozen=True)
class Matches:
    """All detections that are not on crowds, in descending order of their scores, matched to objects.

    Attributes:
        scores: (D,).
        is_correct: (D,) bool, whether a detection is matched to an object.
        is_duplicate: (D,) bool, whether an unmatched detection overlaps an object of its class.
        category_ids: (D,) int.
        num_objects: number of objects by category id, without crowds.
        num_images: number of images.
    """

    scores: Array
    is_correct: Array
    is_duplicate: Array
    category_ids: Array
    num_objects: dict[int, int]
    num_images: int

    def select(self, category_id: int) -> "Matches":
        """Returns the matches of one category."""
        chosen = self.category_ids == category_id
        columns = (self.scores[chosen], self.is_correct[chosen], self.is_duplicate[chosen], self.category_ids[chosen])
        return Matches(*columns, {category_id: self.num_objects.get(category_id, 0)}, self.num_images)


def match(ground_truth: COCO, results: Sequence[Result], iou: float = 0.5) -> Matches:
    """Matches detections to the boxes of objects of their class as COCO's evaluation does.

    Args:
        ground_truth: annotation file, read by pycocotools, with nonzero annotation ids.
        results: entries of COCO's results format, at least one.
        iou: minimum IoU of a match.
    """
    most_detections = max(Counter(result["image_id"] for result in results).values())
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(list(results)), "bbox")
        evaluation.params.iouThrs, evaluation.params.areaRng = np.array([iou]), [[0, 1e10]]
        evaluation.params.areaRngLbl, evaluation.params.maxDets = ["all"], [most_detections]
        evaluation.evaluate()
    columns: list[tuple[Array, ...]] = [(np.zeros(0), *np.zeros((2, 0), dtype=bool), np.zeros(0, dtype=np.int64))]
    num_objects: Counter[int] = Counter()
    for item in filter(None, evaluation.evalImgs):
        category = item["category_id"]
        num_objects[category] += int((~np.asarray(item["gtIgnore"], dtype=bool)).sum())
        counted = ~item["dtIgnore"][0]
        matched = item["dtMatches"][0] > 0
        ious = np.asarray(evaluation.ious[item["image_id"], category])  # (detections, objects), or empty
        overlaps = (ious >= iou).any(axis=1) if ious.size else np.zeros(len(matched), dtype=bool)
        scores, categories = np.asarray(item["dtScores"]), np.full(len(matched), category)
        columns.append(tuple(part[counted] for part in (scores, matched, overlaps & ~matched, categories)))
    scores, correct, duplicate, categories = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    order = np.argsort(-scores, kind="stable")
    sorted_columns = scores[order], correct[order], duplicate[order], categories[order]
    return Matches(*sorted_columns, dict(num_objects), len(ground_truth.getImgIds()))


def metrics_above(matches: Matches, threshold: float) -> dict[str, float]:
    """Returns the metrics of detections with scores above a threshold.

    Returns:
        ``threshold``, ``detections_per_image``, ``precision``, ``recall``, ``F1``, and ``duplicates``,
        the fraction of detections that are duplicates.
    """
    kept = matches.scores > threshold
    correct, number = int(matches.is_correct[kept].sum()), int(kept.sum())
    num_objects = sum(matches.num_objects.values())
    return {
        "threshold": threshold,
        "detections_per_image": number / matches.num_images,
        "precision": correct / max(number, 1),
        "recall": correct / max(num_objects, 1),
        "F1": 2 * correct / max(number + num_objects, 1),
        "duplicates": int(matches.is_duplicate[kept].sum()) / max(number, 1),
    }


def best_f1(matches: Matches) -> dict[str, float]:
    """Returns `metrics_above` for the threshold with the best F1, or for threshold 1 if there are no detections."""
    if not len(matches.scores):
        return metrics_above(matches, 1.0)
    correct = np.cumsum(matches.is_correct)
    f1 = 2 * correct / (np.arange(1, len(correct) + 1) + sum(matches.num_objects.values()))
    # Detections of equal score are kept or dropped together.
    last = np.append(matches.scores[1:] != matches.scores[:-1], True)
    best = matches.scores[int(np.where(last, f1, -1.0).argmax())]
    return metrics_above(matches, float(np.nextafter(best, -1)))
