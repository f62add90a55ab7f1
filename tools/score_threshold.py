#!/usr/bin/env python3
"""Precision and recall of COCO results at score thresholds, to choose a threshold or to compare detectors.

tools/score_threshold.py coco_instances_results.json annotations.json [--iou 0.5] [--thresholds 0.05 0.1 …]

Prints for each threshold: detections per image, precision, recall and F1 at --iou, and the share of duplicates. These
are false positives that overlap an object of their class that is matched to a better detection. The last row is the
threshold with the best F1.
"""

import argparse
import contextlib
import io
import itertools
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from projects_deformable_detr.cli.draw import read_results
from projects_deformable_detr.errors import UserError, run_command

_THRESHOLDS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


@dataclass(frozen=True)
class Matches:
    """All detections in descending order of their scores.

    Attributes:
        scores: (D,).
        is_correct: (D,) bool, whether a detection is matched to an object.
        is_duplicate: (D,) bool, whether an unmatched detection overlaps an object of its class.
        num_objects: number of objects.
        num_images: number of images.
    """

    scores: np.ndarray
    is_correct: np.ndarray
    is_duplicate: np.ndarray
    num_objects: int
    num_images: int


def match(results: list[dict], annotations: str, iou: float) -> Matches:
    """Matches results to the objects of an annotation file as COCO's evaluation does.

    Crowds, and detections that are matched to them, are ignored.
    """
    most_detections = max(Counter(result["image_id"] for result in results).values())
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            truth = COCO(annotations)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f"{annotations}: not annotations in COCO's instances format ({error})") from error
        for number, item in enumerate(truth.dataset["annotations"], 1):
            item["id"] = number  # COCOeval takes an object of id 0 for unmatched
        truth.createIndex()
        if unknown := {result["image_id"] for result in results} - set(truth.getImgIds()):
            raise UserError(
                f"the results have image ids that {annotations} lacks ({len(unknown)}, such as {min(unknown)}): use "
                "the annotations of the data set that was evaluated"
            )
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.iouThrs, evaluation.params.areaRng = np.array([iou]), [[0, 1e10]]
        evaluation.params.areaRngLbl, evaluation.params.maxDets = ["all"], [most_detections]
        evaluation.evaluate()
    scores, correct, duplicate, num_objects = [], [], [], 0
    for item in filter(None, evaluation.evalImgs):
        num_objects += int((~np.asarray(item["gtIgnore"], dtype=bool)).sum())
        counted = ~item["dtIgnore"][0]
        matched = item["dtMatches"][0] > 0
        ious = np.asarray(evaluation.ious[item["image_id"], item["category_id"]])  # (detections, objects), or empty
        overlaps = (ious >= iou).any(axis=1) if ious.size else np.zeros(len(matched), dtype=bool)
        scores.append(np.asarray(item["dtScores"])[counted])
        correct.append(matched[counted])
        duplicate.append((overlaps & ~matched)[counted])
    order = np.argsort(-np.concatenate(scores), kind="stable")
    columns = (np.concatenate(column)[order] for column in (scores, correct, duplicate))
    return Matches(*columns, num_objects, len(truth.getImgIds()))


def row(matches: Matches, threshold: float) -> dict[str, float]:
    """Returns the metrics of detections with scores above a threshold."""
    kept = matches.scores > threshold
    correct, number = int(matches.is_correct[kept].sum()), int(kept.sum())
    return {
        "threshold": threshold,
        "per image": number / matches.num_images,
        "precision": correct / max(number, 1),
        "recall": correct / max(matches.num_objects, 1),
        "F1": 2 * correct / max(number + matches.num_objects, 1),
        "duplicates": int(matches.is_duplicate[kept].sum()) / max(number, 1),
    }


def best_f1(matches: Matches) -> dict[str, float]:
    """Returns the row of the threshold with the best F1."""
    correct = np.cumsum(matches.is_correct)
    f1 = 2 * correct / (np.arange(1, len(correct) + 1) + matches.num_objects)
    return row(matches, float(np.nextafter(matches.scores[int(f1.argmax())], -1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="results in COCO's format, such as coco_instances_results.json")
    parser.add_argument("annotations", help="annotations in COCO's instances format")
    parser.add_argument("--iou", type=float, default=0.5, help="IoU threshold of a match (default: 0.5)")
    parser.add_argument("--thresholds", type=float, nargs="+", default=_THRESHOLDS, help="score thresholds")
    args = parser.parse_args()
    results = list(itertools.chain.from_iterable(read_results(args.results).values()))
    if not results:
        raise UserError(f"{args.results} has no detections")
    matches = match(results, args.annotations, args.iou)
    rows = [("", row(matches, threshold)) for threshold in args.thresholds] + [("best F1", best_f1(matches))]
    print(" " * 7, *(f"{name:>10}" for name in rows[0][1]))
    for label, values in rows:
        print(f"{label:7}", *(f"{value:10.3f}" for value in values.values()))


if __name__ == "__main__":
    sys.exit(run_command("score_threshold", main))
