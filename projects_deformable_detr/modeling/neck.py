"""From feature maps to tokens: projection to one width, further levels, positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .structures import Tokens


class Tokenizer(nn.Module):
    """Projects feature maps to C channels, adds coarser levels, flattens and joins them.

    arXiv 2010.04159, appendix A.2: 1x1 convolution and group norm for every feature map; the levels after
    them come from 3x3 convolutions of stride 2, the first of them on the last feature map itself.

    Args:
        in_channels: channels of the feature maps, by name, finest first.
        channels: C, a multiple of the 32 groups of the norm where there is one.
        num_levels: L, at least the number of feature maps.
        position_embedding: masks (N, H, W) to embeddings (N or 1, C, H, W).
        norm: group norm after the projections; without it they start as PyTorch's own convolutions, as in DETR.
        level_embed: add a learned embedding of each level to its positions.
    """

    def __init__(
        self,
        in_channels: dict[str, int],
        channels: int,
        num_levels: int,
        position_embedding: nn.Module,
        *,
        norm: bool = True,
        level_embed: bool = True,
    ) -> None:
        super().__init__()
        if num_levels < len(in_channels):
            raise UserError(
                f"MODEL.DETR.NUM_FEATURE_LEVELS {num_levels} is less than the number of IN_FEATURES "
                f"{list(in_channels)}: take fewer features or more levels"
            )
        self.in_features = tuple(in_channels)
        widths = list(in_channels.values())
        make = _normed_projection if norm else _plain_projection
        projections = [make(width, channels, 1) for width in widths]
        for index in range(num_levels - len(widths)):
            projections.append(make(widths[-1] if index == 0 else channels, channels, 3))
        self.projections = nn.ModuleList(projections)
        self.position_embedding = position_embedding
        self.level_embed = nn.Parameter(torch.randn(num_levels, channels)) if level_embed else None

    def forward(self, features: dict[str, Tensor], padding_mask: Tensor) -> Tokens:
        """Feature maps (N, C_l, H_l, W_l) by name and the images' mask (N, H, W) to tokens."""
        maps = self._levels(features)
        masks = [_resize_mask(padding_mask, level.shape[-2:]) for level in maps]
        positions = [self.position_embedding(mask).flatten(2).transpose(1, 2) for mask in masks]
        if self.level_embed is not None:
            positions = [grid + embed for grid, embed in zip(positions, self.level_embed, strict=True)]
        return Tokens(
            values=torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1),
            positions=torch.cat(positions, dim=1),
            padding_mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            spatial_shapes=tuple(_size(level) for level in maps),
            valid_ratios=torch.stack([_valid_ratio(mask) for mask in masks], dim=1),
        )

    def _levels(self, features: dict[str, Tensor]) -> list[Tensor]:
        raw = [features[name] for name in self.in_features]
        maps = [project(level) for project, level in zip(self.projections, raw, strict=False)]
        source = raw[-1]
        for project in list(self.projections)[len(raw) :]:
            source = project(source)
            maps.append(source)
        return maps


def _plain_projection(width: int, channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, channels, kernel, stride=1 if kernel == 1 else 2, padding=kernel // 2))


def _normed_projection(width: int, channels: int, kernel: int) -> nn.Sequential:
    projection = _plain_projection(width, channels, kernel)
    weight, bias = projection.parameters()
    nn.init.xavier_uniform_(weight)
    nn.init.zeros_(bias)
    return projection.append(nn.GroupNorm(32, channels))


def _size(level: Tensor) -> tuple[int, int]:
    """(H, W) of a feature map. While TorchScript traces, sizes are tensors: they become constants there."""
    height, width = level.shape[-2:]
    return (int(height), int(width)) if torch.jit.is_tracing() else (height, width)


def _resize_mask(mask: Tensor, size: torch.Size) -> Tensor:
    """Nearest-neighbour resize of a mask (N, H, W) to (N, *size)."""
    return F.interpolate(mask[None].float(), size=tuple(size)).to(torch.bool)[0]


def _valid_ratio(mask: Tensor) -> Tensor:
    """(N, 2) as (x, y): the share of columns and rows that are image, from the first row and column."""
    inside = ~mask
    height = inside[:, :, 0].sum(1) / mask.shape[1]
    width = inside[:, 0, :].sum(1) / mask.shape[2]
    return torch.stack((width, height), dim=-1)
