"""The evaluators of Detectron2 for a data set, looked up by its metadata's ``evaluator_type``."""

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.utils import comm

from .. import panoptic_evaluation
from ..errors import UserError
from ..panoptic_evaluation import PanopticResult
from .data import is_panoptic, panoptic_spec, things_of

_logger = logging.getLogger(__name__)


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluator that fits the data set's ``evaluator_type``.

    Results go to ``OUTPUT_DIR/inference``, where each of several test sets has a folder of its name. COCO's metrics
    count ``TEST.DETECTIONS_PER_IMAGE`` detections of an image.

    A data set that names no type, one that was registered as a plain list of records, gets the COCO evaluator,
    which makes the ground truth in COCO's format from the records.

    Raises:
        UserError: for a type that no evaluator is known for.
    """
    several = len(cfg.DATASETS.TEST) > 1
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", *[dataset_name] * several)
    most = cfg.TEST.DETECTIONS_PER_IMAGE
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type") or "coco"
    if kind == "coco":
        return COCOEvaluator(dataset_name, output_dir=folder, max_dets_per_image=most)
    if kind == "coco_panoptic_seg":
        return DatasetEvaluators(_panoptic_evaluators(cfg, dataset_name, folder))
    if kind == "lvis":
        return LVISEvaluator(dataset_name, output_dir=folder)
    if kind == "sem_seg":
        return SemSegEvaluator(dataset_name, output_dir=folder)
    by_name = {
        "pascal_voc": PascalVOCDetectionEvaluator,
        "cityscapes_instance": CityscapesInstanceEvaluator,
        "cityscapes_sem_seg": CityscapesSemSegEvaluator,
    }
    if kind not in by_name:
        known = ["coco", "coco_panoptic_seg", "lvis", "sem_seg", *by_name]
        raise UserError(f"data set {dataset_name} has evaluator_type {kind!r}; known are {', '.join(known)}")
    return by_name[kind](dataset_name)


class PanopticEvaluator(DatasetEvaluator):
    """Detectron2's panoptic evaluator without panopticapi: the same results and metrics, computed by this project."""

    def __init__(self, dataset_name: str, output_dir: str) -> None:
        self._spec = panoptic_spec(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        ids = {**metadata.thing_dataset_id_to_contiguous_id, **metadata.stuff_dataset_id_to_contiguous_id}
        self._category_ids = sorted(ids, key=lambda identifier: ids[identifier])
        self._output_dir = Path(output_dir)
        self._results: list[PanopticResult] = []

    def reset(self) -> None:
        """Forgets all results."""
        self._results = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes the ``panoptic_seg`` of some images."""
        for record, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            image = record["image_id"], record["file_name"], ids.cpu().numpy()
            self._results.append(PanopticResult.of(*image, segments, self._category_ids))

    def evaluate(self) -> dict[str, Any] | None:
        """``{"panoptic_seg": metrics}`` on the main process."""
        comm.synchronize()
        gathered = comm.gather(self._results)
        if not comm.is_main_process():
            return None
        return panoptic_evaluation.evaluate(self._spec, [item for part in gathered for item in part], self._output_dir)


def _panoptic_evaluators(cfg: CfgNode, dataset_name: str, folder: str) -> list[DatasetEvaluator]:
    """AP of the things where their instances are known; panoptic quality where the model gives a segmentation."""
    evaluators: list[DatasetEvaluator] = []
    instances = MetadataCatalog.get(dataset_name).get("json_file")
    if instances and os.path.isfile(instances):
        most = cfg.TEST.DETECTIONS_PER_IMAGE
        evaluators.append(COCOEvaluator(things_of(dataset_name), output_dir=folder, max_dets_per_image=most))
    else:
        _logger.info("%s: there is no %s, so AP is not measured", dataset_name, instances)
    if cfg.MODEL.DETR.PANOPTIC.ENABLED and is_panoptic(dataset_name):
        if importlib.util.find_spec("panopticapi"):
            evaluators.append(COCOPanopticEvaluator(dataset_name, folder))
        else:
            _logger.info("panopticapi is not installed: this project computes the panoptic quality itself")
            evaluators.append(PanopticEvaluator(dataset_name, folder))
    return evaluators
