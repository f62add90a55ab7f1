"""LVIS detection metrics (arXiv 1908.03195, section 3.3), computed by faster-coco-eval.

The package ``lvis`` 0.5.3, which Detectron2 uses, fails with NumPy 1.24 and newer.
"""

import importlib.util
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.lvis import FREQUENCIES
from ..errors import UserError
from .coco import METRICS, Array, CocoEvaluator, Metrics, Result, for_kind, mean_metrics, mean_percent

_CLASSES_PER_CHUNK = 20
_NAMES = (*(name for name, _, _ in METRICS), *(f"AP{group}" for group in FREQUENCIES))


class LvisEvaluator(CocoEvaluator):
    """Evaluator with LVIS metrics, including the AP of rare, common and frequent classes.

    The AP of each class is written to ``lvis_class_ap.json`` instead of the log, because LVIS has 1,203 classes.
    """

    results_name = "lvis_instances_results.json"

    def compute(self, results: list[Result], kind: str, output_dir: Path) -> Metrics:
        """Computes AP, AP50, AP75, APs, APm, APl, APr, APc and APf in percent."""
        metrics, class_ap = compute_lvis_metrics(self.ground_truth, results, self.max_detections, kind)
        write_class_ap(output_dir, kind, self.summary.class_names, class_ap)
        return metrics

    def read_ground_truth(self, content: dict[str, Any]) -> Any:
        """Returns the content of a file for faster-coco-eval."""
        from faster_coco_eval import COCO  # optional package

        return COCO(content)


def check_installed(dataset_name: str) -> None:
    """Checks that data sets in LVIS format can be evaluated.

    Raises:
        UserError: if faster-coco-eval is not installed.
    """
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise UserError(
            f"data set {dataset_name} is in LVIS format; its evaluation requires a package that is not installed: "
            "pip install faster-coco-eval"
        )


def compute_lvis_metrics(
    ground_truth: Any, results: list[Result], max_detections: int = 300, kind: str = "bbox"
) -> tuple[Metrics, list[float]]:
    """Computes LVIS metrics and the AP of each class, in percent; NaN without ground truth.

    A detection is evaluated only if its class is annotated or verified to be absent in the image. An unmatched
    detection is not a false positive if its class is not annotated exhaustively in the image.

    Args:
        ground_truth: annotation file, read by faster-coco-eval.
        results: entries of a COCO results file.
        max_detections: maximum number of detections per image over all classes, best first; 300 in LVIS.
        kind: ``"bbox"`` or ``"segm"``.
    """
    from faster_coco_eval import COCOeval_faster

    categories = ground_truth.loadCats(sorted(ground_truth.getCatIds()))
    if not results or not ground_truth.anns:
        return dict.fromkeys(_NAMES, math.nan), [math.nan] * len(categories)
    known = _known_categories(ground_truth)
    detections = ground_truth.loadRes(for_kind(_select(known, results, max_detections), kind))
    evaluation = COCOeval_faster(ground_truth, detections, kind, lvis_style=True, print_function=lambda *_: None)
    evaluation.params.maxDets = [max_detections]
    precision = _precision(evaluation, [category["id"] for category in categories], known)
    metrics = mean_metrics(precision, evaluation.params)
    groups = np.array([category["frequency"] for category in categories])
    for group in FREQUENCIES:
        metrics[f"AP{group}"] = mean_percent(precision[:, :, groups == group, 0])
    return metrics, [mean_percent(precision[:, :, index, 0]) for index in range(len(categories))]


def write_class_ap(folder: Path, kind: str, names: Sequence[str], values: Sequence[float]) -> None:
    """Writes the AP of each class to ``lvis_class_ap.json``, or ``lvis_class_ap_segm.json`` for kind ``"segm"``."""
    path = folder / f"lvis_class_ap{'_segm' * (kind == 'segm')}.json"
    path.write_text(json.dumps(dict(zip(names, values, strict=True)), indent=1) + "\n")


def _precision(evaluation: Any, categories: list[int], known: dict[int, set[int]]) -> Array:
    """Returns precision (IoU, recall, class, size) as in pycocotools; -1 without ground truth.

    Evaluates a few classes at a time, on the images with annotations of these classes, because time and memory are
    proportional to the number of classes times the number of images.
    """
    images: dict[int, list[int]] = defaultdict(list)
    for image in sorted(known):
        for category in known[image]:
            images[category].append(image)
    params = evaluation.params
    precision = -np.ones((len(params.iouThrs), len(params.recThrs), len(categories), len(params.areaRngLbl)))
    for start in range(0, len(categories), _CLASSES_PER_CHUNK):
        params.catIds = categories[start : start + _CLASSES_PER_CHUNK]
        params.imgIds = sorted({image for category in params.catIds for image in images[category]})
        if params.imgIds:
            evaluation.evaluate()
            evaluation.accumulate()
            precision[:, :, start : start + _CLASSES_PER_CHUNK] = evaluation.eval["precision"][..., -1]
    return precision


def _known_categories(ground_truth: Any) -> dict[int, set[int]]:
    """Returns the ids of the categories that are annotated or verified to be absent, by image id."""
    known = {image["id"]: set(image["neg_category_ids"]) for image in ground_truth.dataset["images"]}
    for annotation in ground_truth.dataset["annotations"]:
        known[annotation["image_id"]].add(annotation["category_id"])
    return known


def _select(known: dict[int, set[int]], results: list[Result], max_detections: int) -> list[Result]:
    """Copies the best results of each image in the categories that are evaluated.

    The evaluation would ignore all others, but would use a kilobyte of memory for each.
    """
    images: dict[int, list[Result]] = defaultdict(list)
    for item in results:
        images[item["image_id"]].append(item)
    return [
        dict(item)
        for image, items in images.items()
        for item in sorted(items, key=lambda item: -item["score"])[:max_detections]
        if item["category_id"] in known[image]
    ]
