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
    unwanted = ("bbox",) if kind == "segm" else ("segmentation",)  # sizes are to be those of masks, or of boxes
    found = [{key: value for key, value in item.items() if key not in unwanted} for item in results]
    given = truth.loadRes(_best_of_images(found, max_detections))
    evaluation = COCOeval_faster(truth, given, kind, lvis_style=True, print_function=lambda *_: None)
    evaluation.params.maxDets = [max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    precision, params = evaluation.eval["precision"], evaluation.params  # (IoU, recall, class, size, 1)
    metrics = {}
    for name, threshold, size in METRICS:
        chosen = slice(None) if threshold is None else np.isclose(params.iouThrs, threshold)
        metrics[name] = mean_percent(precision[chosen, :, :, params.areaRngLbl.index(size)])
    groups = np.array([category["frequency"] for category in categories])
    for group in FREQUENCIES:
        metrics[f"AP{group}"] = mean_percent(precision[:, :, groups == group, 0])
    return metrics, [mean_percent(precision[:, :, index, 0]) for index in range(len(categories))]


def _best_of_images(results: list[Result], most: int) -> list[Result]:
    """At most so many of each image; of equal scores the first."""
    images: dict[int, list[Result]] = defaultdict(list)
    for item in results:
        images[item["image_id"]].append(item)
    kept = [sorted(items, key=lambda item: -item["score"])[:most] for items in images.values()]
    return [item for items in kept for item in items]
