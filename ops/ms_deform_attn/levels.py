"""The two forms of level sizes: Python integers (preferred), or an int64 tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Sizes = Sequence[Sequence[int]]


def level_sizes(spatial_shapes: Tensor | Sizes) -> list[tuple[int, int]]:
    """Returns level sizes as a list of (H, W) integers. Copying a tensor from a GPU synchronizes."""
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.is_meta:
            raise RuntimeError("ms_deform_attn: spatial_shapes must have values: pass integers, or a tensor on the CPU")
        return [(int(h), int(w)) for h, w in spatial_shapes.tolist()]
    return [(h, w) for h, w in spatial_shapes]


def split_levels(spatial_shapes: Tensor | Sizes) -> tuple[list[int], Tensor | None]:
    """Returns level sizes in the form of the operators' arguments: ([h0, w0, h1, ...], None) or ([], tensor)."""
    if isinstance(spatial_shapes, Tensor):
        return [], spatial_shapes
    if any(len(pair) != 2 for pair in spatial_shapes):
        raise RuntimeError("ms_deform_attn: spatial_shapes must contain pairs (height, width)")
    return [size for pair in spatial_shapes for size in pair], None


def start_tensor(level_start_index: Tensor | Sequence[int] | None) -> Tensor | None:
    """Returns level_start_index as a tensor or None."""
    if level_start_index is None or isinstance(level_start_index, Tensor):
        return level_start_index
    return torch.tensor(level_start_index, dtype=torch.int64)
