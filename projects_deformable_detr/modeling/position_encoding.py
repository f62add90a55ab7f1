"""Sine position embeddings, of grids and of boxes."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

_TEMPERATURE = 10000.0


def _frequencies(features: int, like: Tensor) -> Tensor:
    """(features,) wavelengths, in pairs: 10000^(2 * floor(i / 2) / features)."""
    index = torch.arange(features, dtype=torch.float32, device=like.device)
    return _TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / features)


def _interleaved_sine(angles: Tensor) -> Tensor:
    """(…, F) angles to (…, F): sine at even places, cosine at odd ones."""
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


class SinePositionEmbedding(nn.Module):
    """The 2-D sine embedding of DETR (arXiv 2005.12872, appendix A.4), counted on the image without padding.

    Args:
        channels: C of the embedding, a multiple of 4; the first half tells y, the second x.
        centred: count from pixel centres, as Deformable DETR does; DETR counts from 1.
    """

    def __init__(self, channels: int, centred: bool = True) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"the sine embedding needs a multiple of 4 channels, got {channels}")
        self.channels = channels
        self.offset = 0.5 if centred else 0.0

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Mask (N, H, W), True on padding, to an embedding (N, C, H, W)."""
        inside = ~padding_mask
        y = inside.cumsum(1, dtype=torch.float32)
        x = inside.cumsum(2, dtype=torch.float32)
        # Scaled to [0, 2 pi] by the last row and column, so that positions are relative to the image.
        y = (y - self.offset) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = (x - self.offset) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        wavelengths = _frequencies(self.channels // 2, x)
        y_embedding = _interleaved_sine(y[..., None] / wavelengths)
        x_embedding = _interleaved_sine(x[..., None] / wavelengths)
        return torch.cat((y_embedding, x_embedding), dim=-1).permute(0, 3, 1, 2)


class LearnedPositionEmbedding(nn.Module):
    """An embedding for every column and row, DETR's alternative to sines (arXiv 2005.12872, table 3).

    Args:
        channels: C, even; the first half tells x, the second y.
        size: the most rows and columns that a feature map may have.
    """

    def __init__(self, channels: int, size: int = 50) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"the learned embedding needs an even number of channels, got {channels}")
        self.column = nn.Parameter(torch.rand(size, channels // 2))
        self.row = nn.Parameter(torch.rand(size, channels // 2))

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Mask (N, H, W) to an embedding (N, C, H, W), counted from the corner, the same for every image.

        Raises:
            UserError: if the map is larger than the embedding.
        """
        batch, height, width = padding_mask.shape
        if max(height, width) > len(self.row):
            raise UserError(
                f"a feature map of {height} x {width} is larger than the {len(self.row)} learned positions: raise "
                "MODEL.DETR.POSITION_EMBEDDING_SIZE, or set MODEL.DETR.POSITION_EMBEDDING sine"
            )
        x = self.column[:width].expand(height, -1, -1)
        y = self.row[:height, None].expand(-1, width, -1)
        return torch.cat((x, y), dim=-1).permute(2, 0, 1).expand(batch, -1, -1, -1)


def build_position_embedding(detr: Any, centred: bool) -> nn.Module:
    """The embedding that ``cfg.MODEL.DETR`` describes; ``centred`` as in `SinePositionEmbedding`.

    Raises:
        UserError: for a ``POSITION_EMBEDDING`` other than ``"sine"`` and ``"learned"``, or a size below 1.
    """
    if detr.POSITION_EMBEDDING == "sine":
        return SinePositionEmbedding(detr.HIDDEN_DIM, centred)
    if detr.POSITION_EMBEDDING != "learned":
        raise UserError(f"MODEL.DETR.POSITION_EMBEDDING {detr.POSITION_EMBEDDING!r}: choose sine or learned")
    if detr.POSITION_EMBEDDING_SIZE < 1:
        raise UserError(f"MODEL.DETR.POSITION_EMBEDDING_SIZE must be at least 1, got {detr.POSITION_EMBEDDING_SIZE}")
    return LearnedPositionEmbedding(detr.HIDDEN_DIM, detr.POSITION_EMBEDDING_SIZE)


def sine_box_embedding(boxes: Tensor, features: int) -> Tensor:
    """Boxes (N, Q, 4) in [0, 1] to (N, Q, 4 * features): each coordinate's sine embedding, in turn.

    The queries of the two-stage model are made from it (arXiv 2010.04159, appendix A.4).
    """
    angles = boxes[..., None] * (2 * math.pi) / _frequencies(features, boxes)
    return _interleaved_sine(angles).flatten(-2)
