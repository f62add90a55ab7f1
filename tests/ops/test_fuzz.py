"""Random shapes, types, strides and values: the kernels return the reference's results or raise the same errors.

MS_DEFORM_ATTN_FUZZ sets the number of examples.
"""

import math
import os

import op_helpers as op
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("MS_DEFORM_ATTN_FUZZ", "150"))
SPECIAL = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e-40, 0.0, -0.0, 0.5, 1.0]

sizes = st.builds(
    op.Size,
    n=st.integers(0, 2),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4).map(tuple),
    m=st.integers(1, 3),
    d=st.one_of(st.integers(1, 40), st.sampled_from([16, 32, 64, 130])),
    q=st.one_of(st.integers(0, 3), st.integers(0, 60)),
    k=st.integers(1, 5),
)


def poison(t: torch.Tensor, values: list[float], seed: int) -> torch.Tensor:
    if t.numel() == 0:
        return t
    index = torch.randint(t.numel(), (len(values),), generator=torch.Generator().manual_seed(seed))
    t.view(-1)[index] = torch.tensor(values, dtype=torch.float64).to(t.dtype)
    return t


def restride(t: torch.Tensor, how: int) -> torch.Tensor:
    if how == 0:
        return t
    if how == 1:
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    wide = t.new_empty(*t.shape[:-1], 2 * t.shape[-1])
    wide[..., ::2] = t
    return wide[..., ::2]


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000, database=None)
@given(
    size=sizes,
    dtype=st.sampled_from(op.DTYPES),
    seed=st.integers(0, 2**31),
    bad_points=st.lists(st.sampled_from(SPECIAL), max_size=6),
    bad_values=st.lists(st.sampled_from(SPECIAL), max_size=3),
    strides=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    values=st.sampled_from([0, 2, 4]),
)
def test_fuzz(size, dtype, seed, bad_points, bad_values, strides, values) -> None:
    fused = values > 0
    tensors = op.make_fused(size, dtype, values, seed) if fused else op.make_plain(size, dtype, seed)
    poison(tensors[0], bad_values, seed)
    # Only locations or offsets: weights stay finite, because their products are compared.
    poison(tensors[2 if fused else 1], bad_points, seed + 1)
    tensors = [restride(t, s) for t, s in zip(tensors, strides, strict=False)]
    grad = op.grad_like_output(size, dtype)
    found, expected = (
        op.forward_backward(f, tensors, list(size.shapes), grad) for f in (op.FUSED if fused else op.PLAIN)
    )
    try:
        op.assert_near(found, expected, 4)
    except AssertionError:
        # The terms of a gradient with few points may cancel, so the error is compared with the size of the terms.
        exact = op.forward_backward(
            (op.FUSED if fused else op.PLAIN)[1], [t.double() for t in tensors], list(size.shapes), grad.double()
        )
        finite_max = [t[t.isfinite()].double().abs().max().item() for t in (tensors[0], grad)]
        side = max(max(shape) for shape in size.shapes)
        products = torch.finfo(dtype).eps * math.sqrt(size.d) * finite_max[0] * finite_max[1] * side
        assert_as_accurate(found, expected, exact, products)


def assert_as_accurate(found, expected, exact, products) -> None:
    """Asserts that each error against float64 is at most eight times the reference's own, or `products`."""
    for i, (a, b, c) in enumerate(zip(found, expected, exact, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.equal(a.isfinite(), b.isfinite()), f"tensor {i}: non-finite elements differ"
        finite = a.isfinite() & c.isfinite()
        error, own = ((t.double() - c)[finite].abs().max().item() if finite.any() else 0.0 for t in (a, b))
        assert error <= max(8 * own, products), f"tensor {i}: error {error:.2e}, error of the reference {own:.2e}"


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000, database=None)
@given(data=st.data(), size=sizes, dtype=st.sampled_from(op.DTYPES))
def test_fuzz_wrong_arguments(data, size, dtype) -> None:
    """Changes one argument at random; kernel and reference return the same result or raise the same error."""
    tensors = op.make_plain(size, dtype)
    which = data.draw(st.integers(0, 2))
    t = tensors[which]
    kind = data.draw(st.sampled_from(["drop", "grow", "flatten", "dtype"]))
    dim = data.draw(st.integers(0, t.dim() - 1))
    if kind == "drop":
        t = t.narrow(dim, 0, max(t.shape[dim] - 1, 0))
    elif kind == "grow":
        t = torch.cat([t, t.narrow(dim, 0, min(1, t.shape[dim]))], dim)
    elif kind == "flatten":
        t = t.flatten(0, 1)
    else:
        t = t.to(data.draw(st.sampled_from([*op.DTYPES, torch.int64, torch.bool])))
    tensors[which] = t
    results = []
    for function in op.PLAIN:
        try:
            results.append(function(tensors[0], list(size.shapes), None, *tensors[1:]))
        except RuntimeError as error:
            results.append(str(error))
    if isinstance(results[1], str):
        assert results[0] == results[1] and results[1].startswith("ms_deform_attn: ")
    else:
        op.assert_near(results[:1], results[1:], 1)
