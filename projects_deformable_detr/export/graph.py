"""Detectors with plain tensors as inputs and outputs, and their capture with torch.export."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d, box_convert

from ..config.inference import ModelMetadata
from ..errors import ArgumentError
from ..inference.exported import GraphSpec
from ..modeling import Detector
from ..modeling.postprocess import top_scores
from ..modeling.resnet import ResNet

OUTPUT_NAMES = {  # by GraphSpec.postprocess
    True: ("boxes", "scores", "labels", "queries", "logits", "query_boxes"),
    False: ("logits", "boxes"),
}
INPUT_NAMES = {True: ("images", "image_sizes"), False: ("images", "padding_mask")}  # by GraphSpec.preprocess
_ORDERED = ResNet, BasicBlock, Bottleneck, nn.Sequential  # modules whose children are called in order
_NORMS = _BatchNorm, FrozenBatchNorm2d  # _BatchNorm includes SyncBatchNorm
_DYNAMIC_AXES = {True: ((0, 2, 3), (0,)), False: ((0, 2, 3), (0, 1, 2))}  # dynamic axes of both inputs


class DetectionGraph(nn.Module):
    """Detector with the inputs and outputs of `GraphSpec`.

    Args:
        detector: model; not changed.
        metadata: classes, normalization and postprocessing.
        graph: inputs and outputs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: Detector, metadata: ModelMetadata, graph: GraphSpec) -> None:
        super().__init__()
        if graph.postprocess and metadata.evaluation.is_panoptic:
            raise ArgumentError("postprocess", "must be False for panoptic models: the graph returns instances only")
        self.detector = detector
        self.is_preprocessing, self.is_postprocessing = graph.preprocess, graph.postprocess
        self.is_bgr = metadata.reader.format == "BGR"
        self.max_detections = metadata.evaluation.max_detections
        self.register_buffer("mean", torch.tensor(metadata.pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(metadata.pixel_std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, extent: Tensor) -> tuple[Tensor, ...]:
        """Computes the outputs.

        Args:
            images: (N, 3, H, W).
            extent: image sizes (N, 2) as (height, width) with preprocessing; otherwise the padding mask (N, H, W).
        """
        images, mask = self._preprocess(images, extent) if self.is_preprocessing else (images, extent)
        predictions = self.detector(images.to(next(self.detector.parameters()).dtype), mask)
        masks = () if predictions.masks is None else (predictions.masks.all().float(),)
        boxes = predictions.boxes[-1].float()
        raw = predictions.logits[-1].float(), boxes, *masks
        if not self.is_postprocessing:
            return raw
        scores, labels, query = top_scores(predictions, self.max_detections)
        corners = box_convert(boxes, "cxcywh", "xyxy").gather(1, query[..., None].expand(-1, -1, 4))
        inside = ~mask
        extent = torch.stack((inside[:, 0].sum(1), inside[:, :, 0].sum(1)), dim=1).float()  # (N, 2) as (w, h)
        limit = extent.repeat(1, 2)[:, None]
        corners = torch.minimum((corners * limit).clamp(min=0), limit)
        return corners, scores, labels, query, *raw

    def _preprocess(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Normalizes images and computes the padding mask (N, H, W)."""
        rows = torch.arange(images.shape[2], device=images.device) >= sizes[:, :1]
        columns = torch.arange(images.shape[3], device=images.device) >= sizes[:, 1:]
        mask = rows[:, :, None] | columns[:, None, :]
        images = images.float().flip(1) if self.is_bgr else images.float()
        return ((images - self.mean) / self.std).masked_fill(mask[:, None], 0.0), mask


def example_inputs(graph: GraphSpec, batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns example inputs of a graph: random images (batch, 3, height, width) without padding."""
    pixels = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8)
    images = pixels if graph.input_type == "uint8" else pixels.float()
    if graph.preprocess:
        return images, torch.tensor([[height, width]] * batch)
    return images / 128 - 1, torch.zeros(batch, height, width, dtype=torch.bool)


def capture(module: DetectionGraph, graph: GraphSpec) -> tuple[ExportedProgram, int]:
    """Exports a graph with dynamic batch size, height and width; returns it and the minimum height and width."""
    device = next(module.parameters()).device
    side = 8 * max(32, 2 ** (len(module.detector.tokenizer.projections) + 2))
    example = tuple(tensor.to(device) for tensor in example_inputs(graph, 2, side, side + 32))
    dynamic_shapes = tuple(dict.fromkeys(axes, Dim.DYNAMIC) for axes in _DYNAMIC_AXES[graph.preprocess])
    program = torch.export.export(module, example, dynamic_shapes=dynamic_shapes, strict=False)
    bounds = [int(limits.lower) for limits in program.range_constraints.values() if limits.lower < 4096]
    return program, max(bounds, default=1)


def fold_norms(backbone: nn.Module) -> None:
    """Merges batch normalization into the preceding convolutions of a ResNet, in place."""
    for module in backbone.modules():
        children = list(module.named_children()) if isinstance(module, _ORDERED) else []
        for (name, layer), (norm_name, norm) in zip(children, children[1:], strict=False):
            if type(layer) is nn.Conv2d and isinstance(norm, _NORMS):
                setattr(module, name, fuse_conv_bn_eval(layer, norm))
                setattr(module, norm_name, nn.Identity())
