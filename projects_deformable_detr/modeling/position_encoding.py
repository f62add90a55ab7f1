"""Position embeddings of feature maps (sine or learned) and of boxes (sine)."""

import math

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, UserError

_TEMPERATURE = 10000.0


class SinePositionEmbedding(nn.Module):
    """Two-dimensional sine embedding (arXiv 2005.12872, appendix A.4), normalized by the image without padding.

    Args:
        d_model: C, a multiple of 4; the first half encodes y, the second half x.
        centered: whether to measure positions at pixel centers, as in Deformable DETR. DETR counts pixels from 1.
    """

    def __init__(self, d_model: int, centered: bool = True) -> None:
        super().__init__()
        if d_model % 4:
            raise ArgumentError("d_model", f"must be a multiple of 4 for the sine embedding, got {d_model}")
        self.d_model = d_model
        self.offset = 0.5 if centered else 0.0

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Maps a mask (N, H, W), True on padding, to an embedding (N, C, H, W)."""
        inside = ~padding_mask
        y = inside.cumsum(1, dtype=torch.float32)
        x = inside.cumsum(2, dtype=torch.float32)
        # Scaled to [0, 2 pi] by the last row and column, which contain the size of the image without padding.
        y = (y - self.offset) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = (x - self.offset) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        wavelengths = _wavelengths(self.d_model // 2, x)
        y_embedding = _interleaved_sine(y[..., None] / wavelengths)
        x_embedding = _interleaved_sine(x[..., None] / wavelengths)
        return torch.cat((y_embedding, x_embedding), dim=-1).permute(0, 3, 1, 2)


class LearnedPositionEmbedding(nn.Module):
    """Learned embedding of every column and row (arXiv 2005.12872, table 3).

    Args:
        d_model: C, even; the first half encodes x, the second half y.
        size: maximum number of rows and columns of a feature map.
    """

    def __init__(self, d_model: int, size: int = 50) -> None:
        super().__init__()
        if d_model % 2:
            raise ArgumentError("d_model", f"must be even for the learned embedding, got {d_model}")
        self.column = nn.Parameter(torch.rand(size, d_model // 2))
        self.row = nn.Parameter(torch.rand(size, d_model // 2))

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Maps a mask (N, H, W) to an embedding (N, C, H, W) of absolute positions, the same for every image.

        Raises:
            UserError: if the feature map is larger than the embedding.
        """
        batch, height, width = padding_mask.shape
        if max(height, width) > len(self.row):
            raise UserError(
                f"a feature map of {height} x {width} is larger than the {len(self.row)} learned positions: increase "
                "`position_embedding_size`, or set `position_embedding=sine`"
            )
        x = self.column[:width].expand(height, -1, -1)
        y = self.row[:height, None].expand(-1, width, -1)
        return torch.cat((x, y), dim=-1).permute(2, 0, 1).expand(batch, -1, -1, -1)


def sine_box_embedding(boxes: Tensor, features: int) -> Tensor:
    """Concatenates the sine embeddings of all coordinates of boxes (N, Q, 4) in [0, 1] to (N, Q, 4 * features)."""
    angles = boxes[..., None] * (2 * math.pi) / _wavelengths(features, boxes)
    return _interleaved_sine(angles).flatten(-2)


def _wavelengths(features: int, like: Tensor) -> Tensor:
    """Returns (features,) wavelengths, in pairs: 10000^(2 * floor(i / 2) / features)."""
    index = torch.arange(features, dtype=torch.float32, device=like.device)
    return _TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / features)


def _interleaved_sine(angles: Tensor) -> Tensor:
    """Maps angles (…, F) to (…, F): sines at even and cosines at odd indices."""
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)
