"""Builds evaluators for Detectron2's data sets: the project's for COCO and LVIS formats, otherwise Detectron2's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.structures import BoxMode
from pycocotools import mask as rle_format

from ..config.data import data_config, load, load_instances
from ..config.evaluation import evaluation_config
from ..config.run import process_config
from ..data.catalog import DatasetSpec
from ..data.coco import CocoRecords
from ..data.config import DataConfig
from ..data.images import open_image, read_sizes
from ..data.load import read_classes
from ..data.masks import to_rle
from ..data.panoptic import as_annotations
from ..data.records import Summary
from ..errors import UserError
from ..evaluation import Evaluator, results_folder
from ..evaluation.coco import CocoEvaluator
from ..evaluation.panoptic import PanopticEvaluator
from ..modeling import Detections, PanopticSegmentation
from .class_ap import CityscapesEvaluator, VOCEvaluator
from .classes import PanopticClasses, is_separated, panoptic_classes
from .data import find_spec, panoptic_spec

_EVALUATOR_TYPES = (
    "coco", "coco_panoptic_seg", "lvis", "pascal_voc", "cityscapes_instance", "cityscapes_panoptic_seg"
)  # fmt: skip


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """Builds the evaluator of a data set for a config; see `make_evaluator`.

    Results are written to ``OUTPUT_DIR/inference``, or to a subfolder for each test set if there are several.
    """
    data, evaluation = data_config(cfg, eval_only=True), evaluation_config(cfg)
    folder = results_folder(process_config(cfg).output_dir, data.test, dataset_name)
    return make_evaluator(
        dataset_name,
        output_folder or folder,
        max_detections=evaluation.max_detections,
        has_masks=data.masks,
        is_panoptic=evaluation.is_panoptic,
        config=data,
    )


def make_evaluator(
    dataset_name: str,
    output_dir: str,
    *,
    max_detections: int = 100,
    has_masks: bool = False,
    is_panoptic: bool = False,
    config: DataConfig | None = None,
) -> DatasetEvaluator:
    """Builds the evaluator for the ``evaluator_type`` of a data set.

    A data set without a type, such as one registered as a list of records, is evaluated like COCO.

    Args:
        dataset_name: name in Detectron2's catalog.
        output_dir: folder of the results.
        max_detections: maximum number of detections per image.
        has_masks: whether the model predicts masks.
        is_panoptic: whether the model predicts panoptic segmentations.
        config: configuration of the data sets; None: invalid boxes are dropped.

    Raises:
        UserError: for an unknown type.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type") or "coco"
    if kind not in _EVALUATOR_TYPES:
        raise UserError(
            f"data set {dataset_name} has the unknown evaluator_type {kind!r}: choose one of "
            f"{', '.join(_EVALUATOR_TYPES)}"
        )
    if kind == "pascal_voc":
        return VOCEvaluator(dataset_name)
    classes, spec = panoptic_classes(dataset_name, is_panoptic), find_spec(dataset_name, panoptic=is_panoptic)
    if spec is not None and classes is not None and read_classes(spec).category_ids != classes.category_ids:
        spec = None  # the metadata has only some of the classes of the file, or numbers them differently
    is_cityscapes, is_panoptic = kind.startswith("cityscapes"), is_panoptic and classes is not None
    coco: CocoEvaluator | None = None
    panoptic: PanopticEvaluator | None = None
    if spec is not None:
        config = config or DataConfig(test=(dataset_name,), invalid_boxes="drop", masks=has_masks)
        records = load(spec, config)
        both = Evaluator(records, max_detections, is_panoptic, load_instances(records, config))
        coco, panoptic = both.coco, both.panoptic
    elif classes is not None and is_panoptic:
        panoptic = PanopticEvaluator(panoptic_spec(dataset_name), classes.category_ids)
    category_ids = classes.category_ids if classes else None
    if coco is None:
        records = CatalogRecords(dataset_name, classes)
        coco, category_ids = CocoEvaluator(records, max_detections), category_ids or records.category_ids
    has_coco_masks = has_masks and not is_cityscapes  # Cityscapes has its own mask metrics
    evaluators: list[DatasetEvaluator] = [InstancesEvaluator(coco, output_dir, category_ids, with_masks=has_coco_masks)]
    if is_cityscapes and has_masks:
        evaluators.append(CityscapesEvaluator(dataset_name))
    if is_panoptic and is_separated(dataset_name):
        evaluators.append(SemSegEvaluator(dataset_name, output_dir=output_dir))
    if panoptic is not None and classes is not None:
        evaluators.append(SegmentsEvaluator(panoptic, output_dir, classes))
    return DatasetEvaluators(evaluators) if len(evaluators) > 1 else evaluators[0]


