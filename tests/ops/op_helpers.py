"""Inputs and comparisons shared by the operator's tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ms_deform_attn as msda
import torch
from ms_deform_attn.library import LIBRARIES
from ms_deform_attn.reference import ms_deform_attn_fused_reference
from torch import Tensor

# Without the compiled library these tests would compare the reference with itself.
assert "cpu" in LIBRARIES, "the operator is not compiled: run `make build` in ops/"

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# Types of value and of the points.
TYPES = [*((t, t) for t in DTYPES), (torch.float16, torch.float32), (torch.bfloat16, torch.float32)]
NON_FINITE = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e38)
# Largest error relative to the largest element: a few roundings in the accumulation, and one of the storage type.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Size:
    n: int
    shapes: tuple[tuple[int, int], ...]
    m: int
    d: int
    q: int
    k: int

    @property
    def rows(self) -> int:
        return sum(h * w for h, w in self.shapes)


SIZES = [
    Size(2, ((7, 5), (3, 4)), 3, 5, 11, 3),
    Size(1, ((6, 6),), 8, 32, 300, 4),  # the CPU kernel copies a slice of value
    Size(1, ((20, 20),), 8, 32, 2, 4),  # the CPU kernel reads value in place
    Size(2, ((9, 2), (1, 1), (2, 2), (3, 3), (1, 7)), 2, 33, 1, 1),
    Size(1, ((5, 5),), 1, 1, 40, 3),
    Size(1, ((30, 30), (4, 5)), 2, 160, 7, 2),
    Size(3, ((4, 3),), 2, 48, 33, 5),
    Size(1, ((11, 13),), 2, 33, 2, 1),  # in place; the last vector of channels is partial
    Size(1, ((3, 3), (2, 2)), 1, 8, 19, 9),
    Size(0, ((4, 3),), 2, 8, 5, 2),
    Size(2, ((4, 3),), 2, 8, 0, 2),
]


def make_plain(size: Size, dtype: torch.dtype, seed: int = 0, spread: float = 1.6) -> list[Tensor]:
    """Returns value, locations (some outside [0, 1]) and weights."""
    g = torch.Generator().manual_seed(seed)
    levels = len(size.shapes)
    value = torch.randn(size.n, size.rows, size.m, size.d, generator=g, dtype=torch.float64)
    loc = torch.rand(size.n, size.q, size.m, levels, size.k, 2, generator=g, dtype=torch.float64)
    loc = loc * spread - (spread - 1) / 2
    weights = torch.randn(size.n, size.q, size.m, levels, size.k, generator=g, dtype=torch.float64)
    return [t.to(dtype) for t in (value, loc, weights)]


def make_fused(size: Size, dtype: torch.dtype, values: int, seed: int = 0) -> list[Tensor]:
    """Returns value, reference points, offsets and logits."""
    g = torch.Generator().manual_seed(seed + 1)
    value, loc, logits = make_plain(size, torch.float64, seed)
    reference = torch.rand(size.n, size.q, len(size.shapes), values, generator=g, dtype=torch.float64)
    offsets = 2 * torch.randn(loc.shape, generator=g, dtype=torch.float64)
    return [t.to(dtype) for t in (value, reference, offsets, logits)]


def make(size: Size, dtype: torch.dtype, values: int, points: torch.dtype | None = None) -> list[Tensor]:
    """Returns inputs of the plain operator (values = 0), or of the fused one with reference points of 2 or 4 values.

    points: type of all inputs but value, if it differs.
    """
    value, *rest = make_fused(size, torch.float64, values) if values else make_plain(size, torch.float64)
    return [value.to(dtype), *(t.to(points or dtype) for t in rest)]


def move_to_half_pixels(loc: Tensor, size: Size) -> None:
    """Replaces locations with pixel centers and edges, up to one pixel outside, where gradients are discontinuous."""
    for level, (h, w) in enumerate(size.shapes):
        g = torch.Generator().manual_seed(level)
        steps = torch.tensor([w, h]) * 2
        index = [torch.randint(-2, int(s) + 3, loc[:, :, :, 0, :, 0].shape, generator=g) for s in steps]
        loc[:, :, :, level] = torch.stack(index, -1) / steps


def unusual_strides(value: Tensor) -> list[Tensor]:
    """Returns copies of value with heads outermost, with channels outermost, and as part of wider rows."""
    wide = value.new_empty(*value.shape[:3], 2 * value.shape[3] + 1)
    part = wide[..., 16 : 16 + value.shape[3]]
    part.copy_(value)
    heads_first = value.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    return [heads_first, value.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0), part]


@contextlib.contextmanager
def deterministic(enabled: bool = True) -> Iterator[None]:
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def grad_like_output(size: Size, dtype: torch.dtype) -> Tensor:
    g = torch.Generator().manual_seed(99)
    return torch.randn(size.n, size.q, size.m * size.d, generator=g, dtype=torch.float64).to(dtype)


def forward_backward(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], shapes: object, grad: Tensor
) -> list[Tensor]:
    """Returns the output and the gradients of all tensors; the tensors keep their strides."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = function(leaves[0], shapes, None, *leaves[1:])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


PLAIN = (msda.ms_deform_attn, msda.ms_deform_attn_reference)
FUSED = (msda.ms_deform_attn_fused, ms_deform_attn_fused_reference)


def assert_near(found: Sequence[Tensor], wanted: Sequence[Tensor], scale: float = 2) -> None:
    """Asserts that errors are at most `scale` times TOLERANCE of the tensor's type."""
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype, (i, a.shape, b.shape, a.dtype, b.dtype)
        a, b, tolerance = a.cpu().double(), b.cpu().double(), scale * TOLERANCE[b.dtype]
        finite = b.isfinite()
        assert torch.equal(a.isfinite(), finite), f"tensor {i}: non-finite elements differ"
        if finite.any():
            error = ((a - b)[finite].abs().max() / b[finite].abs().max().clamp_min(1e-30)).item()
            assert error <= tolerance, f"tensor {i}: relative error {error:.2e} > {tolerance:.1e}"


def reference_of(size: Size, tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Returns the reference's output and gradients on the same (rounded) inputs, in their types.

    Computed in float64; in float32 for 16-bit points, which often lie on pixel centers, where gradients are
    discontinuous: both implementations must round locations equally.
    """
    dtype = torch.float32 if tensors[-1].element_size() == 2 else torch.float64
    function = (FUSED if len(tensors) == 4 else PLAIN)[1]
    exact = forward_backward(function, [t.to(dtype) for t in tensors], list(size.shapes), grad.to(dtype))
    return [t.to(like.dtype) for t, like in zip(exact, [grad, *tensors], strict=True)]


def assert_equal(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
