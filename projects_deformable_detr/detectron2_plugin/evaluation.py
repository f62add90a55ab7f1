"""Detectron2's evaluators for each format of data sets, with additional metrics.

Detectron2's evaluators for LVIS, Pascal VOC and Cityscapes do not report the AP of each class, its COCO evaluator
rejects the metadata of panoptic data sets, and its panoptic evaluator requires panopticapi, which is on no package
index.
"""

import glob
import json
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from PIL import Image

from ..data.panoptic import as_annotations
from ..data.problems import DatasetError
from ..engine import is_installed
from ..errors import UserError
from ..evaluation import panoptic
from ..evaluation.lvis import compute_lvis_metrics, write_class_ap
from ..modeling import PanopticSegmentation
from .data import panoptic_spec
from .panoptic_classes import is_separated, is_standard, panoptic_classes
from .patches import numpy_names

_logger = logging.getLogger(__name__)
_EVALUATOR_TYPES = (
    "coco", "coco_panoptic_seg", "lvis", "pascal_voc", "cityscapes_instance", "cityscapes_panoptic_seg"
)  # fmt: skip


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """Builds the evaluator of a data set, see `make_evaluator`.

    Results are written to ``OUTPUT_DIR/inference``, or to a subfolder for each test set if there are several.
    """
    several = len(cfg.DATASETS.TEST) > 1
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", *[dataset_name] * several)
    return make_evaluator(
        dataset_name,
        folder,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        has_masks=cfg.MODEL.MASK_ON,
        is_panoptic=cfg.MODEL.DETR.PANOPTIC.ENABLED,
    )


def make_evaluator(
    dataset_name: str,
    output_dir: str,
    *,
    max_detections: int = 100,
    has_masks: bool = False,
    is_panoptic: bool = False,
) -> DatasetEvaluator:
    """Builds the evaluator for the ``evaluator_type`` of a data set.

    A data set without a type, such as one registered as a list of records, is evaluated by the COCO evaluator, which
    converts the records to COCO's format.

    Args:
        dataset_name: name in Detectron2's catalog.
        output_dir: folder of the results.
        max_detections: maximum number of detections per image, except for LVIS, where it is 300.
        has_masks: whether the model predicts masks.
        is_panoptic: whether the model predicts panoptic segmentations.

    Raises:
        UserError: for an unknown type.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type") or "coco"
    if kind not in _EVALUATOR_TYPES:
        raise UserError(
            f"data set {dataset_name} has the unknown evaluator_type {kind!r}: choose one of "
            f"{', '.join(_EVALUATOR_TYPES)}"
        )
    if kind == "lvis":
        return ClassLVISEvaluator(dataset_name, output_dir=output_dir)
    if kind == "pascal_voc":
        return VOCEvaluator(dataset_name)
    # A cached conversion may be that of other records registered with the same name.
    options = {"output_dir": output_dir, "max_dets_per_image": max_detections, "allow_cached_coco": False}
    is_cityscapes, is_panoptic = kind.startswith("cityscapes"), is_panoptic and kind.endswith("panoptic_seg")
    if is_cityscapes:  # has its own metrics of masks
        options["tasks"] = ("bbox",)
    coco = ThingsEvaluator if is_standard(dataset_name) else COCOEvaluator
    evaluators: list[DatasetEvaluator] = [coco(dataset_name, **options)]
    if is_cityscapes and has_masks:
        evaluators.append(CityscapesEvaluator(dataset_name))
    if is_panoptic and is_separated(dataset_name):
        evaluators.append(SemSegEvaluator(dataset_name, output_dir=output_dir))
    if is_panoptic:
        evaluator = COCOPanopticEvaluator if is_installed("panopticapi") else PanopticEvaluator
        evaluators.append(evaluator(dataset_name, output_dir))
    return DatasetEvaluators(evaluators) if len(evaluators) > 1 else evaluators[0]


class PanopticEvaluator(DatasetEvaluator):
    """Detectron2's panoptic evaluator without panopticapi."""

    def __init__(self, dataset_name: str, output_dir: str) -> None:
        classes = panoptic_classes(dataset_name, panoptic=True)
        if classes is None:
            raise UserError(
                f"data set {dataset_name} is not in a panoptic format: set MODEL.DETR.PANOPTIC.ENABLED to False"
            )
        self._classes = classes
        self._evaluator = panoptic.PanopticEvaluator(panoptic_spec(dataset_name), classes.category_ids)
        self._output_dir = Path(output_dir)

    def reset(self) -> None:
        """Removes all results."""
        self._evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Adds the ``panoptic_seg`` of a batch."""
        for record, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            segments = [{**item, "category_id": self._classes.class_of(item)} for item in segments]
            self._evaluator.add(record["image_id"], record["file_name"], PanopticSegmentation(ids, segments))

    def evaluate(self) -> dict[str, Any]:
        """Returns ``{"panoptic_seg": metrics}`` on the main process."""
        comm.synchronize()
        return self._evaluator.evaluate(self._output_dir)


class ThingsEvaluator(COCOEvaluator):
    """COCO's metrics of the things in a panoptic data set of the standard format.

    The ground truth is the instances file of the data set if it exists, otherwise its segments of things.

    Args:
        name: name of the data set.
        options: arguments of Detectron2's evaluator.
    """

    def __init__(self, name: str, **options: Any) -> None:
        classes = panoptic_classes(name, panoptic=True)
        assert classes is not None
        # Detectron2 assigns class names to the AP of each class in the order of the file's ids.
        things = sorted(classes.things, key=lambda index: classes.category_ids[index])
        self._labels = {index: label for label, index in enumerate(things)}
        things_name = f"{name}_things"
        if things_name not in DatasetCatalog:
            DatasetCatalog.register(things_name, lambda: _things_records(name, self._labels))
            panoptic_metadata, metadata = MetadataCatalog.get(name), MetadataCatalog.get(things_name)
            metadata.set(
                evaluator_type="coco",
                image_root=panoptic_metadata.image_root,
                thing_classes=[classes.names[index] for index in things],
                thing_dataset_id_to_contiguous_id={
                    classes.category_ids[index]: label for index, label in self._labels.items()
                },
            )
            json_file = panoptic_metadata.get("json_file")
            if json_file and os.path.isfile(json_file):
                metadata.json_file = json_file
        super().__init__(things_name, **options)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Adds the ``instances`` of a batch."""
        things = []
        for output in outputs:
            instances = output["instances"].to("cpu")
            labels = [self._labels[index] for index in instances.pred_classes.tolist()]
            instances.pred_classes = instances.pred_classes.new_tensor(labels)
            things.append({"instances": instances})
        super().process(inputs, things)


