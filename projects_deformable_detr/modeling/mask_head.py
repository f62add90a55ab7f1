"""DETR's mask head (arXiv 2005.12872, section 4.4 and figure 8), for DETR and Deformable DETR."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .position_encoding import sine_box_embedding
from .structures import MaskLogits, Tokens

_GROUPS = 8  # of every norm, as published


class MaskHead(nn.Module):
    """Each query's attention over one level of the memory, upsampled with the backbone's finer maps to a mask.

    The queries of the decoder's last layer attend to the encoder's memory at one level; the attention maps of all heads
    are put beside that level's projected feature map (the tokenizer's, before the encoder). Five 3x3 convolutions
    with group norm and ReLU follow, each of the last three after nearest upsampling to a finer feature map of the
    backbone and adding it, brought to the same width by a 1x1 convolution. One more gives the mask's logits, at the
    finest map's stride: 4 for res2.

    The level is that of one feature map of the backbone: DETR has no other, and in Deformable DETR it is by default the
    last of ``IN_FEATURES``, of stride 32 in the published models. The other levels are not attended to: a softmax over
    all positions of an image needs a short list of them. In Deformable DETR, unlike in DETR, hidden states tell boxes
    relative to references that are known without them, and no key has a position: there the queries' boxes, embedded,
    are added to the attention's queries, and the positions of the tokens to its keys.

    Args:
        channels: C of tokens, memory and queries; a multiple of ``heads`` and of 128.
        heads: of the attention.
        level: which level of the tokens, from 0.
        fine: names and channels of the three finer feature maps, coarsest first.
        box_positions: add positions to the attention's queries and keys, for Deformable DETR.
    """

    def __init__(
        self, channels: int, heads: int, level: int, fine: list[tuple[str, int]], *, box_positions: bool = False
    ) -> None:
        super().__init__()
        self.level = level
        self.position = nn.Linear(2 * channels, channels) if box_positions else None
        self.fine = tuple(name for name, _ in fine)
        self.attention = AttentionMaps(channels, heads)
        widths = [channels + heads, channels + heads, *(channels // 2**power for power in range(1, 5))]
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, following, 3, padding=1), nn.GroupNorm(_GROUPS, following))
            for width, following in zip(widths[:-1], widths[1:], strict=True)
        )
        self.adapters = nn.ModuleList(
            nn.Conv2d(width, own, 1) for (_, width), own in zip(fine, widths[2:-1], strict=True)
        )
        self.output = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # there is one, by default

    def forward(
        self,
        features: dict[str, Tensor],
        tokens: Tokens,
        memory: Tensor,
        hidden: Tensor,
        boxes: Tensor,
        padding_mask: Tensor,
    ) -> MaskLogits:
        """Mask logits on demand; what all queries of an image share is computed here.

        Args:
            features: the backbone's maps (N, C_l, H_l, W_l) by name.
            tokens: the projected feature maps.
            memory: (N, S, C).
            hidden: (N, Q, C), the decoder's last hidden states, with the norm if it has one.
            boxes: (N, Q, 4), the decoder's last, normalised (cx, cy, w, h).
            padding_mask: (N, H, W) bool of the images, True on padding.
        """
        height, width = tokens.spatial_shapes[self.level]
        start = tokens.level_start_index[self.level]
        part = slice(start, start + height * width)
        key = memory[:, part]
        if self.position is not None:
            embedding = sine_box_embedding(boxes.detach(), hidden.shape[-1] // 2)
            hidden = hidden + self.position(embedding.to(hidden.dtype))
            key = key + tokens.positions[:, part]
        maps = self.attention(hidden, key, tokens.padding_mask[:, part])
        projected = tokens.values[:, part].transpose(1, 2).unflatten(2, (height, width))
        # The first convolution sees the same projected map for every query: its share is computed once an image.
        first: Any = self.convs[0]
        base = F.conv2d(projected, first[0].weight[:, : projected.shape[1]], first[0].bias, padding=1)
        adapted = [adapt(features[name]) for name, adapt in zip(self.fine, self.adapters, strict=True)]
        shared = _Shared(self, base, maps.unflatten(3, (height, width)), adapted)
        return MaskLogits(shared.logits, padding_mask, hidden.shape[1])

    def upsample(self, base: Tensor, maps: Tensor, fine: list[Tensor]) -> Tensor:
        """Of M queries: base (M, C + heads, H, W), maps (M, heads, H, W), fine (M, C_i, H_i, W_i) to (M, h, w)."""
        first: Any = self.convs[0]
        x = base + F.conv2d(maps, first[0].weight[:, -maps.shape[1] :], padding=1)
        x = F.relu(first[1](x))
        x = F.relu(self.convs[1](x))
        for finer, conv in zip(fine, list(self.convs)[2:], strict=True):
            x = finer + F.interpolate(x, size=finer.shape[-2:], mode="nearest")
            x = F.relu(conv(x))
        return self.output(x)[:, 0]


@dataclass(frozen=True)
class _Shared:
    """What the queries of an image share, and their attention maps (N, Q, heads, H, W)."""

    head: MaskHead
    base: Tensor
    maps: Tensor
    fine: list[Tensor]

    def logits(self, image: Tensor, query: Tensor) -> Tensor:
        """Image and query (M,) int64 to (M, h, w)."""
        return self.head.upsample(self.base[image], self.maps[image, query], [finer[image] for finer in self.fine])


class AttentionMaps(nn.Module):
    """Multi-head attention weights of queries over positions; one softmax over all heads and positions together."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        for linear in (self.query, self.key):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden: Tensor, memory: Tensor, padding_mask: Tensor) -> Tensor:
        """hidden (N, Q, C), memory (N, P, C), padding_mask (N, P) to weights (N, Q, heads, P), 0 on padding."""
        query = self.query(hidden).unflatten(2, (self.heads, -1))
        key = self.key(memory).unflatten(2, (self.heads, -1))
        scores = (query.transpose(1, 2) / math.sqrt(query.shape[-1])) @ key.permute(0, 2, 3, 1)  # (N, heads, Q, P)
        scores = scores.transpose(1, 2).float().masked_fill(padding_mask[:, None, None], -math.inf)
        return scores.flatten(2).softmax(-1).view_as(scores)
