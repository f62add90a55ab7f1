"""`Explanation`: what a detector attended to in an image, as tensors, pictures and an interactive page."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from ..errors import ArgumentError
from ..explain import DenseAttention, Recording, SampledAttention
from ..modeling import Predictions
from ..modeling.queries import proposal_anchors
from . import explanation_figures as figures
from .detections import Detections
from .explanation_data import ExplanationData, Proposals
from .explanation_page import render_page


class Explanation(ExplanationData):
    """`ExplanationData` with pictures and a page."""

    def draw(self, index: int, *, layer: int = -1, by: str | None = None) -> Image.Image:
        """Draws the attention of a detection: arXiv 2010.04159, figure 6, or arXiv 2005.12872, figure 6.

        Args:
            index: index of the detection.
            layer: index of the layer, negative from the last; ignored with ``by="layer"``.
            by: None for one picture of all heads and levels; ``"layer"``, ``"head"`` or ``"level"`` for a picture of
                each, in a grid.

        Raises:
            ArgumentError: for an invalid argument.
        """
        return figures.draw_attention(self, index, layer, by)

    def draw_point(self, index: int, *, layer: int = -1, by: str | None = None) -> Image.Image:
        """Draws the encoder's self-attention of a row of ``point_attention``; see `draw`.

        For DETR, this is figure 3 of arXiv 2005.12872.
        """
        return figures.draw_attention(self, index, layer, by, of_point=True)

    def draw_boxes(self) -> Image.Image:
        """Draws the boxes of the detections after each decoder layer."""
        return figures.draw_boxes(self)

    def draw_proposals(self, count: int = 50) -> Image.Image:
        """Draws the best proposals of a two-stage model, colored by objectness.

        Raises:
            ArgumentError: for models without proposals.
        """
        return figures.draw_proposals(self, count)

    def draw_gradients(self, index: int) -> Image.Image:
        """Draws the gradient norms of center, size and score of a detection (arXiv 2010.04159, figure 5).

        Raises:
            ArgumentError: if the explanation has no gradients.
        """
        return figures.draw_gradients(self, index)

    def page(self) -> str:
        """Returns an interactive HTML page, which contains the image and all points and needs no network."""
        return render_page(self)

    def save_page(self, path: str | Path) -> None:
        """Writes `page` to a file."""
        Path(path).write_text(self.page(), encoding="utf-8", errors="replace")  # file names may be any bytes


def check_points(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> Tensor:
    """Returns points (P, 2) of an image of size (H, W); raises `ArgumentError` if one is outside."""
    try:
        found = torch.tensor([(float(x), float(y)) for x, y in points]).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise ArgumentError("points", f"must be pairs (x, y) in pixels, got {points!r}") from error
    if not ((found >= 0) & (found <= torch.tensor(size[::-1]))).all():
        raise ArgumentError("points", f"must be inside the image of {size[1]} x {size[0]} pixels, got {points}")
    return found


def check_rows(rows: Sequence[int], count: int, min_score: float) -> Tensor:
    """Returns indices of ``count`` detections without duplicates; raises `ArgumentError` for invalid ones."""
    if isinstance(rows, Sequence) and rows and not count:
        problem = (
            f"cannot be chosen: there are no detections with a score of at least {min_score:g}; lower the threshold"
        )
        raise ArgumentError("detections", problem)
    if not isinstance(rows, Sequence) or any(type(row) is not int or not 0 <= row < count for row in rows):
        raise ArgumentError("detections", f"must be indices below {count}, the number of detections, got {rows!r}")
    return torch.tensor(list(dict.fromkeys(rows)), dtype=torch.int64)


@torch.no_grad()
def explain(
    recording: Recording,
    predictions: Predictions,
    detections: Detections,
    indices: Tensor,
    queries: Tensor,
    points: Tensor,
    gradients: Tensor | None,
) -> Explanation:
    """Computes the explanation of one image.

    Args:
        recording: inputs of the attention modules.
        predictions: predictions of the same forward pass.
        detections: detections to explain.
        indices: (D,) int64, see `ExplanationData`.
        queries: (D,) int64, queries of the detections.
        points: (P, 2) as (x, y) in pixels.
        gradients: see `ExplanationData`.
    """
    size = detections.size
    scale = predictions.boxes.new_tensor(size[::-1])
    corners = box_convert(predictions.boxes[:, 0, queries].float(), "cxcywh", "xyxy") * scale.repeat(2)
    proposals = None
    if predictions.proposals is not None:
        proposals = _best_proposals(recording, *predictions.proposals, scale)
    point_attention = None
    if len(points):
        point_attention = recording.of_tokens(recording.tokens_at(points.to(scale) / scale), size)
    return Explanation(
        detections,
        indices,
        queries.cpu(),
        corners.cpu(),
        _to_cpu(recording.of_queries(queries, size)),
        points,
        None if point_attention is None else _to_cpu(point_attention),
        proposals,
        None if gradients is None else gradients.cpu(),
        recording.tokens.spatial_shapes,
    )


def _best_proposals(recording: Recording, logits: Tensor, boxes: Tensor, scale: Tensor) -> Proposals:
    """Returns the proposals that `ProposalQueries` selects."""
    assert recording.queries is not None
    scores = logits[0, :, 0].float().masked_fill(~proposal_anchors(recording.tokens)[1][0], -torch.inf)
    scores, rows = scores.topk(recording.queries.content.shape[1])
    rows, scores = rows[scores.isfinite()], scores[scores.isfinite()]
    corners = box_convert(boxes[0, rows].float(), "cxcywh", "xyxy") * scale.repeat(2)
    return Proposals(corners.cpu(), scores.sigmoid().cpu())


def _to_cpu(attention: SampledAttention | DenseAttention) -> SampledAttention | DenseAttention:
    return type(attention)(**{name: value.cpu() for name, value in vars(attention).items()})
