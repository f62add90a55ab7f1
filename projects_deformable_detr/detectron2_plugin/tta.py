"""Test-time augmentation for set-prediction models (``TEST.AUG``): several views of an image, one set of detections.

A model of this kind finds each object once in a view, without non-maximum suppression. The views together find it
once each: of detections of one class whose boxes, back in the original image, overlap by more than
``MODEL.DETR.TTA_NMS_THRESH`` (IoU), the best stays, by torchvision's ``batched_nms``; then the
``TEST.DETECTIONS_PER_IMAGE`` best of all stay. Masks go with their boxes.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..errors import UserError
from ..modeling import best_of_views
from .meta_arch import SetPredictionModel


class SetPredictionTTA(nn.Module):
    """Stands for the model in evaluation, as Detectron2's ``GeneralizedRCNNWithTTA`` does for R-CNN.

    Args:
        cfg: its ``TEST.AUG`` says which views there are: every one of MIN_SIZES, each also flipped with FLIP.
        model: one of the project's models, or one that wraps it.
        tta_mapper: a record to its views, each with its ``transforms``; by default Detectron2's.
        batch_size: views that are computed together.

    Raises:
        UserError: for a panoptic model, whose segments are not merged.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
        batch_size: int = 3,
    ) -> None:
        super().__init__()
        self.model = next(module for module in model.modules() if isinstance(module, SetPredictionModel))
        if self.model.panoptic is not None:
            raise UserError(
                "TEST.AUG.ENABLED True merges instances, not panoptic segments: set MODEL.DETR.PANOPTIC.ENABLED or "
                "TEST.AUG.ENABLED to False"
            )
        self.tta_mapper = tta_mapper or DatasetMapperTTA(cfg)
        self.batch_size = batch_size
        self.nms_threshold = cfg.MODEL.DETR.TTA_NMS_THRESH

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detections ``{"instances": Instances}`` of each record, which may have a ``file_name`` instead of an image,
        in the size that it names."""
        return [{"instances": self._detect(self._completed(record))} for record in batched_inputs]

    def _completed(self, record: dict[str, Any]) -> dict[str, Any]:
        record = copy.copy(record)
        if "image" not in record:
            pixels = read_image(record.pop("file_name"), self.model.input_format)
            record["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        for name, side in zip(("height", "width"), record["image"].shape[-2:], strict=True):
            record.setdefault(name, side)
        return record

    def _detect(self, record: dict[str, Any]) -> Instances:
        views = self.tta_mapper(record)
        back = [view.pop("transforms").inverse() for view in views]
        for view in views:  # detections in each view's own pixels
            view["height"], view["width"] = view["image"].shape[-2:]
        parts = [views[start : start + self.batch_size] for start in range(0, len(views), self.batch_size)]
        found = [output["instances"] for part in parts for output in self.model(part)]

        size = record["height"], record["width"]
        boxes = torch.cat([_boxes(instances, way) for instances, way in zip(found, back, strict=True)])
        scores = torch.cat([instances.scores for instances in found])
        classes = torch.cat([instances.pred_classes for instances in found])
        boxes, kept = best_of_views(boxes, scores, classes, size, self.nms_threshold, self.model.topk)
        merged = Instances(size, pred_boxes=Boxes(boxes), scores=scores[kept], pred_classes=classes[kept])
        if found[0].has("pred_masks"):
            merged.pred_masks = _masks(found, back, kept, size)
        return merged


def _boxes(instances: Instances, back: Any) -> Tensor:
    boxes = instances.pred_boxes.tensor
    return torch.from_numpy(back.apply_box(boxes.cpu().numpy())).to(boxes)


def _masks(found: list[Instances], back: list[Any], kept: Tensor, size: tuple[int, int]) -> Tensor:
    """The masks (K, H, W) bool of the detections ``kept`` among those of all views."""
    places = [(view, index) for view, instances in enumerate(found) for index in range(len(instances))]
    device = found[0].pred_masks.device
    masks = torch.zeros(len(kept), *size, dtype=torch.bool, device=device)
    for row, place in enumerate(kept.tolist()):
        view, index = places[place]
        mask = found[view].pred_masks[index].cpu().numpy().astype(np.uint8)
        masks[row] = torch.from_numpy(back[view].apply_segmentation(mask).copy()).to(device).bool()
    return masks
