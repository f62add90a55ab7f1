"""Multi-scale deformable attention in Triton, for comparison with the compiled kernels: forward, and backward with
atomic additions; one program per block of queries and head, for all channels."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _corner(x0, y0, fx, fy, dx: tl.constexpr, dy: tl.constexpr, width, height, start, mask):
    """Returns row, bilinear weights and validity of the corner (x0 + dx, y0 + dy)."""
    x, y = x0 + dx, y0 + dy
    wx = fx if dx else 1 - fx
    wy = fy if dy else 1 - fy
    inside = mask & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    row = tl.where(inside, start + y * width + x, 0)
    return row.to(tl.int64), wx, wy, inside


@triton.jit
def _locate(loc, point, mask, width, height):
    """Returns the top-left corner of a sampling point, its fractional offset from that corner, and its validity."""
    x = tl.load(loc + 2 * point, mask, 0).to(tl.float32) * width - 0.5
    y = tl.load(loc + 2 * point + 1, mask, 0).to(tl.float32) * height - 0.5
    mask = mask & (x > -1) & (x < width) & (y > -1) & (y < height)
    x, y = tl.where(mask, x, 0.0), tl.where(mask, y, 0.0)
    x0, y0 = tl.floor(x), tl.floor(y)
    return x0.to(tl.int32), y0.to(tl.int32), x - x0, y - y0, mask


@triton.jit
def _forward_kernel(
    value,
    shapes,
    loc,
    weights,
    output,
    rows,
    queries,
    M: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    head, n = tl.program_id(1) % M, tl.program_id(1) // M
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, D)
    mask = q < queries
    item = (n.to(tl.int64) * queries + q) * M + head
    base = value + (n.to(tl.int64) * rows * M + head) * D
    total = tl.zeros([BLOCK, D], tl.float32)
    start = 0
    for level in range(L):
        height, width = tl.load(shapes + 2 * level).to(tl.int32), tl.load(shapes + 2 * level + 1).to(tl.int32)
        for k in range(K):
            point = item * (L * K) + level * K + k
            attention = tl.load(weights + point, mask, 0).to(tl.float32)
            x0, y0, fx, fy, valid = _locate(loc, point, mask, width, height)
            for corner in tl.static_range(4):
                row, wx, wy, inside = _corner(x0, y0, fx, fy, corner % 2, corner // 2, width, height, start, valid)
                data = tl.load(base + row[:, None] * (M * D) + channel[None, :], inside[:, None], 0)
                total += (attention * wx * wy)[:, None] * data.to(tl.float32)
        start += height * width
    out = output + item[:, None] * D + channel[None, :]
    tl.store(out, total.to(output.dtype.element_ty), mask[:, None])


@triton.jit
def _backward_kernel(
    grad_output,
    value,
    shapes,
    loc,
    weights,
    grad_value,
    grad_loc,
    grad_weights,
    rows,
    queries,
    M: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    head, n = tl.program_id(1) % M, tl.program_id(1) // M
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, D)
    mask = q < queries
    item = (n.to(tl.int64) * queries + q) * M + head
    base = (n.to(tl.int64) * rows * M + head) * D
    grad = tl.load(grad_output + item[:, None] * D + channel[None, :], mask[:, None], 0).to(tl.float32)
    start = 0
    for level in range(L):
        height, width = tl.load(shapes + 2 * level).to(tl.int32), tl.load(shapes + 2 * level + 1).to(tl.int32)
        for k in range(K):
            point = item * (L * K) + level * K + k
            attention = tl.load(weights + point, mask, 0).to(tl.float32)
            x0, y0, fx, fy, valid = _locate(loc, point, mask, width, height)
            grad_x = tl.zeros([BLOCK], tl.float32)
            grad_y = tl.zeros([BLOCK], tl.float32)
            grad_a = tl.zeros([BLOCK], tl.float32)
            for corner in tl.static_range(4):
                row, wx, wy, inside = _corner(x0, y0, fx, fy, corner % 2, corner // 2, width, height, start, valid)
                at = base + row[:, None] * (M * D) + channel[None, :]
                data = tl.load(value + at, inside[:, None], 0).to(tl.float32)
                tl.atomic_add(grad_value + at, (attention * wx * wy)[:, None] * grad, inside[:, None], sem="relaxed")
                dot = tl.sum(data * grad, 1)
                grad_a += wx * wy * dot
                grad_x += (wy if corner % 2 else -wy) * dot
                grad_y += (wx if corner // 2 else -wx) * dot
            tl.store(grad_loc + 2 * point, (attention * grad_x * width).to(grad_loc.dtype.element_ty), mask)
            tl.store(grad_loc + 2 * point + 1, (attention * grad_y * height).to(grad_loc.dtype.element_ty), mask)
            tl.store(grad_weights + point, grad_a.to(grad_weights.dtype.element_ty), mask)
        start += height * width


@triton.jit
def _gather_kernel(value, index, output, count, COUNT: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = item < count
    channel = tl.arange(0, D)
    total = tl.zeros([BLOCK, D], tl.float32)
    for i in range(COUNT):
        row = tl.load(index + item * COUNT + i, mask, 0).to(tl.int64)
        total += tl.load(value + row[:, None] * D + channel[None, :], mask[:, None], 0).to(tl.float32)
    tl.store(output + item[:, None] * D + channel[None, :], total.to(output.dtype.element_ty), mask[:, None])


def gather_rows(value: Tensor, index: Tensor) -> Tensor:
    """Returns sums of rows of value (R, D) at index (items, count) int32.

    Has the memory accesses of a forward pass without its arithmetic: an upper bound on throughput.
    """
    items, count = index.shape
    output = value.new_empty(items, value.shape[1])
    _gather_kernel[(-(-items // 32),)](value, index, output, items, COUNT=count, D=value.shape[1], BLOCK=32)
    return output


class TritonOp(torch.autograd.Function):
    """Triton implementation of the operator.

    The value (N, S, M, D) must be contiguous with D a power of two, and the shapes (L, 2) int64 on the same device.
    """

    BLOCK = 32

    @staticmethod
    def _grid(value: Tensor, loc: Tensor) -> tuple[int, int]:
        return -(-loc.shape[1] // TritonOp.BLOCK), value.shape[0] * value.shape[2]

    @staticmethod
    def _constants(value: Tensor, loc: Tensor) -> dict[str, int]:
        _, _, m, d = value.shape
        return {"M": m, "D": d, "L": loc.shape[3], "K": loc.shape[4], "BLOCK": TritonOp.BLOCK}

    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Tensor, loc: Tensor, weights: Tensor) -> Tensor:
        n, rows, m, d = value.shape
        output = value.new_empty(n, loc.shape[1], m * d)
        constants = TritonOp._constants(value, loc)
        _forward_kernel[TritonOp._grid(value, loc)](
            value, shapes, loc, weights, output, rows, loc.shape[1], **constants
        )
        ctx.save_for_backward(value, shapes, loc, weights)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        value, shapes, loc, weights = ctx.saved_tensors
        grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        grad_loc, grad_weights = torch.empty_like(loc), torch.empty_like(weights)
        _backward_kernel[TritonOp._grid(value, loc)](
            grad.contiguous(),
            value,
            shapes,
            loc,
            weights,
            grad_value,
            grad_loc,
            grad_weights,
            value.shape[1],
            loc.shape[1],
            **TritonOp._constants(value, loc),
        )
        return grad_value.to(value.dtype), None, grad_loc, grad_weights
