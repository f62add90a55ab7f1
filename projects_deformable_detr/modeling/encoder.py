"""The deformable encoder (arXiv 2010.04159, section 4.1, "Deformable Transformer Encoder")."""

import torch
from ms_deform_attn import MSDeformAttn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .heads import FeedForward
from .structures import Tokens


def encoder_reference_points(tokens: Tokens) -> Tensor:
    """(N, S, L, 2) as (x, y): every token's own place, told on every level, padding included.

    Points are the centres of the tokens' cells, normalised by the image without padding and scaled onto each
    level by its valid ratio.
    """
    ratios = tokens.valid_ratios
    points = []
    for level, (height, width) in enumerate(tokens.spatial_shapes):
        y = torch.arange(height, device=ratios.device, dtype=ratios.dtype) + 0.5
        x = torch.arange(width, device=ratios.device, dtype=ratios.dtype) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        grid = torch.stack((grid_x, grid_y), dim=-1).flatten(0, 1)  # (H_l * W_l, 2)
        size = torch.tensor((width, height), device=ratios.device, dtype=ratios.dtype)
        points.append(grid[None] / (ratios[:, level, None] * size))
    return torch.cat(points, dim=1)[:, :, None] * ratios[:, None]


class EncoderLayer(nn.Module):
    """Self-attention to sampled points of every level, then a feed-forward network; norms come after."""

    def __init__(
        self,
        channels: int,
        heads: int,
        levels: int,
        points: int,
        hidden: int,
        dropout: float,
        activation: str,
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(channels, levels, heads, points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden, dropout, activation)

    def forward(self, x: Tensor, reference_points: Tensor, tokens: Tokens) -> Tensor:
        """x (N, S, C), reference_points (N, S, L, 2) to (N, S, C)."""
        attended = self.self_attn(
            x + tokens.positions,
            reference_points,
            x,
            tokens.spatial_shapes,
            tokens.level_start_index,
            tokens.padding_mask,
        )
        return self.ffn(self.norm(x + self.dropout(attended)))


class Encoder(nn.Module):
    """A stack of encoder layers.

    Args:
        layers: the layers, in order.
        recompute: activation checkpointing, which stores each layer's input only and recomputes the rest.
    """

    def __init__(self, layers: list[EncoderLayer], recompute: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.recompute = recompute

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens to memory (N, S, C)."""
        reference_points = encoder_reference_points(tokens)
        memory = tokens.values
        for layer in self.layers:
            if self.recompute and self.training:
                memory = checkpoint(layer, memory, reference_points, tokens, use_reentrant=False)
            else:
                memory = layer(memory, reference_points, tokens)
        return memory
