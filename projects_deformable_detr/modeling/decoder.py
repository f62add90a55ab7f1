"""The deformable decoder (arXiv 2010.04159, section 4.1), with optional iterative box refinement (4.2)."""

import torch
from ms_deform_attn import MSDeformAttn
from torch import Tensor, nn

from .heads import BoxHead, FeedForward, apply_box_delta
from .structures import Queries, Tokens


class DecoderLayer(nn.Module):
    """Self-attention among queries, attention of each to sampled points, then a feed-forward network."""

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
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.self_dropout = nn.Dropout(dropout)
        self.self_norm = nn.LayerNorm(channels)
        self.cross_attn = MSDeformAttn(channels, levels, heads, points)
        self.cross_dropout = nn.Dropout(dropout)
        self.cross_norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden, dropout, activation)

    def forward(self, x: Tensor, positions: Tensor, reference_points: Tensor, memory: Tensor, tokens: Tokens) -> Tensor:
        """x, positions (N, Q, C), reference_points (N, Q, L, 2 or 4), memory (N, S, C) to (N, Q, C)."""
        query = x + positions
        attended = self.self_attn(query, query, x, need_weights=False)[0]
        x = self.self_norm(x + self.self_dropout(attended))
        sampled = self.cross_attn(
            x + positions,
            reference_points,
            memory,
            tokens.spatial_shapes,
            tokens.level_start_index,
            tokens.padding_mask,
        )
        x = self.cross_norm(x + self.cross_dropout(sampled))
        return self.ffn(x)


class Decoder(nn.Module):
    """A stack of decoder layers and their heads; it returns what every layer predicts.

    Args:
        layers: the layers, in order.
        class_heads: one head that all layers share, or one for each.
        box_heads: likewise.
        refine: let each layer's boxes, without gradient, be the next layer's references (eq. in 4.2).
    """

    def __init__(
        self,
        layers: list[DecoderLayer],
        class_heads: list[nn.Linear],
        box_heads: list[BoxHead],
        refine: bool,
    ) -> None:
        super().__init__()
        for name, heads in (("class_heads", class_heads), ("box_heads", box_heads)):
            if len(heads) not in (1, len(layers)):
                raise ValueError(f"{name}: give 1 or {len(layers)} (one per layer), got {len(heads)}")
        self.layers = nn.ModuleList(layers)
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)
        self.refine = refine

    def forward(self, queries: Queries, memory: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (layers, N, Q, classes), boxes (layers, N, Q, 4) as normalised (cx, cy, w, h), and the last layer's
        hidden states (N, Q, C)."""
        x, reference = queries.content, queries.reference
        assert reference is not None
        logits, boxes = [], []
        for index, layer in enumerate(self.layers):
            x = layer(x, queries.positions, _on_levels(reference, tokens.valid_ratios), memory, tokens)
            layer_boxes = apply_box_delta(self._head(self.box_heads, index)(x), reference)
            logits.append(self._head(self.class_heads, index)(x))
            boxes.append(layer_boxes)
            if self.refine:
                reference = layer_boxes.detach()
        return torch.stack(logits), torch.stack(boxes), x

    @staticmethod
    def _head(heads: nn.ModuleList, index: int) -> nn.Module:
        return heads[index if len(heads) > 1 else 0]


def _on_levels(reference: Tensor, valid_ratios: Tensor) -> Tensor:
    """References (N, Q, 2 or 4) of the image to (N, Q, L, 2 or 4) of each level, padding included."""
    scale = valid_ratios if reference.shape[-1] == 2 else valid_ratios.repeat(1, 1, 2)
    return reference[:, :, None] * scale[:, None]
