"""Compatibility with the interfaces of other implementations of the operator."""

import sys

import ms_deform_attn as msda
import pytest
import torch
from ms_deform_attn import compat
from op_helpers import Size, make_plain

SIZE = Size(2, ((6, 5), (3, 4)), 2, 8, 7, 3)
SHAPES, START = torch.tensor(SIZE.shapes), torch.tensor([0, 30])


@pytest.fixture
def extension():
    compat.install()
    import MultiScaleDeformableAttention

    yield MultiScaleDeformableAttention
    for name in compat.NAMES:
        del sys.modules[name]


def test_extension(extension) -> None:
    value, loc, weights = make_plain(SIZE, torch.float64)
    output = extension.ms_deform_attn_forward(value, SHAPES, START, loc, weights, 64)
    leaves = [t.clone().requires_grad_() for t in (value, loc, weights)]
    expected = msda.ms_deform_attn_reference(leaves[0], SHAPES, START, *leaves[1:])
    torch.testing.assert_close(output, expected)
    grad = torch.randn_like(output)
    grads = extension.ms_deform_attn_backward(value, SHAPES, START, loc, weights, grad, 64)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, leaves, grad))


def test_custom_function_around_the_extension(extension) -> None:
    """Typical use of the extension: an autograd.Function around it, and a batch not divisible by im2col_step."""

    class Official(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, shapes, start, loc, weights, step):
            ctx.step = step
            ctx.save_for_backward(value, shapes, start, loc, weights)
            return extension.ms_deform_attn_forward(value, shapes, start, loc, weights, step)

        @staticmethod
        def backward(ctx, grad):
            value, shapes, start, loc, weights = ctx.saved_tensors
            grads = extension.ms_deform_attn_backward(value, shapes, start, loc, weights, grad, ctx.step)
            return grads[0], None, None, grads[1], grads[2], None

    leaves = [t.requires_grad_() for t in make_plain(SIZE, torch.float64)]
    assert torch.autograd.gradcheck(lambda v, x, w: Official.apply(v, SHAPES, START, x, w, 3), leaves, fast_mode=True)


@pytest.mark.parametrize("function", [compat.MSDeformAttnFunction, compat.MultiScaleDeformableAttnFunction])
def test_functions(function) -> None:
    leaves = [t.requires_grad_() for t in make_plain(SIZE, torch.float64)]
    output = function.apply(leaves[0], SHAPES, START, leaves[1], leaves[2], 64)
    expected = msda.ms_deform_attn_reference(leaves[0], SHAPES, START, *leaves[1:])
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(
        torch.autograd.grad(output.square().sum(), leaves), torch.autograd.grad(expected.square().sum(), leaves)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_first", [False, True])
def test_module_with_residual(batch_first: bool, dtype: torch.dtype) -> None:
    module = compat.MultiScaleDeformableAttention(16, 2, 2, 3, dropout=0.0, batch_first=batch_first).to(dtype)
    attention = msda.MSDeformAttn(16, 2, 2, 3).to(dtype)
    attention.load_state_dict(module.state_dict())
    query, pos, tokens = (torch.randn(2, rows, 16, dtype=dtype) for rows in (7, 7, 42))
    mask, points = torch.rand(2, 42) < 0.2, torch.rand(2, 7, 2, 4)
    expected = attention(query + pos, points, tokens, SHAPES, START, mask) + query

    def layout(t: torch.Tensor) -> torch.Tensor:
        return t if batch_first else t.transpose(0, 1)

    output = module(
        layout(query),
        None,
        layout(tokens),
        query_pos=layout(pos),
        key_padding_mask=mask,
        reference_points=points,
        spatial_shapes=SHAPES,
        level_start_index=START,
    )
    torch.testing.assert_close(layout(output), expected)


def test_install_raises_if_another_implementation_is_imported() -> None:
    sys.modules["MultiScaleDeformableAttention"] = sys
    try:
        with pytest.raises(ImportError, match="is already imported"):
            compat.install()
    finally:
        del sys.modules["MultiScaleDeformableAttention"]


def test_names_of_other_packages(tmp_path, monkeypatch) -> None:
    for package in ("groundingdino", "some_detector"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    names = (*compat.NAMES, "some_detector._C")
    try:
        compat.install("some_detector._C")
        from groundingdino import _C as first
        from some_detector import _C as second

        assert first.ms_deform_attn_forward is second.ms_deform_attn_forward is compat.ms_deform_attn_forward
    finally:
        for name in (*names, "groundingdino", "some_detector"):
            sys.modules.pop(name, None)
