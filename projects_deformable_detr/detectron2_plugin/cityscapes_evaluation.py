"""Cityscapes' AP of instance masks: Detectron2's evaluator, and the AP of each class, which it does not tell."""

import glob
import logging
import os
from typing import Any

from detectron2.evaluation import CityscapesInstanceEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..data.problems import DatasetError
from .lent_names import numpy_names

_logger = logging.getLogger(__name__)


class CityscapesEvaluator(CityscapesInstanceEvaluator):
    """Writes predictions as Detectron2's evaluator does, and asks Cityscapes' own functions for their metrics.

    Not through their ``evaluateImgLists``, as Detectron2 does: it leaves a ``matches.json`` in the working directory,
    and fails there with NumPy 2.4.
    """

    def evaluate(self) -> dict[str, Any] | None:
        """``{"segm": metrics}`` in percent on the main process: AP, AP50 and AP-<class>; to be called on all.

        Raises:
            DatasetError: if there are no pictures of instances to compare with.
        """
        comm.synchronize()
        if comm.get_rank() > 0:
            return None
        folder = PathManager.get_local_path(self._metadata.gt_dir)
        truth = glob.glob(os.path.join(folder, "*", "*_gtFine_instanceIds.png"))
        if not truth:
            raise DatasetError(f"there are no *_gtFine_instanceIds.png in {folder}/*: put Cityscapes' gtFine there")
        with numpy_names():
            averages = self._averages(truth)
        self._working_dir.cleanup()
        metrics = {"AP": averages["allAp"] * 100, "AP50": averages["allAp50%"] * 100}
        metrics |= {f"AP-{name}": values["ap"] * 100 for name, values in averages["classes"].items()}
        metrics = {name: float(value) for name, value in metrics.items()}
        _logger.info("Results (segm, of all classes and of each):\n%s", create_small_table(metrics))
        return {"segm": metrics}

    def _averages(self, truth: list[str]) -> dict[str, Any]:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official

        args = official.args
        args.predictionPath, args.predictionWalk = os.path.abspath(self._temp_dir), None
        args.gtInstancesFile = os.path.join(self._temp_dir, "gtInstances.json")  # else one of an older truth is read
        args.quiet = True
        predictions = [official.getPrediction(picture, args) for picture in truth]
        official.setInstanceLabels(args)
        instances = official.getGtInstances(truth, args)
        matches = official.matchGtWithPreds(predictions, truth, instances, args)
        averages: dict[str, Any] = official.computeAverages(official.evaluateMatches(matches, args), args)
        return averages
