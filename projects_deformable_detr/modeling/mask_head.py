"""DETR's mask head (arXiv 2005.12872, section 4.4 and figure 8), for DETR and Deformable DETR."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from ms_deform_attn.layers import Linear
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ArgumentError
from .layers import at_least_float32
from .padding import masked_group_norm
from .position_encoding import sine_box_embedding
from .structures import ComputedMasks, MaskLogits, Tokens

_NORM_GROUPS = 8


class MaskHead(nn.Module):
    """Upsamples the queries' attention maps over one level of the memory to masks, using finer feature maps.

    The queries of the decoder's last layer attend to the memory of one level, by default that of the backbone's last
    feature map, since attention to all positions of finer levels would need too much memory. The attention maps of all
    heads are concatenated to the projected feature map of that level. Five 3x3 convolutions with group norm and ReLU
    follow; before each of the last three, the maps are upsampled (nearest) to a finer feature map of the backbone,
    which is added after a 1x1 convolution. A last convolution yields mask logits at the stride of the finest map.

    In Deformable DETR, hidden states encode boxes relative to references, and keys have no position: ``box_positions``
    adds embeddings of the queries' boxes to the queries, and position embeddings to the keys.

    Args:
        d_model: C of tokens, memory and queries, a multiple of 128.
        num_heads: attention heads, a multiple of 8.
        level: index of the level to attend to.
        features: names and channels of three finer feature maps of the backbone, coarsest first; names may repeat.
        box_positions: whether to add positions to queries and keys of the attention, for Deformable DETR.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        level: int,
        features: Sequence[tuple[str, int]],
        *,
        box_positions: bool = False,
    ) -> None:
        super().__init__()
        if d_model % (16 * _NORM_GROUPS):
            raise ArgumentError(
                "d_model",
                f"must be a multiple of {16 * _NORM_GROUPS} with a mask head, whose last norm has a sixteenth of the "
                f"channels in {_NORM_GROUPS} groups, got {d_model}",
            )
        if num_heads % _NORM_GROUPS:
            raise ArgumentError("num_heads", f"must be a multiple of {_NORM_GROUPS} with a mask head, got {num_heads}")
        self.level = level
        self.position = Linear(2 * d_model, d_model) if box_positions else None
        self.features = tuple(name for name, _ in features)
        self.attention = AttentionMaps(d_model, num_heads)
        widths = [d_model + num_heads, d_model + num_heads, *(d_model // 2**power for power in range(1, 5))]
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, following, 3, padding=1), nn.GroupNorm(_NORM_GROUPS, following))
            for width, following in zip(widths[:-1], widths[1:], strict=True)
        )
        self.adapters = nn.ModuleList(
            nn.Conv2d(channels, width, 1) for (_, channels), width in zip(features, widths[2:-1], strict=True)
        )
        self.output = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(
        self,
        features: dict[str, Tensor],
        tokens: Tokens,
        memory: Tensor,
        hidden: Tensor,
        boxes: Tensor,
        padding_mask: Tensor,
        masks: Mapping[str, Tensor] | None = None,
    ) -> MaskLogits:
        """Returns mask logits on demand; tensors shared by all queries of an image are computed immediately.

        Args:
            features: feature maps (N, C_l, H_l, W_l) of the backbone by name.
            tokens: projected feature maps.
            memory: (N, S, C).
            hidden: (N, Q, C), hidden states of the decoder's last layer, after the final norm if there is one.
            boxes: (N, Q, 4), boxes of the decoder's last layer as normalized (cx, cy, w, h).
            padding_mask: (N, H, W) bool of the images, True on padding.
            masks: padding masks (N, H_l, W_l) of the feature maps by name. If given, the logits of an image are
                independent of its padding.
        """
        height, width = tokens.spatial_shapes[self.level]
        start = tokens.level_start_index[self.level]
        rows = slice(start, start + height * width)
        key = memory[:, rows]
        if self.position is not None:
            embedding = sine_box_embedding(boxes.detach(), hidden.shape[-1] // 2)
            hidden = hidden + self.position(embedding.to(self.position.weight.dtype))
            key = key + tokens.positions[:, rows]
        maps = self.attention(hidden, key, tokens.padding_mask[:, rows]).to(self.output.weight.dtype)
        projected = tokens.values[:, rows].transpose(1, 2).unflatten(2, (height, width))
        # The projected map's part of the first convolution is the same for all queries of an image.
        conv, _ = self._layer(0)
        base = F.conv2d(projected, conv.weight[:, : projected.shape[1]], conv.bias, padding=1)
        adapted = [adapter(features[name]) for name, adapter in zip(self.features, self.adapters, strict=True)]
        maps = maps.unflatten(3, (height, width))  # (N, Q, heads, H, W)

        level_mask = tokens.padding_mask[:, rows].unflatten(1, (height, width))
        paddings = None if masks is None else [level_mask, *(masks[name] for name in self.features)]

        def select(image: Tensor, query: Tensor) -> Tensor:
            selected = None if paddings is None else [mask[image] for mask in paddings]
            return self.upsample(base[image], maps[image, query], [feature[image] for feature in adapted], selected)

        masks_of: Callable[[Tensor, Tensor], Tensor] = select
        num_queries = hidden.shape[1]
        if torch.jit.is_tracing() or torch.compiler.is_exporting():  # a function cannot be an output of the graph
            index = torch.arange(maps.shape[0] * num_queries, device=maps.device)
            logits = select(torch.div(index, num_queries, rounding_mode="floor"), index % num_queries)
            masks_of = ComputedMasks(logits.unflatten(0, (-1, num_queries)))
        return MaskLogits(masks_of, padding_mask, num_queries, None if paddings is None else paddings[-1])

    def upsample(self, base: Tensor, maps: Tensor, features: list[Tensor], masks: list[Tensor] | None = None) -> Tensor:
        """Upsamples the attention maps (M, heads, H, W) of M queries to mask logits (M, h, w).

        Args:
            base: (M, C + heads, H, W), output of the first convolution for the projected feature map.
            maps: attention maps.
            features: adapted feature maps (M, C_i, H_i, W_i), coarsest first.
            masks: padding masks of ``maps`` and ``features``; if given, the logits are independent of the padding.
        """
        paddings: Sequence[Tensor | None] = masks or [None] * (len(features) + 1)
        conv, _ = self._layer(0)
        x = base + F.conv2d(maps, conv.weight[:, -maps.shape[1] :], padding=1)
        x = self._norm(0, x, paddings[0])
        x = self._norm(1, self._layer(1)[0](x), paddings[0])
        for index, (feature, mask) in enumerate(zip(features, paddings[1:], strict=True), start=2):
            x = feature + F.interpolate(x, size=feature.shape[-2:], mode="nearest")
            if mask is not None:
                x = x.masked_fill(mask[:, None], 0.0)
            x = self._norm(index, self._layer(index)[0](x), mask)
        logits: Tensor = self.output(x)
        return logits[:, 0]

    def _norm(self, index: int, x: Tensor, mask: Tensor | None) -> Tensor:
        _, norm = self._layer(index)
        return F.relu(norm(x) if mask is None else masked_group_norm(norm, x, mask))

    def _layer(self, index: int) -> tuple[nn.Conv2d, nn.GroupNorm]:
        layer = self.convs[index]
        assert isinstance(layer, nn.Sequential)
        conv, norm = layer
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.GroupNorm)
        return conv, norm


class AttentionMaps(nn.Module):
    """Multi-head attention weights of queries over positions, with one softmax over all heads and positions."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = Linear(d_model, d_model)
        self.key = Linear(d_model, d_model)
        for linear in (self.query, self.key):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden: Tensor, memory: Tensor, padding_mask: Tensor) -> Tensor:
        """Maps hidden (N, Q, C), memory (N, P, C), padding_mask (N, P) to weights (N, Q, heads, P), 0 on padding."""
        query = self.query(hidden).unflatten(2, (self.num_heads, -1))
        key = self.key(memory).unflatten(2, (self.num_heads, -1))
        scores = (query.transpose(1, 2) / math.sqrt(query.shape[-1])) @ key.permute(0, 2, 3, 1)  # (N, heads, Q, P)
        scores = at_least_float32(scores.transpose(1, 2)).masked_fill(padding_mask[:, None, None], -math.inf)
        return scores.flatten(2).softmax(-1).view_as(scores)


def resize_mask_logits(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resizes logits (M, h, w) to (M, *size), bilinear."""
    if not len(logits):  # interpolate rejects empty batches; the sum keeps the gradient graph
        return logits.new_zeros(0, *size) + logits.sum()
    return F.interpolate(logits[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]
