"""What flows through the model: small frozen dataclasses, one for each station."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

SpatialShapes = tuple[tuple[int, int], ...]
MASKS_AT_ONCE = 25  # masks that are computed together outside of training


@dataclass(frozen=True)
class Tokens:
    """The feature maps of all levels, flattened and joined: S = sum of H_l * W_l positions.

    Attributes:
        values: (N, S, C) features.
        positions: (N, S, C) position embedding plus level embedding.
        padding_mask: (N, S) bool, True on padding.
        spatial_shapes: (H_l, W_l) of every level, as Python ints.
        valid_ratios: (N, L, 2) as (x, y): the share of each level's width and height that is image, in (0, 1].
    """

    values: Tensor
    positions: Tensor
    padding_mask: Tensor
    spatial_shapes: SpatialShapes
    valid_ratios: Tensor

    @property
    def level_start_index(self) -> tuple[int, ...]:
        """The position at which each level begins."""
        sizes = [height * width for height, width in self.spatial_shapes]
        return tuple(accumulate([0] + sizes[:-1]))


@dataclass(frozen=True)
class Queries:
    """What the decoder starts from.

    Attributes:
        content: (N, Q, C).
        positions: (N, Q, C), added to queries and keys of the self-attention and to the cross-attention's query.
        reference: (N, Q, 2) as (x, y), or (N, Q, 4) as (cx, cy, w, h), in [0, 1] of the image without padding; None
            in DETR, whose queries have no place.
        proposals: logits (N, S, classes) and boxes (N, S, 4) of the encoder's proposals, two-stage only.
    """

    content: Tensor
    positions: Tensor
    reference: Tensor | None
    proposals: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class MaskLogits:
    """Mask logits of the last layer's queries, computed where they are asked for: a loss needs the matched ones only.

    Attributes:
        select: image (M,) and query (M,), int64, to logits (M, h, w) that cover the padded image.
        padding_mask: (N, H, W) bool of the batch of images, True on padding.
        num_queries: Q.
    """

    select: Callable[[Tensor, Tensor], Tensor]
    padding_mask: Tensor
    num_queries: int

    def __call__(self, image: Tensor, query: Tensor) -> Tensor:
        """The logits (M, h, w) of chosen queries."""
        return self.select(image, query)

    def all(self) -> Tensor:
        """(N, Q, h, w).

        `MASKS_AT_ONCE` are computed together, so that without gradients the memory of no more is needed.
        """
        batch, device = len(self.padding_mask), self.padding_mask.device
        image = torch.arange(batch, device=device).repeat_interleave(self.num_queries)
        query = torch.arange(self.num_queries, device=device).repeat(batch)
        parts = zip(image.split(MASKS_AT_ONCE), query.split(MASKS_AT_ONCE), strict=True)
        return torch.cat([self(*part) for part in parts]).unflatten(0, (batch, self.num_queries))

    @cached_property
    def image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image without padding."""
        inside = ~self.padding_mask
        sizes = torch.stack((inside[:, :, 0].sum(1), inside[:, 0].sum(1)), dim=1).tolist()
        return [(height, width) for height, width in sizes]


@dataclass(frozen=True)
class Predictions:
    """What a detector returns.

    Attributes:
        logits: (layers, N, Q, classes), the last decoder layer last; one more with ``no_object``.
        boxes: (layers, N, Q, 4) as (cx, cy, w, h), normalised by the size of the image without padding.
        proposals: logits (N, S, classes) and boxes (N, S, 4) of the encoder, or None for one-stage models.
        masks: mask logits of the last layer's queries; ``masks.all()`` is (N, Q, h, w). None for models of boxes only.
        no_object: whether the last logit stands for "no object" (softmax, as in DETR) or all are classes (sigmoid).
    """

    logits: Tensor
    boxes: Tensor
    proposals: tuple[Tensor, Tensor] | None = None
    masks: MaskLogits | None = None
    no_object: bool = False

    @property
    def num_classes(self) -> int:
        """Classes of objects, "no object" not counted."""
        return self.logits.shape[-1] - int(self.no_object)


@dataclass(frozen=True)
class Targets:
    """Ground truth of one image.

    Attributes:
        labels: (T,) int64 contiguous class ids, 0 <= id < classes.
        boxes: (T, 4) float32 as (cx, cy, w, h), normalised by the image's size.
        masks: (T, h, w) bool at the image's size without padding, or None where there are none.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor | None = None

    def to(self, device: torch.device | str) -> "Targets":
        """The same targets on ``device``."""
        return Targets(
            self.labels.to(device, non_blocking=True),
            self.boxes.to(device, non_blocking=True),
            None if self.masks is None else self.masks.to(device, non_blocking=True),
        )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best score first.

    Attributes:
        boxes: (K, 4) as (x1, y1, x2, y2), in pixels of the size that was asked for, clipped to it.
        scores: (K,) in [0, 1].
        labels: (K,) int64 contiguous class ids.
        masks: (K, H, W) bool in the size that was asked for, or None for models of boxes only.
        queries: (K,) int64, whose detections they are; None where they are not of one prediction.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
    queries: Tensor | None = None
