"""Argument checks, which define the error messages of all implementations.

The reference and the fake kernels (torch.compile, torch.export) run them first. The compiled kernels check only what
they rely on, to keep valid calls fast; when a call fails, functional.py runs these checks to name the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .levels import Sizes, level_sizes, split_levels

MAX_LEVELS = 64
HALF = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, torch.float64, *HALF)


def _fail(message: str) -> None:
    raise RuntimeError(f"ms_deform_attn: {message}")


def _check_sizes(name: str, t: Tensor, layout: str, sizes: tuple[int | None, ...]) -> None:
    """Checks a tensor's shape; None accepts any size."""
    if t.dim() != len(sizes):
        _fail(f"{name} must have {len(sizes)} dimensions {layout}, got {t.dim()}: shape {tuple(t.shape)}")
    for dim, size in enumerate(sizes):
        if size is not None and t.shape[dim] != size:
            _fail(f"{name} must have size {size} in dimension {dim} of {layout}, got shape {tuple(t.shape)}")


def count_levels(spatial_shapes: Tensor | Sizes) -> int:
    """Returns the number of levels, after checking the form of spatial_shapes."""
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.dtype != torch.int64:
            _fail(f"spatial_shapes must be int64, got {spatial_shapes.dtype}")
        _check_sizes("spatial_shapes", spatial_shapes, "(L, 2)", (None, 2))
        levels = spatial_shapes.shape[0]
    else:
        levels = len(split_levels(spatial_shapes)[0]) // 2
    if not 1 <= levels <= MAX_LEVELS:
        _fail(f"spatial_shapes must have 1 to {MAX_LEVELS} levels, got {levels}")
    return levels


def check_shapes(value: Tensor, spatial_shapes: Tensor | Sizes, *points: Tensor) -> None:
    """Checks ranks, sizes, types and devices, without reading any tensor.

    points: sampling_locations and attention_weights, or reference_points, sampling_offsets and attention_logits.
    """
    *reference, xy, attention = points
    xy_name, attention_name = (
        ("sampling_offsets", "attention_logits") if reference else ("sampling_locations", "attention_weights")
    )
    levels = count_levels(spatial_shapes)
    _check_sizes("value", value, "(N, S, M, D)", (None, None, None, None))
    n, _, m, d = value.shape
    if m < 1 or d < 1:
        _fail(f"value must have at least one head and one channel, got shape {tuple(value.shape)}")
    _check_sizes(xy_name, xy, "(N, Q, M, L, K, 2)", (n, None, m, levels, None, 2))
    q, k = xy.shape[1], xy.shape[4]
    if k < 1:
        _fail(f"{xy_name} must have at least one point in dimension 4, got shape {tuple(xy.shape)}")
    _check_sizes(attention_name, attention, "(N, Q, M, L, K)", (n, q, m, levels, k))
    named = {xy_name: xy, attention_name: attention}
    for r in reference:
        _check_sizes("reference_points", r, "(N, Q, L, 2 or 4)", (n, q, levels, None))
        if r.shape[3] not in (2, 4):
            _fail(f"reference_points must have 2 or 4 values in dimension 3, got shape {tuple(r.shape)}")
        named["reference_points"] = r
    _check_types(value, named)
    if isinstance(spatial_shapes, Tensor) and spatial_shapes.device not in (value.device, torch.device("cpu")):
        _fail(f"spatial_shapes must be integers, on the CPU or on {value.device}, got {spatial_shapes.device}")


def _check_types(value: Tensor, points: dict[str, Tensor]) -> None:
    if value.dtype not in FLOATS:
        _fail(f"value must be float32, float64, float16 or bfloat16, got {value.dtype}")
    first, xy = next(iter(points.items()))
    if xy.dtype != value.dtype and not (value.dtype in HALF and xy.dtype == torch.float32):
        _fail(f"{first} must be {value.dtype} like value, or float32 with a 16-bit value, got {xy.dtype}")
    for name, t in points.items():
        if t.dtype != xy.dtype:
            _fail(f"{name} must be {xy.dtype} like {first}, got {t.dtype}")
        if t.device != value.device:
            _fail(f"{name} must be on the device of value, {value.device}, got {t.device}")


def check_levels(rows: int, sizes: Sequence[tuple[int, int]], level_start_index: Tensor | Sequence[int] | None) -> None:
    """Checks level sizes against the rows of value, and level_start_index against the sizes. Reads CPU tensors only."""
    for level, (height, width) in enumerate(sizes):
        if height < 1 or width < 1:
            _fail(f"spatial_shapes must be positive, got ({height}, {width}) for level {level}")
    ends = list(accumulate(height * width for height, width in sizes))
    if ends[-1] != rows:
        _fail(f"value must have as many rows (dimension 1) as spatial_shapes has positions, {ends[-1]}, got {rows}")
    if isinstance(level_start_index, Tensor):
        if level_start_index.device.type != "cpu":
            return
        if level_start_index.dtype != torch.int64:
            _fail(f"level_start_index must be int64, got {level_start_index.dtype}")
        _check_sizes("level_start_index", level_start_index, "(L,)", (None,))
        level_start_index = level_start_index.tolist()
    if level_start_index is None:
        return
    if len(level_start_index) != len(sizes):
        _fail(f"level_start_index must have shape ({len(sizes)},), got ({len(level_start_index)},)")
    for level, (given, wanted) in enumerate(zip(level_start_index, [0, *ends[:-1]], strict=True)):
        if given != wanted:
            _fail(f"level_start_index must be {wanted} for level {level} according to spatial_shapes, got {given}")


def check_arguments(
    value: Tensor, spatial_shapes: Tensor | Sizes, level_start_index: Tensor | Sequence[int] | None, *points: Tensor
) -> None:
    """Runs all checks; level sizes are checked only if they can be read without synchronizing with a GPU."""
    check_shapes(value, spatial_shapes, *points)
    if not isinstance(spatial_shapes, Tensor) or spatial_shapes.device.type == "cpu":
        check_levels(value.shape[1], level_sizes(spatial_shapes), level_start_index)
