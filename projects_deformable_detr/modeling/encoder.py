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
        x, y = cell_centres(height, width, ratios)  # (H_l * W_l,)
        points.append(torch.stack((x / (ratios[:, level, :1] * width), y / (ratios[:, level, 1:] * height)), dim=-1))
    return torch.cat(points, dim=1)[:, :, None] * ratios[:, None]


def cell_centres(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """x and y (H * W,) of the centres of a level's cells, in cells, row by row; dtype and device of ``like``."""
    # Sizes stay Python numbers: a tensor made of them would have to be copied to the device, and waited for.
    y = torch.arange(height, device=like.device, dtype=like.dtype) + 0.5
    x = torch.arange(width, device=like.device, dtype=like.dtype) + 0.5
    return x.repeat(height), y.repeat_interleave(width)


class EncoderLayer(nn.Module):
    """Self-attention to sampled points, then a feed-forward network; norms come after.

    Args:
        channels, heads, levels, points: C, M, L, K of the attention (arXiv 2010.04159, equation 3).
        hidden: width of the feed-forward network.
        dropout: probability.
        activation: ``"relu"`` or ``"gelu"``.
        multi_scale: points of every level; False: of the token's own level alone, with the same weights on all
            levels, so that nothing passes between levels (table 2 of the paper, "MS attention").
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        levels: int,
        points: int,
        hidden: int,
        dropout: float,
        activation: str,
        multi_scale: bool = True,
    ) -> None:
        super().__init__()
        self.multi_scale = multi_scale
        self.self_attn = MSDeformAttn(channels, levels if multi_scale else 1, heads, points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden, dropout, activation)

    def forward(self, x: Tensor, reference_points: Tensor, tokens: Tokens) -> Tensor:
        """x (N, S, C), reference_points (N, S, L, 2) to (N, S, C)."""
        attend = self._attend if self.multi_scale else self._attend_own_level
        attended = attend(x, reference_points, tokens)
        return self.ffn(self.norm(x + self.dropout(attended)))

    def _attend(self, x: Tensor, reference_points: Tensor, tokens: Tokens) -> Tensor:
        return self.self_attn(
            x + tokens.positions,
            reference_points,
            x,
            tokens.spatial_shapes,
            tokens.level_start_index,
            tokens.padding_mask,
        )

    def _attend_own_level(self, x: Tensor, reference_points: Tensor, tokens: Tokens) -> Tensor:
        query, parts = x + tokens.positions, []
        for level, (start, size) in enumerate(zip(tokens.level_start_index, tokens.spatial_shapes, strict=True)):
            rows = slice(start, start + size[0] * size[1])
            own = reference_points[:, rows, level : level + 1]
            parts.append(self.self_attn(query[:, rows], own, x[:, rows], [size], [0], tokens.padding_mask[:, rows]))
        return torch.cat(parts, dim=1)


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
