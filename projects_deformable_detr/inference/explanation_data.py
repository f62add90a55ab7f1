"""Tensors of an explanation: attention of detections and points, boxes of all layers, proposals and gradients."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from ..data.images import Pixels
from ..errors import ArgumentError
from ..explain import DenseAttention, SampledAttention
from .detections import Detections


class Points(NamedTuple):
    """Sampling points of a query in one or more decoder or encoder layers.

    Attributes:
        locations: (P, 2) as (x, y) in pixels of the image.
        weights: (P,) attention weights in [0, 1]; the sum over a layer and head is 1.
        layers, heads, levels: (P,) int64 indices from 0.
    """

    locations: Tensor
    weights: Tensor
    layers: Tensor
    heads: Tensor
    levels: Tensor


class Proposals(NamedTuple):
    """Proposals that became queries of a two-stage model, best first.

    Attributes:
        boxes: (Q, 4) as (x1, y1, x2, y2) in pixels.
        scores: (Q,) objectness in [0, 1].
    """

    boxes: Tensor
    scores: Tensor


@dataclass(frozen=True, eq=False)
class ExplanationData:
    """Attention of D detections and P points in one image, as CPU tensors in pixels of the original image.

    Attributes:
        detections: the explained detections, best first or in the requested order.
        indices: (D,) int64, index of each among all detections in the image, best first.
        queries: (D,) int64, query of each detection; the token in the encoder-only detector.
        boxes: (layers, D, 4) as (x1, y1, x2, y2), boxes of the queries after each decoder layer, not clipped.
        attention: decoder's cross-attention of the D queries; encoder's self-attention in the encoder-only detector.
        points: (P, 2) as (x, y).
        point_attention: encoder's self-attention of the tokens nearest to the points: row p * L + l is the token of
            point p on level l. None without points.
        proposals: two-stage models only.
        gradients: (D, 3, h, w) of `projects_deformable_detr.explain.input_gradients` at the size of the model's input;
            None if not requested.
        spatial_shapes: (h, w) of each level.
    """

    detections: Detections
    indices: Tensor
    queries: Tensor
    boxes: Tensor
    attention: SampledAttention | DenseAttention
    points: Tensor
    point_attention: SampledAttention | DenseAttention | None
    proposals: Proposals | None
    gradients: Tensor | None
    spatial_shapes: tuple[tuple[int, int], ...]

    @cached_property
    def pixels(self) -> Pixels:
        """Pixels (H, W, 3) uint8 of the image in RGB, which are read once."""
        assert self.detections.picture is not None
        return self.detections.picture.pixels()

    def sampling_points(self, index: int, layer: int | None = -1, *, of_point: bool = False) -> Points:
        """Returns the sampling points of a detection, or of a row of ``point_attention``.

        Args:
            index: index of the detection, or of the row with ``of_point``.
            layer: index of the layer, negative from the last; None for all layers.
            of_point: whether to return points of the encoder for ``points``.

        Raises:
            ArgumentError: if there is no such detection or layer, or for DETR, which attends to all tokens.
        """
        attention = self.point_attention if of_point else self.attention
        if not isinstance(attention, SampledAttention):
            problem = "has no points" if attention is None else "of DETR covers all tokens and has no sampling points"
            raise ArgumentError("attention", problem)
        check_index("index", index, attention.weights.shape[1])
        count, _, heads, levels, points = attention.weights.shape
        rows = range(count)
        if layer is not None:
            check_index("layer", layer, count)
            rows = range(count)[layer : layer + 1 or None]
        weights = attention.weights[list(rows), index]
        sizes = len(rows), heads, levels, points
        layer_of, head_of = torch.tensor(rows).view(-1, 1, 1, 1), torch.arange(heads).view(-1, 1, 1)
        indices = layer_of, head_of, attention.levels[index][:, None]
        return Points(
            attention.locations[list(rows), index].reshape(-1, 2),
            weights.flatten(),
            *(part.expand(sizes).flatten() for part in indices),
        )


def check_index(name: str, index: int, count: int) -> None:
    """Raises `ArgumentError` for an index of ``count`` items, negative from the last, that does not exist."""
    if not isinstance(index, SupportsIndex) or not -count <= index < count:
        raise ArgumentError(name, f"must be from {-count} to {count - 1}, got {index}")
