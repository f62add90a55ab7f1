"""The compiled operator against the reference: element types, unusual sizes, locations and strides."""

import ms_deform_attn as msda
import pytest
import torch
from op_helpers import (
    DTYPES,
    FUSED,
    NON_FINITE,
    PLAIN,
    SIZES,
    TOLERANCE,
    Size,
    assert_equal,
    assert_near,
    forward_backward,
    grad_like_output,
    make,
    make_plain,
    move_to_half_pixels,
)


def both(functions, tensors, size, grad):
    return [forward_backward(f, tensors, list(size.shapes), grad) for f in functions]


@pytest.mark.parametrize("values", [0, 2, 4], ids=["plain", "fused2", "fused4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward_and_backward(size: Size, dtype: torch.dtype, values: int) -> None:
    functions, tolerance = (FUSED, 3 * TOLERANCE[dtype]) if values else (PLAIN, TOLERANCE[dtype])
    assert_near(*both(functions, make(size, dtype, values), size, grad_like_output(size, dtype)), tolerance)


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
    size = Size(1, ((8, 4), (2, 16)), 2, 32, queries, 4)
    tensors = make_plain(size, torch.float32)
    move_to_half_pixels(tensors[1], size)
    assert_near(*both(PLAIN, tensors, size, grad_like_output(size, torch.float32)), 2e-6)


@pytest.mark.parametrize("queries", [3, 200], ids=["in place", "copied"])
def test_non_finite_locations_contribute_nothing(queries: int) -> None:
    size = Size(1, ((9, 8), (6, 5)), 2, 32, queries, 4)
    value, loc, weights = make_plain(size, torch.float32)
    for i, bad in enumerate(NON_FINITE):
        loc[:, i % size.q, i % 2, i % 2, i % 4, i % 2] = bad
    finite_weights = torch.where((loc.abs() < 1e9).all(-1), weights, 0)
    finite_loc = torch.where(loc.abs() < 1e9, loc, -9.0)
    output = msda.ms_deform_attn(value, size.shapes, None, loc, weights)
    assert output.isfinite().all()
    assert torch.equal(output, msda.ms_deform_attn(value, size.shapes, None, finite_loc, finite_weights))
    ours, wanted = both(PLAIN, [value, loc, weights], size, grad_like_output(size, torch.float32))
    assert all(t.isfinite().all() for t in ours)
    assert_near(ours, wanted, 2e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("queries", [2, 200], ids=["in place", "copied"])
def test_non_finite_values_affect_only_points_that_sample_them(poison: float, queries: int) -> None:
    size = Size(1, ((9, 8), (6, 5)), 2, 32, queries, 2)
    value, loc, weights = make_plain(size, torch.float32)
    value[:, 0] = poison  # a corner of level 0: must not reach border points through weight zero
    value[:, 72 + 29] = poison
    ours, wanted = both(PLAIN, [value, loc, weights], size, grad_like_output(size, torch.float32))
    assert_near(ours, wanted, 2e-6)


def test_strides() -> None:
    """Transposed, sliced and expanded inputs give bitwise the result of contiguous ones."""
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
        assert_equal(forward_backward(msda.ms_deform_attn, [strange, *points], size.shapes, grad), wanted)
    expanded = [value[:1].expand(2, -1, -1, -1), loc[:1].expand(2, *loc.shape[1:]), weights]
    grad = grad[:, :1].expand_as(grad)
    dense = forward_backward(msda.ms_deform_attn, [t.contiguous() for t in expanded], size.shapes, grad)
    assert_equal(forward_backward(msda.ms_deform_attn, expanded, size.shapes, grad), dense)


@pytest.mark.parametrize("size", SIZES[:5], ids=str)
def test_gradcheck(size: Size) -> None:
    small = Size(size.n, size.shapes, size.m, min(size.d, 33), min(size.q, 4), size.k)
    for values in (0, 2, 4):
        tensors = [t.requires_grad_() for t in make(small, torch.float64, values)]
        function = FUSED[0] if values else PLAIN[0]
        torch.autograd.gradcheck(lambda v, *x, f=function: f(v, list(small.shapes), None, *x), tensors, fast_mode=True)


def test_gradcheck_in_full() -> None:
    """Every element of the Jacobian, on a small case of each layout."""
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
