#!/usr/bin/env python3
"""What a score threshold keeps of a detector's COCO results: for choosing one, and for comparing detectors.

tools/score_threshold.py coco_instances_results.json annotations.json [--iou 0.5] [--thresholds 0.05 0.1 …]

For each threshold: detections for each image, precision, recall and F1 at --iou, and duplicates: wrong detections that
overlap an object of their class which a better one has found. A last line has the threshold of the best F1.
"""

import argparse
import contextlib
import io
import json
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_THRESHOLDS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


@dataclass(frozen=True)
class Matched:
    """All detections, best first.

    Attributes:
        scores: (D,), falling.
        is_right: (D,) bool, the first of its object.
        is_duplicate: (D,) bool, of an object that a better one has found.
        objects, images: their numbers.
    """

    scores: np.ndarray
    is_right: np.ndarray
    is_duplicate: np.ndarray
    objects: int
    images: int


def match(results: list[dict], annotations: str, iou: float) -> Matched:
    """COCO's own matching of results to the objects of an annotation file; crowds do not count, nor what is on them."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.iouThrs, evaluation.params.areaRng = np.array([iou]), [[0, 1e10]]
        evaluation.params.areaRngLbl, evaluation.params.maxDets = ["all"], [max(map(len, _by_image(results)))]
        evaluation.evaluate()
    scores, right, duplicate, objects = [], [], [], 0
    for item in filter(None, evaluation.evalImgs):
        objects += int((~np.asarray(item["gtIgnore"], dtype=bool)).sum())
        counted = ~item["dtIgnore"][0]
        found = item["dtMatches"][0] > 0
        overlap = np.asarray(evaluation.ious[item["image_id"], item["category_id"]])  # (detections, objects), or empty
        near = (overlap >= iou).any(axis=1) if overlap.size else np.zeros(len(found), dtype=bool)
        scores.append(np.asarray(item["dtScores"])[counted])
        right.append(found[counted])
        duplicate.append((near & ~found)[counted])
    merged = np.concatenate(scores)
    order = np.argsort(-merged, kind="stable")
    flags = np.concatenate(right)[order], np.concatenate(duplicate)[order]
    return Matched(merged[order], *flags, objects, len(truth.getImgIds()))


def _by_image(results: list[dict]) -> list[list[dict]]:
    images: dict[int, list[dict]] = {}
    for result in results:
        images.setdefault(result["image_id"], []).append(result)
    return list(images.values())


def row(matched: Matched, threshold: float) -> dict[str, float]:
    """The numbers of one threshold, which a detection's score must exceed."""
    kept = matched.scores > threshold
    right, number = int(matched.is_right[kept].sum()), int(kept.sum())
    precision, recall = right / max(number, 1), right / max(matched.objects, 1)
    return {
        "threshold": threshold,
        "per image": number / matched.images,
        "precision": precision,
        "recall": recall,
        "F1": 2 * right / max(number + matched.objects, 1),
        "duplicates": int(matched.is_duplicate[kept].sum()) / max(number, 1),
    }


def best(matched: Matched) -> dict[str, float]:
    """The row of the best F1."""
    right = np.cumsum(matched.is_right)
    f1 = 2 * right / (np.arange(1, len(right) + 1) + matched.objects)
    return row(matched, float(np.nextafter(matched.scores[int(f1.argmax())], -1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("annotations")
    parser.add_argument("--iou", type=float, default=0.5)
    parser.add_argument("--thresholds", type=float, nargs="+", default=_THRESHOLDS)
    args = parser.parse_args()
    with open(args.results) as file:
        results = json.load(file)
    if not results:
        parser.error(f"{args.results} has no detections")
    matched = match(results, args.annotations, args.iou)
    rows = [row(matched, threshold) for threshold in args.thresholds] + [best(matched)]
    print(" ".join(f"{name:>10}" for name in rows[0]))
    for each in rows:
        print(" ".join(f"{value:10.3f}" for value in each.values()))


if __name__ == "__main__":
    main()
