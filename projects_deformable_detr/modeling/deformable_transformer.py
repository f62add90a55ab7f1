"""Deformable DETR's encoder and decoder (arXiv 2010.04159, section 4)."""

import torch
from ms_deform_attn import MSDeformAttn
from ms_deform_attn.layers import Dropout
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import MultiheadAttention
from .layers import INVALID, BoxHead, FeedForward, LayerConfig, apply_box_delta, build_class_head, xavier_init
from .structures import Queries, Tokens

# Boxes around a reference point start at sigmoid(-2) = 12 % of the image.
_SIZE_BIAS = -2.0


class DeformableEncoderLayer(nn.Module):
    """Multi-scale deformable self-attention and a feed-forward network.

    Args:
        config: layer configuration.
        multi_scale: whether to attend to all levels. If False, each token attends to its own level only, and levels
            share weights (table 2 of the paper, "MS attention").
    """

    def __init__(self, config: LayerConfig, multi_scale: bool = True) -> None:
        super().__init__()
        self.multi_scale = multi_scale
        num_levels = config.num_levels if multi_scale else 1
        self.self_attn = MSDeformAttn(config.d_model, num_levels, config.num_heads, config.num_points)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, reference_points: Tensor, tokens: Tokens) -> Tensor:
        """Maps x (N, S, C) with reference_points (N, S, L, 2) to (N, S, C)."""
        query, shapes, starts = x + tokens.positions, tokens.spatial_shapes, tokens.level_start_index
        if self.multi_scale:
            sampled = self.self_attn(query, reference_points, x, shapes, starts, tokens.attention_mask)
        else:
            sampled = self._attend_own_level(query, reference_points, x, tokens)
        return self.ffn(self.norm(x + self.dropout(sampled)))

    def _attend_own_level(self, query: Tensor, reference_points: Tensor, x: Tensor, tokens: Tokens) -> Tensor:
        outputs = []
        for level, (start, size) in enumerate(zip(tokens.level_start_index, tokens.spatial_shapes, strict=True)):
            rows = slice(start, start + size[0] * size[1])
            points = reference_points[:, rows, level : level + 1]
            mask = None if tokens.attention_mask is None else tokens.attention_mask[:, rows]
            outputs.append(self.self_attn(query[:, rows], points, x[:, rows], [size], [0], mask))
        return torch.cat(outputs, dim=1)


class DeformableEncoder(nn.Module):
    """Stack of encoder layers; the reference point of a token on every level is its center.

    Args:
        layer: configuration of the layers.
        num_layers: number of layers.
        multi_scale: see `DeformableEncoderLayer`.
        activation_checkpointing: whether to recompute layers in the backward pass instead of storing activations.
    """

    def __init__(
        self,
        layer: LayerConfig,
        num_layers: int = 6,
        *,
        multi_scale: bool = True,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DeformableEncoderLayer(layer, multi_scale) for _ in range(num_layers))
        self.activation_checkpointing = activation_checkpointing
        xavier_init(self.layers)

    def forward(self, tokens: Tokens) -> Tensor:
        """Maps tokens to memory (N, S, C)."""
        reference_points = scale_to_levels(tokens.centers(), tokens.valid_ratios)
        memory = tokens.values
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                memory = checkpoint(layer, memory, reference_points, tokens, use_reentrant=False)
            else:
                memory = layer(memory, reference_points, tokens)
        return memory


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention to memory and a feed-forward network."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        d_model, num_heads = config.d_model, config.num_heads
        self.self_attn = MultiheadAttention(d_model, num_heads, config.dropout)
        self.self_dropout = Dropout(config.dropout)
        self.self_norm = nn.LayerNorm(d_model)
        self.cross_attn = MSDeformAttn(d_model, config.num_levels, num_heads, config.num_points)
        self.cross_dropout = Dropout(config.dropout)
        self.cross_norm = nn.LayerNorm(d_model)
        self.ffn = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        tokens: Tokens,
        unused: Tensor | None = None,
    ) -> Tensor:
        """Maps x, positions (N, Q, C), reference_points (N, Q, L, 2 or 4), memory (N, S, C) to (N, Q, C).

        Queries do not attend to those in ``unused`` (N, Q).
        """
        query = x + positions
        attended = self.self_attn(query, query, x, key_padding_mask=unused)
        x = self.self_norm(x + self.self_dropout(attended))
        shapes, starts = tokens.spatial_shapes, tokens.level_start_index
        sampled = self.cross_attn(x + positions, reference_points, memory, shapes, starts, tokens.attention_mask)
        return self.ffn(self.cross_norm(x + self.cross_dropout(sampled)))


class DeformableDecoder(nn.Module):
    """Stack of decoder layers with prediction heads, which returns the predictions of all layers.

    Without box refinement, all layers share one class head and one box head; with it, each layer has its own.

    Args:
        layer: configuration of the layers.
        num_layers: number of layers, at least 1.
        num_classes: number of classes.
        box_refine: whether to use each layer's boxes, detached, as references of the next layer (section 4.2).
        two_stage: whether the initial references are boxes, which a newly initialized box head keeps unchanged.
        no_object: whether to add a logit for "no object", for softmax classification.
    """

    def __init__(
        self,
        layer: LayerConfig,
        num_layers: int = 6,
        num_classes: int = 80,
        *,
        box_refine: bool = False,
        two_stage: bool = False,
        no_object: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DeformableDecoderLayer(layer) for _ in range(num_layers))
        xavier_init(self.layers)
        heads = range(num_layers if box_refine else 1)
        self.class_heads = nn.ModuleList(
            build_class_head(layer.d_model, num_classes, no_object=no_object) for _ in heads
        )
        # Only the first box head refines a point instead of a box, and only without two_stage.
        self.box_heads = nn.ModuleList(
            BoxHead(layer.d_model, 0.0 if two_stage or index > 0 else _SIZE_BIAS) for index in heads
        )
        self.box_refine = box_refine

    def forward(self, queries: Queries, memory: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Decodes queries.

        Returns:
            logits (layers, N, Q, classes), boxes (layers, N, Q, 4) as normalized (cx, cy, w, h), and hidden states
            (N, Q, C) of the last layer. The logits of unused queries are -1e4.
        """
        x, reference = queries.content, queries.reference
        assert reference is not None
        logits, boxes = [], []
        for index, layer in enumerate(self.layers):
            head = index if self.box_refine else 0
            points = scale_to_levels(reference, tokens.valid_ratios)
            x = layer(x, queries.positions, points, memory, tokens, queries.unused)
            layer_boxes = apply_box_delta(self.box_heads[head](x), reference)
            layer_logits = self.class_heads[head](x)
            if queries.unused is not None:
                layer_logits = layer_logits.masked_fill(queries.unused[..., None], -INVALID)
            logits.append(layer_logits)
            boxes.append(layer_boxes)
            if self.box_refine:
                reference = layer_boxes.detach()
        return torch.stack(logits), torch.stack(boxes), x


def scale_to_levels(reference: Tensor, valid_ratios: Tensor) -> Tensor:
    """Scales references (N, Q, 2 or 4), normalized by the image, to (N, Q, L, 2 or 4), normalized by padded levels."""
    scale = valid_ratios if reference.shape[-1] == 2 else valid_ratios.repeat(1, 1, 2)
    return reference[:, :, None] * scale[:, None]