class ProjectEvaluator(DatasetEvaluator):
    """Base class that adapts the project's evaluators to Detectron2's inputs and outputs.

    Args:
        evaluator: evaluator of the data set.
        output_dir: folder of the results.
        evaluator_ids: category id of each class of the evaluator.
        category_ids: category id of each class of the model; None: the same as ``evaluator_ids``.
    """

    def __init__(
        self, evaluator: Any, output_dir: str, evaluator_ids: Sequence[int], category_ids: Sequence[int] | None
    ) -> None:
        self.evaluator = evaluator
        self.output_dir = Path(output_dir)
        labels = {category_id: label for label, category_id in enumerate(evaluator_ids)}
        self.labels = [labels.get(category_id, -1) for category_id in (category_ids or evaluator_ids)]

    def reset(self) -> None:
        """Removes all results."""
        self.evaluator.reset()

    def evaluate(self) -> dict[str, Any]:
        """Returns metrics in percent by kind, on the main process."""
        found: dict[str, Any] = self.evaluator.evaluate(self.output_dir)
        return found


class InstancesEvaluator(ProjectEvaluator):
    """Computes AP of boxes and, if ``with_masks``, of masks; for panoptic data sets, of things only."""

    def __init__(
        self, evaluator: CocoEvaluator, output_dir: str, category_ids: Sequence[int] | None, *, with_masks: bool
    ) -> None:
        super().__init__(evaluator, output_dir, evaluator.summary.category_ids, category_ids)
        self.with_masks = with_masks

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Adds the ``instances`` of a batch."""
        for record, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            labels = found.pred_classes.new_tensor(self.labels)[found.pred_classes]
            masks = found.pred_masks if self.with_masks and found.has("pred_masks") else None
            self.evaluator.add([record["image_id"]], [Detections(found.pred_boxes.tensor, found.scores, labels, masks)])


class SegmentsEvaluator(ProjectEvaluator):
    """Computes panoptic quality."""

    def __init__(self, evaluator: PanopticEvaluator, output_dir: str, classes: PanopticClasses) -> None:
        super().__init__(evaluator, output_dir, evaluator.category_ids, classes.category_ids)
        self.classes = classes

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Adds the ``panoptic_seg`` of a batch."""
        for record, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            segments = [{**item, "category_id": self.labels[self.classes.class_of(item)]} for item in segments]
            self.evaluator.add(record["image_id"], record["file_name"], PanopticSegmentation(ids, segments))


class CatalogRecords(CocoRecords):
    """Ground truth of a data set that only Detectron2 can read, or of the things among panoptic segments.

    Args:
        name: name of the data set.
        classes: classes of a panoptic data set; None for others.

    Attributes:
        category_ids: category ids in the order of the classes in Detectron2's metadata.
    """

    def __init__(self, name: str, classes: PanopticClasses | None) -> None:
        self._content = _as_coco(name, classes)
        self.category_ids = tuple(item["id"] for item in self._content["categories"])
        categories = sorted(self._content["categories"], key=lambda item: item["id"])
        names, ids = (tuple(item[key] for item in categories) for key in ("name", "id"))
        counts = len(self._content["images"]), len(self._content["annotations"])
        self.spec = DatasetSpec(name, "", "")
        self.summary = Summary(name, names, ids, len(ids), *counts, num_crowd=0)

    def ground_truth(self) -> dict[str, Any]:
        """Returns the content of an annotation file in COCO's instances format."""
        return self._content


def _as_coco(name: str, classes: PanopticClasses | None) -> dict[str, Any]:
    """Converts records to the content of a file in COCO's format; for panoptic data sets, segments of things only.

    Detectron2's ``convert_to_coco_dict`` fails for masks whose run lengths are lists.
    """
    if classes is None:
        metadata = MetadataCatalog.get(name)
        ids = {label: number for number, label in metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
        names = dict(enumerate(metadata.thing_classes))
        ids = ids or {label: label for label in names}
    else:
        ids = {label: classes.category_ids[label] for label in classes.things}
        names = {label: classes.names[label] for label in classes.things}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, record in enumerate(DatasetCatalog.get(name)):
        image_id, file_name = record.get("image_id", index), record["file_name"]
        height, width = record.get("height"), record.get("width")
        if height is None or width is None:
            with open_image(file_name) as image:
                height, width = read_sizes(image)[0]
        images.append({"id": image_id, "width": width, "height": height})
        items = record.get("annotations", []) if classes is None else as_annotations(record, crowds=True)
        for item in items:
            if item["category_id"] not in ids:
                continue
            box = [float(value) for value in BoxMode.convert(list(item["bbox"]), item["bbox_mode"], BoxMode.XYWH_ABS)]
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[item["category_id"]]}
            entry |= {"bbox": box, "iscrowd": int(item.get("iscrowd", 0)), "area": box[2] * box[3]}
            if "segmentation" in item:
                rle = to_rle(item["segmentation"], height, width, f"an object of {file_name}")
                entry |= {"segmentation": rle, "area": float(rle_format.area(rle))}
            annotations.append(entry)
    categories = [{"id": ids[label], "name": label_name} for label, label_name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
