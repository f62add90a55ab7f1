"""Detectron2's evaluators of Pascal VOC and Cityscapes that also report the AP of each class."""

import glob
import logging
import os
from collections import defaultdict
from typing import Any

import numpy as np
from detectron2.evaluation import CityscapesInstanceEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..data.problems import DatasetError
from .patches import applied

_logger = logging.getLogger(__name__)


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """Pascal VOC evaluator that also reports ``AP-<class>``: averages Detectron2's evaluation of each class."""

    _class_names: list[str]
    _predictions: defaultdict[int, list[str]]

    def evaluate(self) -> dict[str, Any] | None:
        """Returns ``{"bbox": metrics}`` in percent on the main process, None on others."""
        names, predictions, level = self._class_names, self._predictions, self._logger.level
        self._logger.setLevel(logging.WARNING)  # Detectron2 would log the same line for every class
        rows = []
        try:
            for index, name in enumerate(names):
                self._class_names, self._predictions = [name], defaultdict(list, {0: predictions.get(index, [])})
                rows.append(super().evaluate())
        finally:
            self._class_names, self._predictions = names, predictions
            self._logger.setLevel(level)
        if not comm.is_main_process():
            return None
        metrics = {key: float(np.mean([row["bbox"][key] for row in rows])) for key in ("AP", "AP50", "AP75")}
        metrics |= {f"AP-{name}": float(row["bbox"]["AP"]) for name, row in zip(names, rows, strict=True)}
        _logger.info("Results of %s (bbox):\n%s", self._dataset_name, create_small_table(metrics))
        return {"bbox": metrics}


class CityscapesEvaluator(CityscapesInstanceEvaluator):
    """Cityscapes mask evaluator that also reports ``AP-<class>``.

    Does not call ``evaluateImgLists`` of cityscapesscripts, which writes a ``matches.json`` to the working directory
    and fails to do so with NumPy 2.4.
    """

    def evaluate(self) -> dict[str, Any] | None:
        """Returns ``{"segm": metrics}`` in percent on the main process, None on others.

        Raises:
            DatasetError: if the data set has no ground-truth images.
        """
        comm.synchronize()
        if not comm.is_main_process():
            return None
        folder = PathManager.get_local_path(self._metadata.gt_dir)
        ground_truth = glob.glob(os.path.join(folder, "*", "*_gtFine_instanceIds.png"))
        if not ground_truth:
            raise DatasetError(f"{folder} has no */*_gtFine_instanceIds.png: place Cityscapes' gtFine there")
        with applied("numpy"):
            averages = self._averages(ground_truth)
        self._working_dir.cleanup()
        values = {"AP": averages["allAp"], "AP50": averages["allAp50%"]}
        values |= {f"AP-{name}": item["ap"] for name, item in averages["classes"].items()}
        metrics = {name: float(value * 100) for name, value in values.items()}
        _logger.info("Results (segm):\n%s", create_small_table(metrics))
        return {"segm": metrics}

    def _averages(self, ground_truth: list[str]) -> dict[str, Any]:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as cityscapes

        args = cityscapes.args
        args.predictionPath, args.predictionWalk = os.path.abspath(self._temp_dir), None
        args.gtInstancesFile = os.path.join(self._temp_dir, "gtInstances.json")  # not a cache of an earlier run
        args.quiet = True
        predictions = [cityscapes.getPrediction(path, args) for path in ground_truth]
        cityscapes.setInstanceLabels(args)
        instances = cityscapes.getGtInstances(ground_truth, args)
        matches = cityscapes.matchGtWithPreds(predictions, ground_truth, instances, args)
        return dict(cityscapes.computeAverages(cityscapes.evaluateMatches(matches, args), args))
