"""LVIS's detection metrics (arXiv 1908.03195, section 3.3) with faster-coco-eval, as Detectron2's evaluator has them.

The package ``lvis`` 0.5.3, which Detectron2 uses, fails with numpy 2; a test compares the numbers of both.
"""

import importlib.util
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ..data.lvis import FREQUENCIES
from ..errors import UserError
from .evaluation import METRICS, CocoEvaluator, Result, mean_percent

_PACKAGE = "faster_coco_eval"
_AT_ONCE = 20  # classes
_NAMES = (*(name for name, _, _ in METRICS), *(f"AP{group}" for group in FREQUENCIES))


class LvisEvaluator(CocoEvaluator):
    """COCO's, with LVIS's metrics: AP of rare, common and frequent classes, and detections judged only where known.

    AP of each class goes to ``lvis_class_ap.json``: there are too many for logs.
    """

    results_name = "lvis_instances_results.json"

    def compute(self, results: list[Result], kind: str, output_dir: Path) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl, APr, APc, APf in percent."""
        metrics, classes = compute_lvis_metrics(self.truth, results, self.max_detections, kind)
        names = dict(zip(self.summary.class_names, classes, strict=True))
        (output_dir / f"lvis_class_ap{'_segm' * (kind == 'segm')}.json").write_text(json.dumps(names, indent=1) + "\n")
        return metrics

    @staticmethod
    def read_truth(path: Path) -> Any:
        """The ground truth."""
        from faster_coco_eval import COCO  # late: an optional package

        return COCO(str(path))


def check_installed(name: str) -> None:
    """Before a data set of LVIS's format is trained with.

    Raises:
        UserError: if what evaluates it is missing.
    """
    if importlib.util.find_spec(_PACKAGE) is None:
        raise UserError(
            f"data set {name} is in LVIS's format: evaluating on it needs a package that is not installed: "
            "pip install faster-coco-eval"
        )


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
