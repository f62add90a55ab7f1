"""LVIS's detection metrics for the standalone engine."""

from pathlib import Path
from typing import Any

from ..engine import is_installed
from ..errors import UserError
from ..evaluation.average_precision import compute_lvis_metrics, write_class_metrics
from .evaluation import CocoEvaluator, Result

_PACKAGE = "faster_coco_eval"


class LvisEvaluator(CocoEvaluator):
    """COCO's, with LVIS's metrics: AP of rare, common and frequent classes, and detections judged only where known.

    AP of each class goes to ``lvis_class_ap.json``: there are too many for logs.
    """

    results_name = "lvis_instances_results.json"

    def compute(self, results: list[Result], kind: str, output_dir: Path) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl, APr, APc, APf in percent."""
        metrics, classes = compute_lvis_metrics(self.truth, results, self.max_detections, kind)
        write_class_metrics(output_dir, kind, self.summary.class_names, classes)
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
    if not is_installed(_PACKAGE):
        raise UserError(
            f"data set {name} is in LVIS's format: evaluating on it needs a package that is not installed: "
            "pip install faster-coco-eval"
        )
