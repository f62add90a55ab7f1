"""Pascal VOC's metrics by Detectron2's evaluator, and the AP of each class, which it does not tell."""

import logging
from collections import defaultdict
from typing import Any

import numpy as np
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

_logger = logging.getLogger(__name__)


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """Adds ``AP-<class>`` to the metrics, under the names that Detectron2 has for COCO's, and a table of all.

    Detectron2's evaluator is asked once for each class, with that class alone. Its metrics are means over classes, so
    that these are what it would give for all of them together.
    """

    _class_names: list[str]
    _predictions: defaultdict[int, list[str]]

    def evaluate(self) -> dict[str, Any] | None:
        """``{"bbox": metrics}`` in percent on the main process, None on others; to be called on all."""
        names, found = self._class_names, self._predictions
        level = self._logger.level
        self._logger.setLevel(logging.WARNING)  # it says the same for every class
        rows = []
        try:
            for index, name in enumerate(names):
                # A class that was not found anywhere must stay absent: Detectron2 writes an empty file for it then.
                lines = {0: found[index]} if index in found else {}
                self._class_names, self._predictions = [name], defaultdict(list, lines)
                rows.append(super().evaluate())
        finally:
            self._class_names, self._predictions = names, found
            self._logger.setLevel(level)
        if not comm.is_main_process():
            return None
        metrics = {key: float(np.mean([row["bbox"][key] for row in rows])) for key in ("AP", "AP50", "AP75")}
        metrics |= {f"AP-{name}": float(row["bbox"]["AP"]) for name, row in zip(names, rows, strict=True)}
        _logger.info(
            "Results of %s (bbox, of all classes and of each):\n%s", self._dataset_name, create_small_table(metrics)
        )
        return {"bbox": metrics}
