"""Test-time augmentation (``TEST.AUG``) in the Detectron2 engine."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Instances
from torch import Tensor, nn

from ..config.data import image_reader
from ..config.evaluation import tta_config
from ..errors import UserError
from ..evaluation.tta import merge_views
from ..modeling import Detections
from .meta_arch import SetPredictionModel, to_instances


class SetPredictionTTA(nn.Module):
    """Replaces Detectron2's ``GeneralizedRCNNWithTTA`` for set-prediction models.

    Args:
        cfg: config with ``TEST.AUG`` for the views and ``MODEL.DETR.TTA_NMS_THRESH`` for their merging.
        model: model of the project, or a module that wraps one.
        tta_mapper: maps a record to its views, each with its ``transforms``. Default: Detectron2's mapper.
        batch_size: number of views per forward pass.

    Raises:
        UserError: for a panoptic model.
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
                "TEST.AUG.ENABLED cannot be combined with panoptic segmentation: set MODEL.DETR.PANOPTIC.ENABLED or "
                "TEST.AUG.ENABLED to False"
            )
        self.tta_mapper = tta_mapper or DatasetMapperTTA(cfg)
        self.reader = image_reader(cfg)
        self.batch_size = batch_size
        self.nms_threshold = tta_config(cfg).nms_threshold

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns ``{"instances": Instances}`` for each record.

        A record has an ``image`` or a ``file_name``, and optionally the ``height`` and ``width`` of the output.
        """
        return [{"instances": self._detect(self._with_image(record))} for record in batched_inputs]

    def _with_image(self, record: dict[str, Any]) -> dict[str, Any]:
        record = copy.copy(record)
        if "image" not in record:
            pixels = self.reader.read(record.pop("file_name"))
            record["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        height, width = record["image"].shape[-2:]
        return {"height": height, "width": width, **record}

    def _detect(self, record: dict[str, Any]) -> Instances:
        views = self.tta_mapper(record)
        inverses = [view.pop("transforms").inverse() for view in views]
        for view in views:
            view["height"], view["width"] = view["image"].shape[-2:]  # detections in pixels of the view
        batches = [views[start : start + self.batch_size] for start in range(0, len(views), self.batch_size)]
        found = [output["instances"] for batch in batches for output in self.model(batch)]
        pairs = list(zip(found, inverses, strict=True))
        size = record["height"], record["width"]
        detections = [_detections(*pair) for pair in pairs]
        masks = [partial(_masks, *pair) for pair in pairs] if found[0].has("pred_masks") else None
        return to_instances(merge_views(detections, size, self.nms_threshold, self.model.topk, masks), size)


def _detections(instances: Instances, inverse: Any) -> Detections:
    boxes = instances.pred_boxes.tensor
    boxes = torch.from_numpy(inverse.apply_box(boxes.cpu().numpy())).to(boxes)
    return Detections(boxes, instances.scores, instances.pred_classes)


def _masks(instances: Instances, inverse: Any, rows: Tensor) -> Tensor:
    masks = instances.pred_masks[rows].cpu().numpy().astype(np.uint8)
    inverted = np.stack([inverse.apply_segmentation(mask) for mask in masks])
    return torch.from_numpy(inverted).bool().to(instances.pred_masks.device)
