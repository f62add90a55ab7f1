"""DETR's transformer (arXiv 2005.12872, section 3.2 and appendix A.3): attention to every position.

Positions are added to queries and keys of every attention layer, never to values.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .heads import BoxHead, FeedForward, at_least_float32
from .structures import Queries, Tokens


class TransformerEncoderLayer(nn.Module):
    """Self-attention, then a feed-forward network.

    Args:
        channels: C.
        heads: attention heads; divides C.
        hidden: width of the feed-forward network.
        dropout: probability, of attention weights too.
        activation: ``"relu"`` or ``"gelu"``.
        pre_norm: norms before each part instead of after it.
    """

    def __init__(
        self, channels: int, heads: int, hidden: int, dropout: float, activation: str, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden, dropout, activation, pre_norm)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """x (N, S, C) to (N, S, C)."""
        if self.pre_norm:
            return self.ffn(x + self._attend(self.norm(x), tokens))
        return self.ffn(self.norm(x + self._attend(x, tokens)))

    def _attend(self, x: Tensor, tokens: Tokens) -> Tensor:
        query = x + tokens.positions
        attended = self.self_attn(query, query, x, key_padding_mask=tokens.padding_mask, need_weights=False)[0]
        return self.dropout(attended)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers.

    Args:
        layers: the layers, in order.
        norm: after the last layer; pre-norm layers need it, others have their own.
        recompute: activation checkpointing, which stores each layer's input only and recomputes the rest.
    """

    def __init__(
        self, layers: list[TransformerEncoderLayer], norm: nn.Module | None = None, recompute: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.recompute = recompute

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens to memory (N, S, C)."""
        memory = tokens.values
        for layer in self.layers:
            if self.recompute and self.training:
                memory = checkpoint(layer, memory, tokens, use_reentrant=False)
            else:
                memory = layer(memory, tokens)
        return memory if self.norm is None else self.norm(memory)


class TransformerDecoderLayer(nn.Module):
    """Self-attention among queries, attention of each to all positions, then a feed-forward network.

    Args: as `TransformerEncoderLayer`.
    """

    def __init__(
        self, channels: int, heads: int, hidden: int, dropout: float, activation: str, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.self_dropout = nn.Dropout(dropout)
        self.self_norm = nn.LayerNorm(channels)
        self.cross_attn = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.cross_dropout = nn.Dropout(dropout)
        self.cross_norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden, dropout, activation, pre_norm)

    def forward(self, x: Tensor, positions: Tensor, memory: Tensor, tokens: Tokens) -> Tensor:
        """x, positions (N, Q, C), memory (N, S, C) to (N, Q, C)."""
        if self.pre_norm:
            x = x + self._among_queries(self.self_norm(x), positions)
            x = x + self._to_memory(self.cross_norm(x), positions, memory, tokens)
        else:
            x = self.self_norm(x + self._among_queries(x, positions))
            x = self.cross_norm(x + self._to_memory(x, positions, memory, tokens))
        return self.ffn(x)

    def _among_queries(self, x: Tensor, positions: Tensor) -> Tensor:
        query = x + positions
        return self.self_dropout(self.self_attn(query, query, x, need_weights=False)[0])

    def _to_memory(self, x: Tensor, positions: Tensor, memory: Tensor, tokens: Tokens) -> Tensor:
        key, mask = memory + tokens.positions, tokens.padding_mask
        attended = self.cross_attn(x + positions, key, memory, key_padding_mask=mask, need_weights=False)[0]
        return self.cross_dropout(attended)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers, with one norm and one pair of heads for what every layer says.

    Args:
        layers: the layers, in order.
        class_head: (…, C) to (…, logits).
        box_head: (…, C) to (…, 4), boxes as (cx, cy, w, h) before the sigmoid.
    """

    def __init__(self, layers: list[TransformerDecoderLayer], class_head: nn.Linear, box_head: BoxHead) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(class_head.in_features)
        # Lists of one, as in Deformable DETR's decoder, so that weights are named alike.
        self.class_heads = nn.ModuleList([class_head])
        self.box_heads = nn.ModuleList([box_head])

    def forward(self, queries: Queries, memory: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (layers, N, Q, logits), boxes (layers, N, Q, 4) as normalised (cx, cy, w, h), and the last layer's
        hidden states (N, Q, C)."""
        x, hidden = queries.content, []
        for layer in self.layers:
            x = layer(x, queries.positions, memory, tokens)
            hidden.append(self.norm(x))
        states = torch.stack(hidden)
        boxes = at_least_float32(self.box_heads[0](states)).sigmoid()
        return self.class_heads[0](states), boxes, states[-1]
