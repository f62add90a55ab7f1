"""The evaluators of Detectron2 for a data set, looked up by its metadata's ``evaluator_type``."""

import os

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

from ..errors import UserError


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


def _panoptic_evaluators(cfg: CfgNode, dataset_name: str, folder: str) -> list[DatasetEvaluator]:
    """Boxes always; segmentation where the model has masks to give."""
    most = cfg.TEST.DETECTIONS_PER_IMAGE
    evaluators: list[DatasetEvaluator] = [COCOEvaluator(dataset_name, output_dir=folder, max_dets_per_image=most)]
    if cfg.MODEL.MASK_ON:
        evaluators += [
            SemSegEvaluator(dataset_name, output_dir=folder),
            COCOPanopticEvaluator(dataset_name, folder),
        ]
    return evaluators
