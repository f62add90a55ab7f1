"""Meta-architectures ``DeformableDETR`` and ``DETR``: Detectron2's inputs and outputs around a `Detector`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks
from detectron2.utils.events import get_event_storage, has_event_storage
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..checkpoint import LoadOptions
from ..config import build_criterion, build_detector
from ..config.checkpoint import load_options
from ..config.data import with_classes
from ..config.evaluation import evaluation_config
from ..config.run import process_config
from ..data.problems import DatasetError
from ..errors import UserError
from ..modeling import (
    BatchSize,
    Detections,
    Predictions,
    Targets,
    cardinality_error,
    check_targets,
    panoptic_postprocess,
    postprocess,
)
from .classes import known_class_names, resolve_thing_classes, separated_classes
from .config import check_foreign_keys
from .data import resolve_num_classes
from .visualization import put_matched_predictions

_LOG_PERIOD = 20  # iterations between writes of Detectron2's event writers


class SetPredictionModel(nn.Module):
    """Base class of the meta-architectures.

    Args:
        detector: maps images (N, 3, H, W) and padding mask (N, H, W) to `Predictions`; contains all weights.
        criterion: maps predictions and targets to weighted losses by name; its ``matcher`` is used for ``vis_period``.
        pixel_mean, pixel_std: mean and standard deviation of each channel in the order of ``input_format``, in 0–255.
        topk: maximum number of detections per image.
        score_threshold: minimum score of a detection.
        vis_period: iterations between images of ground truth and matched predictions in the event storage; 0: none.
        input_format: channel order of input images, ``"RGB"`` or ``"BGR"``; for ``vis_period``.
        things: classes of things; stuff has no instances. Empty: all classes are things.
        panoptic: arguments of `panoptic_postprocess`, to return panoptic segmentations as well; None: none.
        segment_ids: ``category_id`` of the segments of each class, for Detectron2's separated panoptic format, which
            numbers stuff from 1 (see `PanopticClasses`); the model then also returns ``sem_seg``. None: class ids.
        load_options: options for loading weights with Detectron2's checkpointer.
    """

    architecture: ClassVar[str]  # argument of `build_detector`; inherited by subclasses with other names
    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        detector: nn.Module,
        criterion: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        topk: int = 100,
        score_threshold: float = 0.0,
        vis_period: int = 0,
        input_format: str = "RGB",
        things: Sequence[int] = (),
        panoptic: dict[str, Any] | None = None,
        segment_ids: Sequence[int] | None = None,
        load_options: LoadOptions | None = None,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.criterion = criterion
        self.topk = topk
        self.score_threshold = score_threshold
        self.vis_period = vis_period
        self.input_format = input_format
        self.things = tuple(things)
        self.panoptic = None if panoptic is None else dict(panoptic)
        self.segment_ids = None if segment_ids is None else tuple(segment_ids)
        self.load_options = load_options or LoadOptions()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Returns the constructor's arguments; the backbone comes from Detectron2's registry."""
        check_foreign_keys(cfg)
        cfg = with_classes(cfg, _num_classes, resolve_thing_classes)
        process, evaluation, options = process_config(cfg), evaluation_config(cfg), load_options(cfg)
        separated, things = separated_classes(cfg), evaluation.thing_classes
        limits = {"score_threshold": evaluation.panoptic_score_threshold, "min_area": evaluation.panoptic_min_area}
        detector = build_detector(cfg, build_backbone(cfg), cls.architecture, weights="")
        if cfg.TEST.PRECISE_BN.ENABLED:
            _check_precise_bn(detector)
        return {
            "detector": detector,
            "criterion": build_criterion(cfg, cls.architecture),
            "pixel_mean": process.pixel_mean,
            "pixel_std": process.pixel_std,
            "topk": evaluation.max_detections,
            "score_threshold": evaluation.score_threshold,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": options.input_format,
            "things": things,
            "panoptic": {"things": things, **limits} if evaluation.is_panoptic else None,
            "segment_ids": separated.segment_ids if separated else None,
            "load_options": replace(options, class_names=known_class_names(cfg)),
        }

    @property
    def device(self) -> torch.device:
        """Device of the model, to which inputs are moved."""
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]], batch_size: BatchSize | None = None, *, visualize: bool = True
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Returns losses in training mode, otherwise detections.

        Args:
            batched_inputs: one dict per image from Detectron2's dataset mapper, with ``image`` (3, h, w) in 0–255; in
                training, ``instances`` with ``gt_boxes``, ``gt_classes`` and, for a mask head, ``gt_masks``; and
                optionally ``height`` and ``width``, the size of the detections (default: the size of the image).
            batch_size: in training, size of the whole batch if the inputs are a micro-batch, see
                `SetCriterion.forward`. ``cardinality_error`` is then not written to the event storage but returned
                besides the losses, weighted so that the sum over all micro-batches is that of the batch.
            visualize: whether ``vis_period`` applies to these inputs.

        Returns:
            In training, weighted scalar losses by name, whose sum is to be minimized. Otherwise one
            ``{"instances": Instances}`` per image with ``pred_boxes``, ``scores``, ``pred_classes`` and, with a mask
            head, ``pred_masks``, best first. Panoptic models add ``"panoptic_seg"``: segment ids (H, W) and the list
            of segments; with data sets of the separated format also ``"sem_seg"``: one-hot labels (S, H, W) uint8,
            label 0 for things and void, 1 … S - 1 for stuff.

        Raises:
            UserError: for invalid ground truth, see `check_targets`.
        """
        if self.training:
            _check_annotated(batched_inputs)
        images = self._preprocess(batched_inputs)
        predictions = self.detector(images.tensor, _padding_mask(images))
        if not self.training:
            sizes = [
                (int(record.get("height", size[0])), int(record.get("width", size[1])))
                for record, size in zip(batched_inputs, images.image_sizes, strict=True)
            ]
            return self._results(predictions, sizes)
        targets = [to_targets(record["instances"], record) for record in batched_inputs]
        check_targets(targets, predictions.num_classes)
        targets = [target.to(self.device) for target in targets]
        whole = () if batch_size is None else (batch_size,)  # other criteria may accept two arguments only
        losses: dict[str, Tensor] = self.criterion(predictions, targets, *whole)
        if has_event_storage():
            storage = get_event_storage()
            if (storage.iter + 1) % _LOG_PERIOD == 0:  # reading the scalar synchronizes with the device
                error = cardinality_error(predictions, targets)
                if batch_size is None:
                    storage.put_scalar("cardinality_error", error)
                else:
                    losses = {**losses, "cardinality_error": error * (len(targets) / batch_size.images)}
            if visualize and self.vis_period > 0 and storage.iter % self.vis_period == 0:
                names = self.load_options.class_names
                matcher: Any = self.criterion.matcher
                put_matched_predictions(batched_inputs[0], predictions, targets, matcher, self.input_format, names)
        return losses

    def _results(self, predictions: Predictions, sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
        detections = postprocess(predictions, sizes, self.topk, self.things or None, self.score_threshold)
        results: list[dict[str, Any]] = [
            {"instances": to_instances(*pair)} for pair in zip(detections, sizes, strict=True)
        ]
        if self.panoptic is None:
            return results
        for result, found in zip(results, panoptic_postprocess(predictions, sizes, **self.panoptic), strict=True):
            segments = found.segments
            if self.segment_ids is not None:
                segments = [{**item, "category_id": self.segment_ids[item["category_id"]]} for item in segments]
                result["sem_seg"] = _semantic(found.ids, segments, max(self.segment_ids[len(self.things) :]) + 1)
            result["panoptic_seg"] = found.ids, segments
        return results

    def _preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalizes and pads images to a size that meets the backbone's constraints."""
        images = [(record["image"].to(self.device) - self.pixel_mean) / self.pixel_std for record in batched_inputs]
        backbone = self.detector.backbone
        return ImageList.from_tensors(
            images,
            getattr(backbone, "size_divisibility", 0),
            padding_constraints=getattr(backbone, "padding_constraints", None),
        )


