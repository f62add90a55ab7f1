"""Dataclasses passed between the parts of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from .padding import image_sizes

# Maximum number of masks, and of their pixels, computed at a time outside of training.
MASKS_PER_CHUNK = 25
PIXELS_PER_CHUNK = 25 * 800 * 1344


@dataclass(frozen=True)
class FeatureSpec:
    """Channels and stride (input pixels per feature pixel) of a feature map."""

    channels: int
    stride: int


class FeatureShape(Protocol):
    """Protocol of `FeatureSpec` and Detectron2's ``ShapeSpec``."""

    @property
    def channels(self) -> int: ...

    @property
    def stride(self) -> int: ...


def output_shape(backbone: nn.Module) -> dict[str, FeatureShape]:
    """Returns channels and stride of a backbone's feature maps by name (Detectron2's protocol)."""
    shapes: dict[str, FeatureShape] = backbone.output_shape()  # type: ignore[operator]  # a method of the subclass
    return shapes


@dataclass(frozen=True)
class Tokens:
    """Feature maps of all levels, flattened and concatenated: S = sum of H_l * W_l positions.

    Attributes:
        values: (N, S, C) features.
        positions: (N, S, C) position embedding plus level embedding.
        padding_mask: (N, S) bool, True on padding.
        spatial_shapes: (H_l, W_l) of every level, as Python ints.
        valid_ratios: (N, L, 2) as (x, y), the fractions of each level's width and height without padding, in (0, 1].
        is_masked: whether values are independent of the padding. `centers` then rounds sizes to whole tokens, because a
            center that differs in its last bit can invalidate the anchor of a proposal.
        has_padding: False if no position is padding; True if that was not checked.
    """

    values: Tensor
    positions: Tensor
    padding_mask: Tensor
    spatial_shapes: tuple[tuple[int, int], ...]
    valid_ratios: Tensor
    is_masked: bool = False
    has_padding: bool = True

    @property
    def attention_mask(self) -> Tensor | None:
        """Padding mask (N, S) for attention, None if there is no padding, which is faster."""
        return self.padding_mask if self.has_padding else None

    @property
    def level_start_index(self) -> tuple[int, ...]:
        """Index of the first token of each level."""
        sizes = [height * width for height, width in self.spatial_shapes]
        return tuple(accumulate([0] + sizes[:-1]))

    def centers(self) -> Tensor:
        """Computes the centers (N, S, 2) of all tokens as (x, y), normalized by the image without padding."""
        centers = []
        for (height, width), ratio in zip(self.spatial_shapes, self.valid_ratios.unbind(1), strict=True):
            # Sizes are Python numbers, because a tensor would be copied to the device.
            y = torch.arange(height, device=ratio.device, dtype=ratio.dtype) + 0.5
            x = torch.arange(width, device=ratio.device, dtype=ratio.dtype) + 0.5
            x, y = x.expand(height, -1).flatten(), y[:, None].expand(-1, width).flatten()
            valid_width, valid_height = ratio[:, :1] * width, ratio[:, 1:] * height
            if self.is_masked:
                valid_width, valid_height = valid_width.round(), valid_height.round()
            centers.append(torch.stack((x / valid_width, y / valid_height), dim=-1))
        return torch.cat(centers, dim=1)


@dataclass(frozen=True)
class Queries:
    """Initial queries of the decoder.

    Attributes:
        content: (N, Q, C).
        positions: (N, Q, C), added to queries and keys of self-attention and to queries of cross-attention.
        reference: (N, Q, 2) as (x, y), or (N, Q, 4) as (cx, cy, w, h), in [0, 1] of the image without padding; None
            in DETR.
        proposals: logits (N, S, classes) and boxes (N, S, 4) of the encoder, two-stage only.
        unused: (N, Q) bool, True for queries that the decoder ignores; None if it uses all.
    """

    content: Tensor
    positions: Tensor
    reference: Tensor | None
    proposals: tuple[Tensor, Tensor] | None = None
    unused: Tensor | None = None


@dataclass(frozen=True)
class ComputedMasks:
    """Mask logits (N, Q, h, w) of all queries, computed in advance: ``select`` of `MaskLogits` in exported graphs."""

    logits: Tensor

    def __call__(self, image: Tensor, query: Tensor) -> Tensor:
        return self.logits[image, query]


