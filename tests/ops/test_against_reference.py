"""The compiled operator against the reference: element types, unusual sizes, locations and strides."""

import ms_deform_attn as msda
import op_helpers as op
import pytest
import torch


def both(functions, tensors, size, grad):
    return [op.forward_backward(f, tensors, list(size.shapes), grad) for f in functions]


@pytest.mark.parametrize("values", [0, 2, 4], ids=["plain", "fused2", "fused4"])
@pytest.mark.parametrize(("dtype", "points"), op.TYPES)
@pytest.mark.parametrize("size", op.SIZES, ids=str)
def test_forward_and_backward(size: op.Size, dtype: torch.dtype, points: torch.dtype, values: int) -> None:
    tensors, grad = op.make(size, dtype, values, points), op.grad_like_output(size, dtype)
    op.assert_near(*both(op.FUSED if values else op.PLAIN, tensors, size, grad), 3 if values else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_results(dtype: torch.dtype) -> None:
    """Results of several MB, which bypass the caches, equal those of one head at a time."""
    size = op.Size(1, ((96, 90),), 8, 32, 8640, 16)
    points = torch.float32 if dtype == torch.bfloat16 else dtype
    tensors, grad = op.make(size, dtype, 0, points), op.grad_like_output(size, dtype)
    output, grad_value, *grad_points = op.forward_backward(msda.ms_deform_attn, tensors, size.shapes, grad)
    for head in range(size.m):
        channels = slice(head * size.d, (head + 1) * size.d)
        part = [t[:, :, head : head + 1] for t in tensors]
        found = op.forward_backward(msda.ms_deform_attn, part, size.shapes, grad[..., channels])
        op.assert_equal(
            [output[..., channels], *(t[:, :, head : head + 1] for t in grad_points)], [found[0], *found[2:]]
        )
        op.assert_near([grad_value[:, :, head : head + 1]], [found[1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_gradient_of_few_queries(dtype: torch.dtype) -> None:
    size = op.Size(1, ((96, 90), (20, 20)), 8, 32, 4, 4)
    points = torch.float32 if dtype == torch.bfloat16 else dtype
    tensors, grad = op.make(size, dtype, 0, points), op.grad_like_output(size, dtype)
    op.assert_near(*both(op.PLAIN, tensors, size, grad), 1)


@pytest.mark.parametrize("queries", [2, 200], ids=["in place", "copied"])
def test_borders_and_pixel_centers(queries: int) -> None:
    size = op.Size(1, ((8, 4), (2, 16)), 2, 32, queries, 4)
    tensors = op.make_plain(size, torch.float32)
    op.move_to_half_pixels(tensors[1], size)
    op.assert_near(*both(op.PLAIN, tensors, size, op.grad_like_output(size, torch.float32)), 1)


@pytest.mark.parametrize("queries", [3, 200], ids=["in place", "copied"])
def test_non_finite_locations_contribute_nothing(queries: int) -> None:
    size = op.Size(1, ((9, 8), (6, 5)), 2, 32, queries, 4)
    value, loc, weights = op.make_plain(size, torch.float32)
    for i, bad in enumerate(op.NON_FINITE):
        loc[:, i % size.q, i % 2, i % 2, i % 4, i % 2] = bad
    finite_weights = torch.where((loc.abs() < 1e9).all(-1), weights, 0)
    finite_loc = torch.where(loc.abs() < 1e9, loc, -9.0)
    output = msda.ms_deform_attn(value, size.shapes, None, loc, weights)
    assert output.isfinite().all()
    assert torch.equal(output, msda.ms_deform_attn(value, size.shapes, None, finite_loc, finite_weights))
    found, wanted = both(op.PLAIN, [value, loc, weights], size, op.grad_like_output(size, torch.float32))
    assert all(t.isfinite().all() for t in found)
    op.assert_near(found, wanted, 1)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("queries", [2, 200], ids=["in place", "copied"])
def test_non_finite_values_affect_only_points_that_sample_them(poison: float, queries: int) -> None:
    size = op.Size(1, ((9, 8), (6, 5)), 2, 32, queries, 2)
    value, loc, weights = op.make_plain(size, torch.float32)
    value[:, 0] = poison  # a corner of level 0: must not reach border points through weight zero
    value[:, 72 + 29] = poison
    found, wanted = both(op.PLAIN, [value, loc, weights], size, op.grad_like_output(size, torch.float32))
    op.assert_near(found, wanted, 1)


def test_strides() -> None:
    """Transposed, sliced and expanded inputs give bitwise the same result as contiguous ones."""
    size = op.Size(2, ((9, 8), (6, 5)), 4, 32, 60, 3)
    value, loc, weights = op.make_plain(size, torch.float32)
    grad = op.grad_like_output(size, torch.float32)
    wanted = op.forward_backward(msda.ms_deform_attn, [value, loc, weights], size.shapes, grad)
    points = [loc.flip(0).contiguous().flip(0), weights.transpose(1, 4).contiguous().transpose(1, 4)]
    for strided in op.unusual_strides(value):
        op.assert_equal(op.forward_backward(msda.ms_deform_attn, [strided, *points], size.shapes, grad), wanted)
    expanded = [value[:1].expand(2, -1, -1, -1), loc[:1].expand(2, *loc.shape[1:]), weights]
    grad = grad[:, :1].expand_as(grad)
    dense = op.forward_backward(msda.ms_deform_attn, [t.contiguous() for t in expanded], size.shapes, grad)
    op.assert_equal(op.forward_backward(msda.ms_deform_attn, expanded, size.shapes, grad), dense)


@pytest.mark.parametrize("size", op.SIZES[:5], ids=str)
def test_gradcheck(size: op.Size) -> None:
    small = op.Size(size.n, size.shapes, size.m, min(size.d, 33), min(size.q, 4), size.k)
    for values in (0, 2, 4):
        tensors = [t.requires_grad_() for t in op.make(small, torch.float64, values)]
        function = op.FUSED[0] if values else op.PLAIN[0]
        torch.autograd.gradcheck(lambda v, *x, f=function: f(v, list(small.shapes), None, *x), tensors, fast_mode=True)


def test_gradcheck_in_full() -> None:
    """Every element of the Jacobian, on a small case of each layout."""
    for size in (op.Size(1, ((3, 2), (2, 2)), 2, 3, 3, 2), op.Size(1, ((6, 5),), 1, 4, 1, 2)):
        tensors = [t.requires_grad_() for t in op.make_plain(size, torch.float64)]
        torch.autograd.gradcheck(lambda v, x, w, s=size: msda.ms_deform_attn(v, list(s.shapes), None, x, w), tensors)


def test_shapes_as_tensor_and_start_index() -> None:
    size = op.Size(1, ((9, 8), (6, 5)), 2, 16, 10, 3)
    value, loc, weights = op.make_plain(size, torch.float32)
    wanted = msda.ms_deform_attn(value, size.shapes, None, loc, weights)
    shapes = torch.tensor(size.shapes)
    for start in (None, [0, 72], torch.tensor([0, 72])):
        assert torch.equal(msda.ms_deform_attn(value, shapes, start, loc, weights), wanted)
        assert torch.equal(msda.ms_deform_attn(value, size.shapes, start, loc, weights), wanted)


REPRODUCIBLE = [
    op.Size(1, ((12, 9), (5, 4)), 1, 32, 200, 4),  # one head: fewer slices than threads
    op.Size(2, ((12, 9), (5, 4)), 4, 40, 150, 3),
    op.Size(1, ((40, 40),), 8, 32, 3, 4),
    op.Size(1, ((100, 100),), 8, 32, 600, 4),  # in place, with work for several threads
    # Few heads, many queries: tasks are runs of queries, and backward sums the gradients of parts.
    op.Size(1, ((12, 9), (5, 4)), 1, 32, 1500, 4),
    op.Size(2, ((12, 9), (5, 4)), 1, 32, 1500, 4),
    op.Size(1, ((12, 9), (5, 4)), 3, 30, 1500, 4),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", REPRODUCIBLE, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(size: op.Size, dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    for functions, values in ((op.PLAIN, 0), (op.FUSED, 4)):
        tensors, grad = op.make(size, dtype, values), op.grad_like_output(size, dtype)
        results = []
        for count in (1, 2, 3, 4, 7, 2):
            torch.set_num_threads(count)
            results.append(op.forward_backward(functions[0], tensors, size.shapes, grad))
            op.assert_equal(results[-1], results[0])
    torch.set_num_threads(before)
