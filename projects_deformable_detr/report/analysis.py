"""Error analysis of detections: metrics, kinds of errors, confusion matrix, score calibration, suggested threshold.

Detections are matched to objects as in COCO's evaluation, by hotcoco. Kinds of errors are those of TIDE (arXiv
2008.08115, section 2.2), with its thresholds of 0.5 for a match and 0.1 for background.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from pycocotools import mask as rle_format

from ..data.coco import CocoRecords
from ..errors import UserError
from ..evaluation.coco import Array, CocoEvaluator, Metrics, Result, mean_metrics, mean_percent
from ..evaluation.score_threshold import Matches, best_f1, match

IOU = 0.5
_BACKGROUND_IOU = 0.1
KINDS = {
    "Cls": ("classification", "a detection that overlaps an object of another class (IoU at least 0.5)"),
    "Loc": ("localization", "a detection that overlaps an object of its class, with too low an IoU (0.1 to 0.5)"),
    "Both": ("both", "a detection that overlaps an object of another class, with too low an IoU (0.1 to 0.5)"),
    "Dupe": ("duplicate", "a detection of an object for which there is a better one"),
    "Bkg": ("background", "a detection that overlaps no object (IoU at most 0.1)"),
    "Miss": ("missed", "an unmatched object that no classification or localization error overlaps most (largest IoU)"),
}


@dataclass(frozen=True)
class FalsePositive:
    """A detection above the suggested threshold that is matched to no object.

    Attributes:
        result: entry of the results file.
        kind: key of `KINDS`.
        object_id: id of the object that it overlaps most, of another class for the kind ``"Cls"`` and of its class for
            others; None if there is none.
    """

    result: Result
    kind: str
    object_id: int | None


@dataclass
class Analysis:
    """Error analysis of one model on one data set.

    Attributes:
        name: name of the run.
        source: origin of the detections.
        records: data set.
        metrics: `evaluation.coco.METRICS` and AP of each class (also for one class), in percent.
        precision: (IoU thresholds, recalls, classes) in [0, 1]; -1 for classes without objects.
        recalls: (recalls,) in [0, 1].
        matches: all detections, matched at IoU 0.5.
        best: threshold with the best F1, and metrics above it; see `score_threshold.metrics_above`.
        best_of_classes: the same for each class.
        delta_ap: AP50 that would be gained without the errors of each kind, in percent; for all detections.
        counts: number of errors of each kind above the threshold.
        confusion: (classes + 1, classes + 1) pairs of object (row) and detection (column) above the threshold; the
            last row and column are background.
        bins: calibration of scores: mean score, precision and number of detections in ten intervals of the score.
        calibration_error: expected calibration error in [0, 1].
        detections_per_object: number of matched objects with 1, 2, … detections above the threshold.
        kept: detections above the threshold, except those on crowds.
        false_positives: those among them that are not matched, best score first.
        missed: objects without a matched detection above the threshold, largest first.
        evaluation: hotcoco's evaluation of all detections.
    """

    name: str
    source: str
    records: CocoRecords
    metrics: Metrics
    precision: Array
    recalls: Array
    matches: Matches
    best: dict[str, float]
    best_of_classes: list[dict[str, float]]
    delta_ap: dict[str, float]
    counts: Counter[str]
    confusion: Array
    bins: list[dict[str, float]]
    calibration_error: float
    detections_per_object: Counter[int]
    kept: list[Result]
    false_positives: list[FalsePositive]
    missed: list[dict[str, Any]]
    evaluation: Any

    @property
    def label(self) -> str:
        """Names of run and data set."""
        return f"{self.name} on {self.records.spec.name}"


def analyze(records: CocoRecords, results: list[Result], max_detections: int, name: str, source: str) -> Analysis:
    """Analyzes detections.

    Args:
        records: data set, loaded for evaluation.
        results: entries of a COCO results file, at least one.
        max_detections: maximum number of detections per image and class, best first.
        name, source: see `Analysis`.

    Raises:
        UserError: if all detections are on crowds.
    """
    import hotcoco

    summary, truth = records.summary, records.ground_truth()
    dataset = hotcoco.COCO(truth)
    evaluation = _evaluate(dataset, results, max_detections)
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[..., -1]  # (IoU, recall, class, size)
    metrics = mean_metrics(precision, evaluation.params)
    metrics |= {f"AP-{item}": mean_percent(precision[:, :, row, 0]) for row, item in enumerate(summary.class_names)}
    matches = match(CocoEvaluator(records, max_detections).ground_truth, results, IOU)
    best = best_f1(matches)
    chosen = [row for row in results if row["score"] > best["threshold"]]
    if not chosen:
        raise UserError(f"{source}: all detections are on crowds")
    above = _evaluate(dataset, chosen, max_detections)
    statuses = above.image_diagnostics(IOU)
    detections = {number: chosen[number - 1] for number in sorted(statuses["dt_status"])}  # without those on crowds
    kept = list(detections.values())
    objects = {item["id"]: item for item in truth["annotations"] if not item["iscrowd"]}
    found = statuses["gt_match"].keys()
    wrong = [row for number, row in detections.items() if statuses["dt_status"][number] == "fp"]
    false_positives = _classify(wrong, list(objects.values()))
    duplicates = Counter(item.object_id for item in false_positives if item.kind == "Dupe")
    missed = [item for number, item in objects.items() if number not in found]
    counts = Counter(item.kind for item in false_positives)
    targets = {item.object_id for item in false_positives if item.kind in ("Loc", "Cls")}
    counts["Miss"] = sum(item["id"] not in targets for item in missed)
    calibration = evaluation.calibration(iou_threshold=IOU)
    gains = evaluation.tide_errors(IOU, _BACKGROUND_IOU)["delta_ap"]
    return Analysis(
        name=name,
        source=source,
        records=records,
        metrics=metrics,
        precision=precision[..., 0],
        recalls=np.asarray(evaluation.params.rec_thrs),
        matches=matches,
        best=best,
        best_of_classes=[best_f1(matches.select(category)) for category in summary.category_ids],
        delta_ap={kind: 100 * gains[kind] for kind in KINDS},
        counts=counts,
        confusion=np.asarray(_evaluate(dataset, kept, max_detections).confusion_matrix(IOU)["matrix"], dtype=np.int64),
        bins=calibration["bins"],
        calibration_error=calibration["ece"],
        detections_per_object=Counter(1 + duplicates[number] for number in found),
        kept=kept,
        false_positives=false_positives,
        missed=sorted(missed, key=lambda item: -item["area"]),
        evaluation=evaluation,
    )


def mean_ap(records: CocoRecords, results: list[Result], max_detections: int) -> float:
    """Returns AP in percent without the other parts of `analyze`, which has the same arguments."""
    import hotcoco

    evaluation = _evaluate(hotcoco.COCO(records.ground_truth()), results, max_detections)
    evaluation.accumulate()
    return mean_percent(np.asarray(evaluation.eval["precision"])[..., 0, -1])


def _evaluate(dataset: Any, results: list[Result], max_detections: int) -> Any:
    """Matches results to the objects of a data set; both are those of hotcoco."""
    import hotcoco

    rows = [{key: row[key] for key in ("image_id", "category_id", "bbox", "score")} for row in results]
    evaluation = hotcoco.COCOeval(dataset, dataset.load_res(rows), "bbox")
    evaluation.params.max_dets = sorted((1, 10, max_detections))  # as pycocotools does
    evaluation.evaluate()
    return evaluation


def compare(a: Analysis, b: Analysis) -> dict[str, Any]:
    """Returns the difference of the AP of two models on the same data set, and its 95 % confidence interval.

    The interval is a percentile bootstrap over 1,000 samples of the images, with a fixed seed.

    Returns:
        ``delta``, ``lower`` and ``upper``, of b minus a, in percent.
    """
    import hotcoco

    result = hotcoco.compare(a.evaluation, b.evaluation, n_bootstrap=1000)
    interval = result["ci"]["AP"]
    values = {"delta": result["deltas"]["AP"], "lower": interval["lower"], "upper": interval["upper"]}
    return {key: 100 * value for key, value in values.items()}


def _classify(unmatched: Sequence[Result], objects: Sequence[dict[str, Any]]) -> list[FalsePositive]:
    """Returns the kind of error of each unmatched detection, best score first.

    hotcoco only counts the kinds, and counts detections that overlap a crowd as localization errors.
    """
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for item in objects:
        by_image[item["image_id"]].append(item)
    found = []
    for image_id, group in groupby(sorted(unmatched, key=_image_id), _image_id):
        results, others = list(group), by_image[image_id]
        ious = np.zeros((len(results), len(others)))
        if others:
            boxes = [np.array([item["bbox"] for item in items], dtype=np.float64) for items in (results, others)]
            ious = rle_format.iou(*boxes, [0] * len(others))
        categories = np.array([item["category_id"] for item in others], dtype=np.int64)
        for result, row in zip(results, ious, strict=True):
            is_same = categories == result["category_id"]
            kind = _kind(*(float(row[chosen].max(initial=0.0)) for chosen in (is_same, ~is_same)))
            chosen = ~is_same if kind == "Cls" else is_same
            nearest = others[int(np.where(chosen, row, -1.0).argmax())]["id"] if chosen.any() else None
            found.append(FalsePositive(result, kind, nearest))
    return sorted(found, key=lambda item: -item.result["score"])


def _image_id(result: Result) -> int:
    return int(result["image_id"])


def _kind(same: float, other: float) -> str:
    """Returns the kind of an unmatched detection from its largest IoU with objects of its class, and of others.

    TIDE tests the kinds in this order. An object of its class above 0.5 is matched to a better detection.
    """
    if _BACKGROUND_IOU <= same <= IOU:
        return "Loc"
    if other >= IOU:
        return "Cls"
    if same > IOU:
        return "Dupe"
    return "Bkg" if other <= _BACKGROUND_IOU else "Both"
