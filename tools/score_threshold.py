#!/usr/bin/env python3
"""Precision and recall of COCO results at score thresholds, to choose a threshold or to compare detectors.

tools/score_threshold.py coco_instances_results.json annotations.json [--iou 0.5] [--thresholds 0.05 0.1 …]

Prints for each threshold: detections per image, precision, recall and F1 at --iou, and the fraction of duplicates.
Duplicates are false positives that overlap an object of their class that is matched to a better detection. The last row
is the threshold with the best F1.
"""

import argparse
import contextlib
import io
import itertools
import sys

from pycocotools.coco import COCO
from tabulate import tabulate

try:
    from projects_deformable_detr.errors import UserError, run_command
    from projects_deformable_detr.evaluation.coco import read_results
    from projects_deformable_detr.evaluation.score_threshold import best_f1, match, metrics_above
except ImportError as error:  # the operator is missing
    sys.exit(f"score_threshold: {error}")

_THRESHOLDS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def read_truth(annotations: str, image_ids: set[int]) -> COCO:
    """Reads an annotation file that must contain the images of the results."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            truth = COCO(annotations)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f"{annotations}: not annotations in COCO's instances format ({error})") from error
        for number, item in enumerate(truth.dataset["annotations"], 1):
            item["id"] = number  # COCOeval treats the object id 0 as unmatched
        truth.createIndex()
    if unknown := image_ids - set(truth.getImgIds()):
        raise UserError(
            f"the results have image ids that {annotations} lacks ({len(unknown)}, such as {min(unknown)}): use "
            "the annotations of the data set that was evaluated"
        )
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="results in COCO's format, such as coco_instances_results.json")
    parser.add_argument("annotations", help="annotations in COCO's instances format")
    parser.add_argument("--iou", type=float, default=0.5, help="IoU threshold of a match (default: 0.5)")
    parser.add_argument("--thresholds", type=float, nargs="+", default=_THRESHOLDS, help="score thresholds")
    args = parser.parse_args()
    by_image = read_results(args.results)
    results = list(itertools.chain.from_iterable(by_image.values()))
    if not results:
        raise UserError(f"{args.results} has no detections")
    matches = match(read_truth(args.annotations, set(by_image)), results, args.iou)
    rows = [("", metrics_above(matches, threshold)) for threshold in args.thresholds] + [("best F1", best_f1(matches))]
    table = [[label, *values.values()] for label, values in rows]
    print(tabulate(table, ["", *rows[0][1]], tablefmt="plain", floatfmt=".3f"))


if __name__ == "__main__":
    sys.exit(run_command("score_threshold", main))
