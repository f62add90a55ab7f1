"""DETR's encoder and decoder (arXiv 2005.12872, section 3.2 and appendix A.3).

Position embeddings are added to queries and keys of every attention layer, never to values.
"""

import torch
from ms_deform_attn.layers import Dropout
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import MultiheadAttention
from .layers import BoxHead, FeedForward, LayerConfig, at_least_float32, build_class_head, xavier_init
from .structures import Queries, Tokens


class TransformerEncoderLayer(nn.Module):
    """Self-attention and a feed-forward network."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = MultiheadAttention(config.d_model, config.num_heads, config.dropout)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps x (N, S, C) to (N, S, C)."""
        if self.pre_norm:
            return self.ffn(x + self._self_attention(self.norm(x), tokens))
        return self.ffn(self.norm(x + self._self_attention(x, tokens)))

    def _self_attention(self, x: Tensor, tokens: Tokens) -> Tensor:
        query = x + tokens.positions
        attended = self.self_attn(query, query, x, key_padding_mask=tokens.attention_mask)
        return self.dropout(attended)


class TransformerEncoder(nn.Module):
    """Stack of encoder layers, with a final norm for pre-norm layers.

    Args:
        layer: configuration of the layers.
        num_layers: number of layers.
        activation_checkpointing: whether to recompute layers in the backward pass instead of storing activations.
    """

    def __init__(self, layer: LayerConfig, num_layers: int = 6, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerEncoderLayer(layer) for _ in range(num_layers))
        self.norm = nn.LayerNorm(layer.d_model) if layer.pre_norm else None
        self.activation_checkpointing = activation_checkpointing
        xavier_init(self.layers)

    def forward(self, tokens: Tokens) -> Tensor:
        """Maps tokens to memory (N, S, C)."""
        memory = tokens.values
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                memory = checkpoint(layer, memory, tokens, use_reentrant=False)
            else:
                memory = layer(memory, tokens)
        return memory if self.norm is None else self.norm(memory)


class TransformerDecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to memory and a feed-forward network."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        d_model, num_heads = config.d_model, config.num_heads
        self.pre_norm = config.pre_norm
        self.self_attn = MultiheadAttention(d_model, num_heads, config.dropout)
        self.self_dropout = Dropout(config.dropout)
        self.self_norm = nn.LayerNorm(d_model)
        self.cross_attn = MultiheadAttention(d_model, num_heads, config.dropout)
        self.cross_dropout = Dropout(config.dropout)
        self.cross_norm = nn.LayerNorm(d_model)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, positions: Tensor, memory: Tensor, tokens: Tokens) -> Tensor:
        """Maps x, positions (N, Q, C) and memory (N, S, C) to (N, Q, C)."""
        if self.pre_norm:
            x = x + self._self_attention(self.self_norm(x), positions)
            x = x + self._cross_attention(self.cross_norm(x), positions, memory, tokens)
        else:
            x = self.self_norm(x + self._self_attention(x, positions))
            x = self.cross_norm(x + self._cross_attention(x, positions, memory, tokens))
        return self.ffn(x)

    def _self_attention(self, x: Tensor, positions: Tensor) -> Tensor:
        query = x + positions
        return self.self_dropout(self.self_attn(query, query, x))

    def _cross_attention(self, x: Tensor, positions: Tensor, memory: Tensor, tokens: Tokens) -> Tensor:
        key, mask = memory + tokens.positions, tokens.attention_mask
        attended = self.cross_attn(x + positions, key, memory, key_padding_mask=mask)
        return self.cross_dropout(attended)


class TransformerDecoder(nn.Module):
    """Stack of decoder layers; a norm and prediction heads are shared by all layers.

    Args:
        layer: configuration of the layers.
        num_layers: number of layers, at least 1.
        num_classes: number of classes.
        no_object: whether to add a logit for "no object", for softmax classification.
    """

    def __init__(
        self, layer: LayerConfig, num_layers: int = 6, num_classes: int = 80, *, no_object: bool = True
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerDecoderLayer(layer) for _ in range(num_layers))
        self.norm = nn.LayerNorm(layer.d_model)
        # Lists of one head, so that parameter names are the same as in DeformableDecoder.
        self.class_heads = nn.ModuleList([build_class_head(layer.d_model, num_classes, no_object=no_object)])
        self.box_heads = nn.ModuleList([BoxHead(layer.d_model, size_bias=None)])
        xavier_init(self.layers)

    def forward(self, queries: Queries, memory: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Decodes queries.

        Returns:
            logits (layers, N, Q, classes), boxes (layers, N, Q, 4) as normalized (cx, cy, w, h), and normalized hidden
            states (N, Q, C) of the last layer.
        """
        x, hidden = queries.content, []
        for layer in self.layers:
            x = layer(x, queries.positions, memory, tokens)
            hidden.append(self.norm(x))
        states = torch.stack(hidden)
        boxes = at_least_float32(self.box_heads[0](states)).sigmoid()
        return self.class_heads[0](states), boxes, states[-1]
