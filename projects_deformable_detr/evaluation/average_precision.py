"""Average precision below both engines: COCO's numbers by name, and LVIS's (arXiv 1908.03195, section 3.3).

LVIS's are computed by faster-coco-eval: the package ``lvis`` 0.5.3, which Detectron2 uses, fails with numpy 1.24 and
newer; a test compares the numbers of both.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.lvis import FREQUENCIES

Result = dict[str, Any]
_AT_ONCE = 20  # classes
# Name of the metric, IoU threshold (None: the mean over 0.50, 0.55 … 0.95), and object size.
METRICS = (
    ("AP", None, "all"),
    ("AP50", 0.5, "all"),
    ("AP75", 0.75, "all"),
    ("APs", None, "small"),
    ("APm", None, "medium"),
    ("APl", None, "large"),
)
_NAMES = (*(name for name, _, _ in METRICS), *(f"AP{group}" for group in FREQUENCIES))


def compute_lvis_metrics(
    truth: Any, results: list[Result], max_detections: int = 300, kind: str = "bbox"
) -> tuple[dict[str, float], list[float]]:
    """LVIS's metrics, and AP of each class, in percent; NaN where there is nothing to measure.

    A detection counts in an image only if its class was looked for there: it has objects, or is known to have none.
    Where not all objects of a class are annotated, an unmatched detection is no error.

    Args:
        truth: faster-coco-eval's, of a LVIS file.
        results: in COCO's results format.
        max_detections: of an image, over all classes, the best first; LVIS's own is 300.
        kind: ``"bbox"`` or ``"segm"``.
    """
    from faster_coco_eval import COCOeval_faster

    categories = truth.loadCats(sorted(truth.getCatIds()))
    if not results or not truth.anns:
        return dict.fromkeys(_NAMES, math.nan), [math.nan] * len(categories)
    known = _looked_for(truth)
    found = _that_count(known, results, max_detections)
    if kind == "segm":  # sizes are to be those of masks; with a box, they would be the box's
        found = [{key: value for key, value in item.items() if key != "bbox"} for item in found]
    evaluation = COCOeval_faster(truth, truth.loadRes(found), kind, lvis_style=True, print_function=lambda *_: None)
    evaluation.params.maxDets = [max_detections]
    precision = _precision(evaluation, [category["id"] for category in categories], known)
    params, metrics = evaluation.params, {}
    for name, threshold, size in METRICS:
        chosen = slice(None) if threshold is None else np.isclose(params.iouThrs, threshold)
        metrics[name] = mean_percent(precision[chosen, :, :, params.areaRngLbl.index(size)])
    groups = np.array([category["frequency"] for category in categories])
    for group in FREQUENCIES:
        metrics[f"AP{group}"] = mean_percent(precision[:, :, groups == group, 0])
    return metrics, [mean_percent(precision[:, :, index, 0]) for index in range(len(categories))]


def _precision(evaluation: Any, categories: list[int], known: dict[int, set[int]]) -> np.ndarray:
    """(IoU, recall, class, size) as pycocotools has it, -1 where there is nothing to measure.

    A few classes at a time, in the images where one of them was looked for: the evaluation's memory and time grow with
    classes times images.
    """
    images: dict[int, list[int]] = defaultdict(list)  # of each category
    for image in sorted(known):
        for category in known[image]:
            images[category].append(image)
    params = evaluation.params
    shape = len(params.iouThrs), len(params.recThrs), len(categories), len(params.areaRngLbl)
    precision = -np.ones(shape)
    for start in range(0, len(categories), _AT_ONCE):
        params.catIds = categories[start : start + _AT_ONCE]
        params.imgIds = sorted({image for category in params.catIds for image in images[category]})
        if params.imgIds:
            evaluation.evaluate()
            evaluation.accumulate()
            precision[:, :, start : start + _AT_ONCE] = evaluation.eval["precision"][..., -1]
    return precision


def _looked_for(truth: Any) -> dict[int, set[int]]:
    """Of each image the categories that are known to be there, or not to be."""
    known = {image["id"]: set(image["neg_category_ids"]) for image in truth.dataset["images"]}
    for annotation in truth.dataset["annotations"]:
        known[annotation["image_id"]].add(annotation["category_id"])
    return known


def _that_count(known: dict[int, set[int]], results: list[Result], most: int) -> list[Result]:
    """Copies of the best ``most`` of each image, of equal scores the first, whose classes were looked for there.

    The evaluation would leave out the others itself; but they are most of 1,203 classes, and it takes a kilobyte each.
    """
    images: dict[int, list[Result]] = defaultdict(list)
    for item in results:
        images[item["image_id"]].append(item)
    best = {image: sorted(items, key=lambda item: -item["score"])[:most] for image, items in images.items()}
    return [dict(item) for image, items in best.items() for item in items if item["category_id"] in known[image]]


def write_class_metrics(folder: Path, kind: str, names: Sequence[str], values: Sequence[float]) -> None:
    """AP of each class as a file: there are too many for logs. ``kind``: ``"bbox"`` or ``"segm"``."""
    path = folder / f"lvis_class_ap{'_segm' * (kind == 'segm')}.json"
    path.write_text(json.dumps(dict(zip(names, values, strict=True)), indent=1) + "\n")


def mean_percent(values: np.ndarray) -> float:
    """pycocotools marks with -1 what has no ground truth."""
    valid = values[values > -1]
    return float(valid.mean() * 100) if valid.size else math.nan