@dataclass(frozen=True)
class MaskLogits:
    """Mask logits of the last layer's queries, computed on demand because a loss needs only those of matched queries.

    Attributes:
        select: function of image (M,) and query (M,), int64, that returns logits (M, h, w) of the padded image.
        padding_mask: (N, H, W) bool of the batch of images, True on padding.
        num_queries: Q.
        logits_mask: (N, h, w) bool, True on padding, if the logits are independent of the padding.
    """

    select: Callable[[Tensor, Tensor], Tensor]
    padding_mask: Tensor
    num_queries: int
    logits_mask: Tensor | None = None

    def __call__(self, image: Tensor, query: Tensor) -> Tensor:
        """Computes the logits (M, h, w) of selected queries."""
        return self.select(image, query)

    def all(self) -> Tensor:
        """Computes all logits (N, Q, h, w), a chunk of masks at a time to limit memory when gradients are off."""
        if isinstance(self.select, ComputedMasks):
            return self.select.logits
        batch, device = len(self.padding_mask), self.padding_mask.device
        image = torch.arange(batch, device=device).repeat_interleave(self.num_queries)
        query = torch.arange(self.num_queries, device=device).repeat(batch)
        chunks = zip(image.split(self.chunk_size), query.split(self.chunk_size), strict=True)
        return torch.cat([self(*chunk) for chunk in chunks]).unflatten(0, (batch, self.num_queries))

    @cached_property
    def image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image without padding."""
        return image_sizes(self.padding_mask)

    @cached_property
    def logit_sizes(self) -> list[tuple[int, int]] | None:
        """(height, width) of each image's logits without padding, if they are independent of the padding."""
        return None if self.logits_mask is None else image_sizes(self.logits_mask)

    @property
    def chunk_size(self) -> int:
        """Number of masks computed at a time outside of training: fewer for large images."""
        height, width = self.padding_mask.shape[-2:]
        return max(1, min(MASKS_PER_CHUNK, PIXELS_PER_CHUNK // (height * width)))


@dataclass(frozen=True)
class Predictions:
    """Output of a detector.

    Attributes:
        logits: (layers, N, Q, classes) of all decoder layers in order; with ``no_object``, one more logit.
        boxes: (layers, N, Q, 4) as (cx, cy, w, h), normalized by the size of the image without padding.
        proposals: logits (N, S, classes) and boxes (N, S, 4) of the encoder; None for one-stage models.
        masks: mask logits of the last layer's queries; ``masks.all()`` is (N, Q, h, w). None without a mask head.
        no_object: whether the last logit is "no object" (softmax). If False, all logits are classes (sigmoid).
    """

    logits: Tensor
    boxes: Tensor
    proposals: tuple[Tensor, Tensor] | None = None
    masks: MaskLogits | None = None
    no_object: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes, without "no object"."""
        return self.logits.shape[-1] - int(self.no_object)

    def scores(self) -> Tensor:
        """Computes the class scores of the last layer, (N, Q, num_classes) float32 in [0, 1]."""
        logits = self.logits[-1].float()
        return logits.softmax(-1)[..., :-1] if self.no_object else logits.sigmoid()

    def foreground(self) -> Tensor:
        """Returns the mask (N, Q) of the last layer's queries that predict an object.

        Softmax: the most likely class is not "no object". Sigmoid: the score of any class is above 1/2.
        """
        logits = self.logits[-1]
        return logits.argmax(-1) != logits.shape[-1] - 1 if self.no_object else logits.max(-1).values > 0


# Outputs of exported programs must be pytrees.
for _type in (ComputedMasks, MaskLogits, Predictions):
    _pytree.register_dataclass(_type, serialized_type_name=f"projects_deformable_detr.{_type.__name__}")


@dataclass(frozen=True)
class Targets:
    """Ground truth of one image.

    Attributes:
        labels: (T,) int64 contiguous class ids, 0 <= id < classes.
        boxes: (T, 4) float32 as (cx, cy, w, h), normalized by the size of the image.
        masks: (T, h, w) bool at the size of the image without padding; None without masks.
        size: (h, w) of the image without padding, if known; for checks.
        name: file name and id of the image, if known; for error messages.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor | None = None
    size: tuple[int, int] | None = None
    name: str = ""

    def to(self, device: torch.device | str) -> "Targets":
        """Returns a copy on ``device``."""
        return replace(
            self,
            labels=self.labels.to(device, non_blocking=True),
            boxes=self.boxes.to(device, non_blocking=True),
            masks=None if self.masks is None else self.masks.to(device, non_blocking=True),
        )

    def __len__(self) -> int:
        return len(self.labels)


def image_name(targets: Sequence[Targets], index: int) -> str:
    """Returns the name of an image of a batch for error messages."""
    return targets[index].name or f"image {index} of the batch"


@dataclass(frozen=True)
class Match:
    """Matched pairs of queries and targets: M pairs in each layer.

    Every target is matched once in each layer, so that all layers have the same M and the same images in the same
    order.

    Attributes:
        image: (M,) int64, image index of each pair.
        query: (layers, M) int64, query index.
        target: (layers, M) int64, target index within the concatenated targets of the batch.
    """

    image: Tensor
    query: Tensor
    target: Tensor


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best score first.

    Attributes:
        boxes: (K, 4) as (x1, y1, x2, y2) in pixels of the requested size, clipped to it.
        scores: (K,) in [0, 1].
        labels: (K,) int64 contiguous class ids.
        masks: (K, H, W) bool at the requested size; None without a mask head.
        queries: (K,) int64, query index of each detection; None if detections of several predictions were merged.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
    queries: Tensor | None = None