def _check_annotated(batched_inputs: list[dict[str, Any]]) -> None:
    """Raises `DatasetError` for a record without ground truth, which Detectron2's mapper does not check."""
    for index, record in enumerate(batched_inputs):
        fields = record["instances"].get_fields() if "instances" in record else {}
        if not {"gt_boxes", "gt_classes"} <= fields.keys():
            raise DatasetError(
                f"{record.get('file_name', f'image {index} of the batch')} has no annotations: training needs a list "
                "'annotations' in each record of the data set, which is empty for an image without objects, and "
                "instances with gt_boxes and gt_classes from the dataset mapper"
            )


def _num_classes(cfg: CfgNode) -> int:
    """Returns ``MODEL.DETR.NUM_CLASSES`` or, if it is 0, the number of classes of the data sets."""
    return cfg.MODEL.DETR.NUM_CLASSES or resolve_num_classes(cfg)


def _check_precise_bn(detector: nn.Module) -> None:
    """Raises `UserError` if no batch norm of the detector updates its statistics: the hook would have no effect."""
    if not get_bn_modules(detector.train()):
        raise UserError(
            "TEST.PRECISE_BN.ENABLED True needs batch norms that update their statistics, unlike FrozenBN and stages "
            "frozen by MODEL.BACKBONE.FREEZE_AT: set it to False, or MODEL.RESNETS.NORM to BN or SyncBN"
        )


