"""The evaluators of Detectron2 for a data set, looked up by its metadata's ``evaluator_type``."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from detectron2.utils import comm

from ..engine import is_installed
from ..errors import UserError
from ..evaluation import panoptic_evaluation
from ..evaluation.panoptic_evaluation import PanopticResult
from .cityscapes_evaluation import CityscapesEvaluator
from .data import panoptic_spec
from .lvis_evaluation import ClassLVISEvaluator
from .panoptic_classes import is_separated, panoptic_classes
from .things_evaluation import ThingsEvaluator
from .voc_evaluation import VOCEvaluator

_logger = logging.getLogger(__name__)


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluator that fits the data set's ``evaluator_type``.

    Results go to ``OUTPUT_DIR/inference``, where each of several test sets has a folder of its name. COCO's metrics
    count ``TEST.DETECTIONS_PER_IMAGE`` detections of an image, LVIS's 300 of these at the most.

    A data set that names no type, one that was registered as a plain list of records, gets the COCO evaluator,
    which makes the ground truth in COCO's format from the records.

    Raises:
        UserError: for a type that no evaluator is known for.
    """
    several = len(cfg.DATASETS.TEST) > 1
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", *[dataset_name] * several)
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type") or "coco"
    known: dict[str, Callable[[], DatasetEvaluator]] = {
        "coco": lambda: _coco(cfg, dataset_name, folder),
        "coco_panoptic_seg": lambda: DatasetEvaluators(_panoptic_evaluators(cfg, dataset_name, folder)),
        "lvis": lambda: ClassLVISEvaluator(dataset_name, output_dir=folder),
        "pascal_voc": lambda: VOCEvaluator(dataset_name),
        "cityscapes_instance": lambda: DatasetEvaluators(_cityscapes_evaluators(cfg, dataset_name, folder)),
        "cityscapes_panoptic_seg": lambda: DatasetEvaluators(_panoptic_evaluators(cfg, dataset_name, folder)),
        "sem_seg": lambda: SemSegEvaluator(dataset_name, output_dir=folder),
        "cityscapes_sem_seg": lambda: CityscapesSemSegEvaluator(dataset_name),
    }
    if kind not in known:
        raise UserError(f"data set {dataset_name} has evaluator_type {kind!r}; known are {', '.join(known)}")
    return known[kind]()


def _coco(cfg: CfgNode, name: str, folder: str, **options: Any) -> COCOEvaluator:
    return COCOEvaluator(name, output_dir=folder, **_options(cfg), **options)


def _options(cfg: CfgNode) -> dict[str, Any]:
    # A truth that was made of records before, perhaps of other ones, is not taken again.
    return {"max_dets_per_image": cfg.TEST.DETECTIONS_PER_IMAGE, "allow_cached_coco": False}


class PanopticEvaluator(DatasetEvaluator):
    """Detectron2's panoptic evaluator without panopticapi: the same results and metrics, computed by this project."""

    def __init__(self, dataset_name: str, output_dir: str) -> None:
        classes = panoptic_classes(dataset_name, panoptic=True)
        if classes is None:
            raise UserError(f"data set {dataset_name} is not a panoptic one: its panoptic quality cannot be measured")
        self._spec = panoptic_spec(dataset_name)
        self._classes = classes
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
            segments = [{**item, "category_id": self._classes.class_of(item)} for item in segments]
            self._results.append(PanopticResult.of(*image, segments, self._classes.category_ids))

    def evaluate(self) -> dict[str, Any] | None:
        """``{"panoptic_seg": metrics}`` on the main process."""
        comm.synchronize()
        gathered = comm.gather(self._results)
        if not comm.is_main_process():
            return None
        return panoptic_evaluation.evaluate(self._spec, [item for part in gathered for item in part], self._output_dir)


def _cityscapes_evaluators(cfg: CfgNode, name: str, folder: str) -> list[DatasetEvaluator]:
    """AP of boxes in COCO's way, of a truth made from the records; of masks, in Cityscapes' own."""
    evaluators: list[DatasetEvaluator] = [_coco(cfg, name, folder, tasks=("bbox",))]
    if cfg.MODEL.MASK_ON:
        evaluators.append(CityscapesEvaluator(name))
    return evaluators


def _panoptic_evaluators(cfg: CfgNode, dataset_name: str, folder: str) -> list[DatasetEvaluator]:
    """AP of the things; panoptic quality where the model gives a segmentation."""
    evaluators: list[DatasetEvaluator] = []
    classes = panoptic_classes(dataset_name, panoptic=True)
    if classes is None or classes.is_separated:
        evaluators.append(_coco(cfg, dataset_name, folder))
    else:
        is_cityscapes = MetadataCatalog.get(dataset_name).evaluator_type == "cityscapes_panoptic_seg"
        tasks = ("bbox",) if is_cityscapes else None  # it has metrics of masks of its own
        evaluators.append(ThingsEvaluator(dataset_name, classes, folder, tasks=tasks, **_options(cfg)))
        if is_cityscapes and cfg.MODEL.MASK_ON:
            evaluators.append(CityscapesEvaluator(dataset_name))
    if not cfg.MODEL.DETR.PANOPTIC.ENABLED:
        return evaluators
    if is_separated(dataset_name):
        evaluators.append(SemSegEvaluator(dataset_name, output_dir=folder))
    if is_installed("panopticapi"):
        evaluators.append(COCOPanopticEvaluator(dataset_name, folder))
    else:
        _logger.info("panopticapi is not installed: this project computes the panoptic quality itself")
        evaluators.append(PanopticEvaluator(dataset_name, folder))
    return evaluators
