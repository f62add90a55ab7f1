"""Neck that maps feature maps to tokens: input projections, coarser levels and position embeddings."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from .padding import interpolate_mask, masked_group_norm, resize_mask
from .structures import Tokens

_NORM_GROUPS = 32


class Neck(nn.Module):
    """Projects feature maps to C channels, adds coarser levels, flattens and concatenates them.

    Every feature map is projected by a 1x1 convolution and group norm. Additional levels are computed by 3x3
    convolutions of stride 2, starting from the backbone's last feature map (arXiv 2010.04159, appendix A.2).

    Args:
        in_channels: channels of the feature maps by name, finest first.
        d_model: C; with ``norm``, a multiple of 32, the number of groups.
        num_levels: L, at least the number of feature maps.
        position_embedding: module that maps masks (N, H, W) to embeddings (N or 1, C, H, W).
        norm: whether to apply group norm after Xavier-initialized projections. If False, projections are
            convolutions with PyTorch's default initialization, as in DETR.
        level_embed: whether to add a learned embedding of the level to position embeddings.
    """

    def __init__(
        self,
        in_channels: Mapping[str, int],
        d_model: int,
        num_levels: int,
        position_embedding: nn.Module,
        *,
        norm: bool = True,
        level_embed: bool = True,
    ) -> None:
        super().__init__()
        if num_levels < len(in_channels):
            raise ArgumentError(
                "num_levels",
                f"must be at least the number of `in_features` {list(in_channels)}, got {num_levels}",
            )
        if norm and d_model % _NORM_GROUPS:
            raise ArgumentError(
                "d_model", f"must be a multiple of {_NORM_GROUPS}, the number of groups of the norm, got {d_model}"
            )
        self.in_features = tuple(in_channels)
        widths = list(in_channels.values())
        self.projections = nn.ModuleList(_projection(width, d_model, 1, norm) for width in widths)
        for index in range(num_levels - len(widths)):
            self.projections.append(_projection(widths[-1] if index == 0 else d_model, d_model, 3, norm))
        self.position_embedding = position_embedding
        self.level_embed = nn.Parameter(torch.randn(num_levels, d_model)) if level_embed else None

    def forward(
        self,
        features: dict[str, Tensor],
        padding_mask: Tensor,
        masks: Mapping[str, Tensor] | None = None,
        *,
        mask_padding: bool,
        has_padding: bool = True,
    ) -> Tokens:
        """Maps feature maps to tokens.

        Args:
            features: maps (N, C_l, H_l, W_l) by name, zero on padding with ``mask_padding``.
            padding_mask: (N, H, W) bool of the images, True on padding.
            masks: padding masks (N, H_l, W_l) of the feature maps by name; None: computed from ``padding_mask``.
            mask_padding: whether to make the tokens of an image independent of its padding. If False, group norms and
                convolutions include the padding, as in the official code.
            has_padding: False if ``padding_mask`` contains no padding; True if that was not checked.
        """
        if mask_padding:
            maps, level_masks = self._project_masked(features, padding_mask, masks or {})
        else:
            maps = self._project(features)
            level_masks = [interpolate_mask(padding_mask, level.shape[-2:]) for level in maps]
        dtype = self.projections[0][0].weight.dtype  # type: ignore[index]  # embeddings may be float32
        positions = [self.position_embedding(mask).flatten(2).transpose(1, 2).to(dtype) for mask in level_masks]
        if self.level_embed is not None:
            positions = [grid + embed for grid, embed in zip(positions, self.level_embed, strict=True)]
        return Tokens(
            values=torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1),
            positions=torch.cat(positions, dim=1),
            padding_mask=torch.cat([mask.flatten(1) for mask in level_masks], dim=1),
            spatial_shapes=tuple(_spatial_shape(level) for level in maps),
            valid_ratios=torch.stack([_valid_ratio(mask) for mask in level_masks], dim=1),
            is_masked=mask_padding,
            has_padding=has_padding,
        )

    def _sources(self, features: dict[str, Tensor], maps: list[Tensor]) -> Iterator[tuple[nn.Sequential, Tensor]]:
        """Yields the projection and input of each level: a feature map, the last one again, or the previous level."""
        last = len(self.in_features)
        for index, project in enumerate(self.projections):
            assert isinstance(project, nn.Sequential)
            yield project, features[self.in_features[min(index, last - 1)]] if index <= last else maps[-1]

    def _project(self, features: dict[str, Tensor]) -> list[Tensor]:
        maps: list[Tensor] = []
        for project, source in self._sources(features, maps):
            maps.append(project(source))
        return maps

    def _project_masked(
        self, features: dict[str, Tensor], padding_mask: Tensor, given: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the maps of all levels, zero on padding, and their padding masks."""
        maps: list[Tensor] = []
        masks = [given.get(name, padding_mask) for name in self.in_features]
        for index, (project, source) in enumerate(self._sources(features, maps)):
            projected = project[0](source)
            mask = resize_mask(masks[index] if index < len(masks) else masks[-1], projected.shape[-2:])
            masks[index : index + 1] = [mask]
            for norm in project[1:]:
                assert isinstance(norm, nn.GroupNorm)
                projected = masked_group_norm(norm, projected, mask)
            maps.append(projected.masked_fill(mask[:, None], 0.0))
        return maps, masks


def _projection(in_channels: int, d_model: int, kernel: int, norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, d_model, kernel, stride=1 if kernel == 1 else 2, padding=kernel // 2)
    if not norm:
        return nn.Sequential(conv)
    assert conv.bias is not None
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(_NORM_GROUPS, d_model))


def _spatial_shape(level: Tensor) -> tuple[int, int]:
    """Returns (H, W) of a feature map as ints; under TorchScript tracing, sizes are tensors."""
    height, width = level.shape[-2:]
    return (int(height), int(width)) if torch.jit.is_tracing() else (height, width)


def _valid_ratio(mask: Tensor) -> Tensor:
    """Returns the fractions (N, 2) of columns and rows that are not padding."""
    inside = ~mask
    height = inside[:, :, 0].sum(1) / mask.shape[1]
    width = inside[:, 0, :].sum(1) / mask.shape[2]
    return torch.stack((width, height), dim=-1)
