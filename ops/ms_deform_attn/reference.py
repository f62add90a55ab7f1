"""Multi-scale deformable attention in plain PyTorch: the reference for tests of the kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_arguments, check_shapes
from .levels import level_sizes


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _corner(rows: Tensor, near: Tensor, x: Tensor, y: Tensor, size: tuple[int, int], weight: Tensor) -> Tensor:
    """Returns value at integer pixels (x, y) times weight, (B, P, D); zero if not `near` or outside the level.

    rows: (B, H * W, D); all others except size: (B, P).
    """
    height, width = size
    inside = near & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = torch.where(inside, y * width + x, 0).long()
    value = rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))
    # Mask both factors rather than the product: 0 * NaN is NaN, in the gradient as well.
    return torch.where(inside[..., None], value, 0) * torch.where(inside, weight, 0)[..., None]


def _sample_level(rows: Tensor, location: Tensor, attention: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns attention-weighted bilinear samples of one level, (B, P, D).

    rows: (B, H * W, D); location: (B, P, 2) as (x, y) in [0, 1]; attention: (B, P).
    """
    height, width = size
    x = location[..., 0] * width - 0.5
    y = location[..., 1] * height - 0.5
    near = (x > -1) & (x < width) & (y > -1) & (y < height)  # False for NaN
    x = torch.where(near, x, 0)
    y = torch.where(near, y, 0)
    x0, y0 = x.detach().floor(), y.detach().floor()
    fx, fy = x - x0, y - y0
    top, bottom = attention * (1 - fy), attention * fy
    total = _corner(rows, near, x0, y0, size, top * (1 - fx))
    total = total + _corner(rows, near, x0 + 1, y0, size, top * fx)
    total = total + _corner(rows, near, x0, y0 + 1, size, bottom * (1 - fx))
    return total + _corner(rows, near, x0 + 1, y0 + 1, size, bottom * fx)


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention, arXiv 2010.04159 equations 2 and 3 without the two projections.

    Same arguments and result as :func:`ms_deform_attn.ms_deform_attn`. Computed in float32 (float64 for float64
    value) and rounded once to the type of value. Supports gradients of any order.
    """
    check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    n, rows_given, m, d = value.shape
    q, levels, k = sampling_locations.shape[1], sampling_locations.shape[3], sampling_locations.shape[4]
    sizes = level_sizes(spatial_shapes)
    dtype = _accumulator(value.dtype)
    rows = value.to(dtype).permute(0, 2, 1, 3).reshape(n * m, rows_given, d)  # (N*M, S, D)
    location = sampling_locations.to(dtype).permute(3, 0, 2, 1, 4, 5).reshape(levels, n * m, q * k, 2)
    attention = attention_weights.to(dtype).permute(3, 0, 2, 1, 4).reshape(levels, n * m, q * k)
    output = rows.new_zeros(n * m, q, d)
    start = 0
    for level, (height, width) in enumerate(sizes):
        part = rows[:, start : start + height * width]
        samples = _sample_level(part, location[level], attention[level], (height, width))  # (N*M, Q*K, D)
        output = output + samples.reshape(n * m, q, k, d).sum(2)
        start += height * width
    return output.reshape(n, m, q, d).transpose(1, 2).reshape(n, q, m * d).to(value.dtype)


def locations_and_weights(
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> tuple[Tensor, Tensor]:
    """Computes sampling locations and attention weights from offsets and logits (arXiv 2010.04159, eq. 3, A.4).

    Args:
        spatial_shapes: (L, 2) as (H, W).
        reference_points: (N, Q, L, 2) as (x, y), or (N, Q, L, 4) as (cx, cy, w, h), in [0, 1].
        sampling_offsets: (N, Q, M, L, K, 2), in pixels of the level for 2-value reference points, in units of
            half the box size divided by K for 4-value reference points.
        attention_logits: (N, Q, M, L, K); the softmax runs over L and K together.

    Returns:
        Locations (N, Q, M, L, K, 2) and weights (N, Q, M, L, K).
    """
    n, q, m, levels, k = attention_logits.shape
    weights = attention_logits.reshape(n, q, m, levels * k).softmax(-1).reshape(n, q, m, levels, k)
    center = reference_points[:, :, None, :, None, :2]
    if reference_points.shape[-1] == 2:
        sizes = torch.as_tensor(spatial_shapes, device=sampling_offsets.device)
        scale = sizes.flip(-1).to(sampling_offsets.dtype)[None, None, None, :, None, :]  # (W, H)
        return center + sampling_offsets / scale, weights
    extent = reference_points[:, :, None, :, None, 2:]
    return center + sampling_offsets / k * extent * 0.5, weights


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int] | None,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Same arguments and result as :func:`ms_deform_attn.ms_deform_attn_fused`, in plain PyTorch."""
    check_shapes(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    dtype = _accumulator(value.dtype)
    location, weights = locations_and_weights(
        spatial_shapes, reference_points.to(dtype), sampling_offsets.to(dtype), attention_logits.to(dtype)
    )
    return ms_deform_attn_reference(value.to(dtype), spatial_shapes, level_start_index, location, weights).to(
        value.dtype
    )