def _padding_mask(images: ImageList) -> Tensor:
    """Returns the padding mask (N, H, W), True on padding."""
    mask = torch.ones_like(images.tensor[:, 0], dtype=torch.bool)
    for index, (height, width) in enumerate(images.image_sizes):
        mask[index, :height, :width] = False
    return mask


def to_targets(instances: Instances, record: Mapping[str, Any] | None = None) -> Targets:
    """Converts Detectron2's ground truth, in pixels, to normalized (cx, cy, w, h).

    Raises:
        UserError: if the size of the instances is not that of the image in ``record``.
    """
    record = record or {}
    name = str(record.get("file_name") or "")  # may be a Path
    if name and "image_id" in record:
        name += f" (image id {record['image_id']})"
    height, width = instances.image_size
    size = tuple(record["image"].shape[-2:]) if "image" in record else (height, width)
    if size != (height, width):
        raise UserError(
            f"{name or 'an image of the batch'} is {size[0]} x {size[1]}, but its instances have image_size {height} x "
            f"{width}: the dataset mapper must apply the same transforms to both"
        )
    boxes = instances.gt_boxes.tensor.float()
    boxes = box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])
    masks = instances.gt_masks if instances.has("gt_masks") else None
    if isinstance(masks, PolygonMasks):  # from Detectron2's own mapper
        masks = BitMasks.from_polygon_masks(masks, height, width)
    masks = getattr(masks, "tensor", masks)  # plain tensors from custom mappers
    return Targets(instances.gt_classes.long(), boxes, masks, (height, width), name)


def _semantic(ids: Tensor, segments: list[dict[str, Any]], labels: int) -> Tensor:
    """Converts a panoptic segmentation to scores (labels, H, W) for Detectron2's evaluator of semantic labels."""
    table = ids.new_zeros(len(segments) + 1, dtype=torch.int64)
    for item in segments:
        table[item["id"]] = 0 if item["isthing"] else item["category_id"]
    scores = ids.new_zeros((labels, *ids.shape), dtype=torch.uint8)
    return scores.scatter_(0, table[ids.long()][None], 1)


def to_instances(detections: Detections, size: tuple[int, int]) -> Instances:
    """Converts the detections of an image of size (H, W) to Detectron2's ``Instances``."""
    instances = Instances(size, pred_boxes=Boxes(detections.boxes), scores=detections.scores)
    instances.pred_classes = detections.labels
    if detections.masks is not None:
        instances.pred_masks = detections.masks
    return instances


@META_ARCH_REGISTRY.register()
class DeformableDETR(SetPredictionModel):
    """Deformable DETR (arXiv 2010.04159); see ``MODEL.DETR`` for its variants."""

    architecture = "DeformableDETR"


@META_ARCH_REGISTRY.register()
class DETR(SetPredictionModel):
    """DETR (arXiv 2005.12872); see ``MODEL.DETR`` for its variants."""

    architecture = "DETR"