def _things_records(name: str, labels: dict[int, int]) -> list[dict[str, Any]]:
    records = []
    for record in DatasetCatalog.get(name):
        segments = as_annotations(record, crowds=True)
        things = [
            item | {"category_id": labels[item["category_id"]]} for item in segments if item["category_id"] in labels
        ]
        with Image.open(record["file_name"]) as image:
            size = {"width": image.width, "height": image.height}
        records.append(
            {"file_name": record["file_name"], "image_id": record["image_id"], **size, "annotations": things}
        )
    return records


class ClassLVISEvaluator(LVISEvaluator):
    """LVIS's evaluator that also writes ``lvis_class_ap.json``, if faster-coco-eval is installed."""

    def evaluate(self) -> dict[str, Any] | None:
        """Returns Detectron2's metrics on the main process, None on others."""
        with numpy_names():
            metrics: dict[str, Any] | None = super().evaluate()
        if not metrics or not self._output_dir:
            return metrics
        if not is_installed("faster_coco_eval"):
            _logger.info("AP of each class is not computed: pip install faster-coco-eval")
            return metrics
        from faster_coco_eval import COCO

        folder = Path(self._output_dir)
        ground_truth = COCO(PathManager.get_local_path(self._metadata.json_file))
        results = json.loads((folder / "lvis_instances_results.json").read_text())
        for kind in metrics:
            class_ap = compute_lvis_metrics(ground_truth, results, kind=kind)[1]
            write_class_ap(folder, kind, self._metadata.thing_classes, class_ap)
        _logger.info("AP of each class is in %s", folder / "lvis_class_ap.json")
        return metrics


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """Pascal VOC's evaluator that also reports ``AP-<class>``: runs Detectron2's for each class and averages."""

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
    """Cityscapes' evaluator of masks that also reports ``AP-<class>``.

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
        with numpy_names():
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
