"""The compiled operator against the reference: every element type, odd sizes, odd places, odd strides."""

import ms_deform_attn as msda
import pytest
import torch
from op_helpers import (
    FUSED,
    PLAIN,
    SIZES,
    TOLERANCE,
    Size,
    assert_near,
    forward_backward,
    grad_like_output,
    make_fused,
    make_plain,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def both(functions, tensors, size, grad):
    return [forward_backward(f, tensors, list(size.shapes), grad) for f in functions]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_plain(size: Size, dtype: torch.dtype) -> None:
    tensors = make_plain(size, dtype)
    assert_near(*both(PLAIN, tensors, size, grad_like_output(size, dtype)), TOLERANCE[dtype])


@pytest.mark.parametrize("values", [2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fused(size: Size, dtype: torch.dtype, values: int) -> None:
    tensors = make_fused(size, dtype, values)
    assert_near(*both(FUSED, tensors, size, grad_like_output(size, dtype)), 3 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES[:6], ids=str)
def test_wide_points_beside_16_bit_value(size: Size, dtype: torch.dtype) -> None:
    value, *points = make_plain(size, torch.float32)
    tensors = [value.to(dtype), *points]
    ours, wanted = both(PLAIN, tensors, size, grad_like_output(size, dtype))
    assert ours[0].dtype == dtype and ours[2].dtype == torch.float32
    assert_near(ours[:2], wanted[:2], TOLERANCE[dtype])
    assert_near(ours[2:], wanted[2:], TOLERANCE[torch.float32])


@pytest.mark.parametrize("queries", [2, 200], ids=["in place", "copied"])
def test_borders_and_pixel_centres(queries: int) -> None:
    """Exactly on pixel centres, on the level's edge, and half a pixel beyond it, where kinks and masks live."""
    size = Size(1, ((8, 4), (2, 16)), 2, 32, queries, 4)
    value, loc, weights = make_plain(size, torch.float32)
    for level, (h, w) in enumerate(size.shapes):
        g = torch.Generator().manual_seed(level)
        steps = torch.tensor([w, h]) * 2  # half pixels, from one pixel outside to one pixel outside
        index = torch.stack(
            [torch.randint(-2, int(s) + 3, loc[:, :, :, 0, :, 0].shape, generator=g) for s in steps], -1
        )
        loc[:, :, :, level] = index / steps
    assert_near(*both(PLAIN, [value, loc, weights], size, grad_like_output(size, torch.float32)), 2e-6)


@pytest.mark.parametrize("queries", [3, 200], ids=["in place", "copied"])
def test_non_finite_locations_contribute_nothing(queries: int) -> None:
    size = Size(1, ((9, 8), (6, 5)), 2, 32, queries, 4)
    value, loc, weights = make_plain(size, torch.float32)
    for i, bad in enumerate((float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e38)):
        loc[:, i % size.q, i % 2, i % 2, i % 4, i % 2] = bad
    harmless = torch.where((loc.abs() < 1e9).all(-1), weights, 0)
    safe = torch.where(loc.abs() < 1e9, loc, -9.0)
    output = msda.ms_deform_attn(value, size.shapes, None, loc, weights)
    assert output.isfinite().all()
    assert torch.equal(output, msda.ms_deform_attn(value, size.shapes, None, safe, harmless))
    ours, wanted = both(PLAIN, [value, loc, weights], size, grad_like_output(size, torch.float32))
    assert all(t.isfinite().all() for t in ours)
    assert_near(ours, wanted, 2e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("queries", [2, 200], ids=["in place", "copied"])
def test_non_finite_values_stay_where_they_are_sampled(poison: float, queries: int) -> None:
    size = Size(1, ((9, 8), (6, 5)), 2, 32, queries, 2)
    value, loc, weights = make_plain(size, torch.float32)
    value[:, 0] = poison  # a corner of level 0: border points must not pick it up with weight zero
    value[:, 72 + 29] = poison
    ours, wanted = both(PLAIN, [value, loc, weights], size, grad_like_output(size, torch.float32))
    assert_near(ours, wanted, 2e-6)


def test_strides() -> None:
    """Transposed, sliced and expanded inputs give the result of contiguous ones, bit by bit."""
    size = Size(2, ((9, 8), (6, 5)), 4, 32, 60, 3)
    value, loc, weights = make_plain(size, torch.float32)
    grad = grad_like_output(size, torch.float32)
    wanted = forward_backward(msda.ms_deform_attn, [value, loc, weights], size.shapes, grad)
    heads_first = value.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    channels_apart = value.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    wide = torch.randn(2, size.rows, 4, 64)
    wide[..., 16:48] = value
    for strange in (heads_first, channels_apart, wide[..., 16:48]):
        assert not strange.is_contiguous()
        points = [loc.flip(0).contiguous().flip(0), weights.transpose(1, 4).contiguous().transpose(1, 4)]
        got = forward_backward(msda.ms_deform_attn, [strange, *points], size.shapes, grad)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    expanded = [value[:1].expand(2, -1, -1, -1), loc[:1].expand(2, *loc.shape[1:]), weights]
    got = forward_backward(msda.ms_deform_attn, expanded, size.shapes, grad[:, :1].expand_as(grad))
    dense = forward_backward(
        msda.ms_deform_attn, [t.contiguous() for t in expanded], size.shapes, grad[:, :1].expand_as(grad)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, dense, strict=True))


@pytest.mark.parametrize("size", SIZES[:5], ids=str)
def test_gradcheck(size: Size) -> None:
    small = Size(size.n, size.shapes, size.m, min(size.d, 33), min(size.q, 4), size.k)
    tensors = [t.requires_grad_() for t in make_plain(small, torch.float64)]
    torch.autograd.gradcheck(
        lambda v, x, w: msda.ms_deform_attn(v, list(small.shapes), None, x, w), tensors, fast_mode=True
    )
    for values in (2, 4):
        tensors = [t.requires_grad_() for t in make_fused(small, torch.float64, values)]
        torch.autograd.gradcheck(
            lambda v, r, x, w: msda.ms_deform_attn_fused(v, list(small.shapes), None, r, x, w), tensors, fast_mode=True
        )


def test_gradcheck_in_full() -> None:
    """Every element of the Jacobian, once, on a small case of each path."""
    for size in (Size(1, ((3, 2), (2, 2)), 2, 3, 3, 2), Size(1, ((6, 5),), 1, 4, 1, 2)):
        tensors = [t.requires_grad_() for t in make_plain(size, torch.float64)]
        torch.autograd.gradcheck(lambda v, x, w, s=size: msda.ms_deform_attn(v, list(s.shapes), None, x, w), tensors)


def test_shapes_as_tensor_and_start_index() -> None:
    size = Size(1, ((9, 8), (6, 5)), 2, 16, 10, 3)
    value, loc, weights = make_plain(size, torch.float32)
    wanted = msda.ms_deform_attn(value, size.shapes, None, loc, weights)
    shapes = torch.tensor(size.shapes)
    for start in (None, [0, 72], torch.tensor([0, 72])):
        assert torch.equal(msda.ms_deform_attn(value, shapes, start, loc, weights), wanted)
        assert torch.equal(msda.ms_deform_attn(value, size.shapes, start, loc, weights), wanted)
