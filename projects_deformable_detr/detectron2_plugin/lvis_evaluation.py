"""LVIS's AP by Detectron2's evaluator, and the AP of each class, which it does not tell."""

import json
import logging
from pathlib import Path
from typing import Any

from detectron2.evaluation import LVISEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..engine import is_installed
from ..evaluation.average_precision import compute_lvis_metrics, write_class_metrics
from .lent_names import numpy_names

_logger = logging.getLogger(__name__)


class ClassLVISEvaluator(LVISEvaluator):
    """Writes ``lvis_class_ap.json`` beside the results, where faster-coco-eval is installed to compute it."""

    def evaluate(self) -> dict[str, Any] | None:
        """Detectron2's metrics on the main process, None on others; to be called on all."""
        with numpy_names():
            metrics = super().evaluate()
        if metrics and self._output_dir and comm.is_main_process():
            self._write_classes(list(metrics))
        return metrics

    def _write_classes(self, kinds: list[str]) -> None:
        if not is_installed("faster_coco_eval"):
            _logger.info("AP of each class is not measured: pip install faster-coco-eval")
            return
        from faster_coco_eval import COCO

        folder = Path(self._output_dir)
        truth = COCO(PathManager.get_local_path(self._metadata.json_file))
        results = json.loads((folder / "lvis_instances_results.json").read_text())
        for kind in kinds:
            values = compute_lvis_metrics(truth, results, kind=kind)[1]
            write_class_metrics(folder, kind, self._metadata.thing_classes, values)
        _logger.info("AP of each class is in %s", folder / "lvis_class_ap.json")
