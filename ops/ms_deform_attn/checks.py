"""Argument checks of the reference and of the fake kernels; the compiled kernels make the same ones in C++."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .levels import Sizes

MAX_LEVELS = 64
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _fail(message: str) -> None:
    raise RuntimeError(f"ms_deform_attn: {message}")


def _shape(t: Tensor) -> str:
    return str(tuple(t.shape))


def _check_points(value: Tensor, levels: int, xy: Tensor, attention: Tensor, names: tuple[str, str]) -> None:
    xy_name, attention_name = names
    if value.dim() != 4:
        _fail(f"value must have 4 dimensions (N, S, M, D), got {value.dim()}: shape {_shape(value)}")
    if value.shape[2] < 1 or value.shape[3] < 1:
        _fail(f"value must have at least one head and one channel, got shape {_shape(value)}")
    if xy.dim() != 6:
        _fail(f"{xy_name} must have 6 dimensions (N, Q, M, L, K, 2), got {xy.dim()}: shape {_shape(xy)}")
    for dim, wanted in ((0, value.shape[0]), (2, value.shape[2]), (3, levels), (5, 2)):
        if xy.shape[dim] != wanted:
            _fail(f"{xy_name} must have size {wanted} in dimension {dim} of (N, Q, M, L, K, 2), got shape {_shape(xy)}")
    if xy.shape[4] < 1:
        _fail(f"{xy_name} must have at least one point in dimension 4 of (N, Q, M, L, K, 2), got shape {_shape(xy)}")
    if attention.shape != xy.shape[:-1]:
        _fail(f"{attention_name} must have shape {tuple(xy.shape[:-1])} (N, Q, M, L, K), got {_shape(attention)}")
    _check_types(value, xy, attention, names)


def _check_types(value: Tensor, xy: Tensor, attention: Tensor, names: tuple[str, str]) -> None:
    for name, tensor in (("value", value), (names[0], xy), (names[1], attention)):
        if tensor.dtype not in FLOATS:
            _fail(f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")
        if tensor.device != value.device:
            _fail(f"{name} must be on the device of value, {value.device}, got {tensor.device}")
    half = value.dtype in (torch.float16, torch.bfloat16)
    if xy.dtype != value.dtype and not (half and xy.dtype == torch.float32):
        _fail(f"{names[0]} must be {value.dtype} like value, or float32 beside a 16-bit value, got {xy.dtype}")
    if attention.dtype != xy.dtype:
        _fail(f"{names[1]} must be {xy.dtype} like {names[0]}, got {attention.dtype}")


def count_levels(spatial_shapes: Tensor | Sizes) -> int:
    """Number of levels, after checking the form of spatial_shapes."""
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.dtype != torch.int64:
            _fail(f"spatial_shapes must be int64, got {spatial_shapes.dtype}")
        if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2:
            _fail(f"spatial_shapes must have shape (L, 2), got {_shape(spatial_shapes)}")
    elif any(len(pair) != 2 for pair in spatial_shapes):
        _fail("spatial_shapes must hold pairs (height, width)")
    levels = len(spatial_shapes)
    if not 1 <= levels <= MAX_LEVELS:
        _fail(f"spatial_shapes must have 1 to {MAX_LEVELS} levels, got {levels}")
    return levels


def check_shapes(
    value: Tensor, spatial_shapes: Tensor | Sizes, xy: Tensor, attention: Tensor, reference: Tensor | None = None
) -> None:
    """Checks ranks, sizes, types and devices; reads no tensor."""
    levels = count_levels(spatial_shapes)
    names = (
        ("sampling_locations", "attention_weights") if reference is None else ("sampling_offsets", "attention_logits")
    )
    _check_points(value, levels, xy, attention, names)
    if reference is None:
        return
    if reference.dim() != 4 or reference.shape[:3] != (xy.shape[0], xy.shape[1], levels):
        _fail(
            f"reference_points must have shape ({xy.shape[0]}, {xy.shape[1]}, {levels}, 2 or 4), "
            f"got {_shape(reference)}"
        )
    if reference.shape[3] not in (2, 4):
        _fail(f"reference_points must have 2 or 4 values in dimension 3, got shape {_shape(reference)}")
    if reference.dtype != xy.dtype:
        _fail(f"reference_points must be {xy.dtype} like sampling_offsets, got {reference.dtype}")
    if reference.device != value.device:
        _fail(f"reference_points must be on the device of value, {value.device}, got {reference.device}")


def check_levels(rows: int, sizes: Sequence[tuple[int, int]], level_start_index: Tensor | Sequence[int] | None) -> None:
    """Checks level sizes, as integers, against the rows of value and against level_start_index."""
    for level, (height, width) in enumerate(sizes):
        if height < 1 or width < 1:
            _fail(f"spatial_shapes must be positive, got ({height}, {width}) for level {level}")
    ends = list(accumulate(h * w for h, w in sizes))
    if ends[-1] != rows:
        _fail(f"value must have as many rows (dimension 1) as spatial_shapes has positions, {ends[-1]}, got {rows}")
    if level_start_index is None:
        return
    if isinstance(level_start_index, Tensor):
        if level_start_index.dtype != torch.int64:
            _fail(f"level_start_index must be int64, got {level_start_index.dtype}")
        if level_start_index.dim() != 1:
            _fail(f"level_start_index must have 1 dimension(s), got shape {_shape(level_start_index)}")
        level_start_index = level_start_index.tolist()
    if len(level_start_index) != len(sizes):
        _fail(f"level_start_index must have shape ({len(sizes)},), got ({len(level_start_index)},)")
    for level, (given, wanted) in enumerate(zip(level_start_index, [0, *ends[:-1]], strict=True)):
        if given != wanted:
            _fail(f"level_start_index must be {wanted} for level {level} by spatial_shapes, got {given}")
