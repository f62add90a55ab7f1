"""The public functions, and their registration with the dispatcher: fake kernels, autograd formulas and autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import check_arguments, check_shapes
from .levels import Sizes, split_levels, start_tensor
from .library import LIBRARIES, use_kernel
from .reference import ms_deform_attn_fused_reference, ms_deform_attn_reference


def uses_autocast(device: torch.device) -> bool:
    """Returns whether autocast is enabled for a device; the meta device has none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def _autocast(value: Tensor, *points: Tensor) -> tuple[Tensor, ...]:
    """Applies the autocast policy: value is cast to the autocast type, locations, offsets and weights to float32.

    bfloat16 would move locations by up to a quarter of a pixel on a level 100 pixels wide.
    """
    if not uses_autocast(value.device) or value.dtype == torch.float64:
        return (value, *points)
    value = value.to(torch.get_autocast_dtype(value.device.type))
    return (value, *(p.to(torch.float32) for p in points))


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sizes,
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention, arXiv 2010.04159 equations 2 and 3 without the two projections.

    Computes for every query and head an attention-weighted sum of L * K bilinear samples of the head's values. Corners
    outside a level and locations that are NaN or infinite count as zero.

    Args:
        value: (N, S, M, D), the levels flattened row by row and concatenated; any strides. float32, float64,
            float16 or bfloat16; 16-bit types are accumulated in float32.
        spatial_shapes: L pairs (H, W), as integers (preferred) or as an (L, 2) int64 tensor; the products sum to S.
        level_start_index: first row of each level in S, as L integers or (L,) int64 tensor; computed if None.
            Integers and CPU tensors are checked against spatial_shapes, GPU tensors are not read.
        sampling_locations: (N, Q, M, L, K, 2) as (x, y); (0, 0) is the outer corner of the level's first pixel,
            (1, 1) that of its last. Type of value, or float32 with a 16-bit value.
        attention_weights: (N, Q, M, L, K), usually summing to 1 over L and K. Type of sampling_locations.

    Returns:
        (N, Q, M * D) in the type of value.

    Raises:
        RuntimeError: If an argument has the wrong rank, size, type or device; the message names it.
    """
    value, locations, weights = _autocast(value, sampling_locations, attention_weights)
    if not use_kernel(value.device.type):
        return ms_deform_attn_reference(value, spatial_shapes, level_start_index, locations, weights)
    return _call(_PlainFunction, value, spatial_shapes, level_start_index, locations, weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Tensor | Sizes,
    level_start_index: Tensor | Sequence[int] | None,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """:func:`ms_deform_attn` with softmax and location arithmetic inside the kernel, forward and backward.

    Sampling locations, attention weights and their gradients are never stored.

    Args:
        value, spatial_shapes, level_start_index: as in :func:`ms_deform_attn`.
        reference_points: (N, Q, L, 2) as (x, y) in [0, 1], or (N, Q, L, 4) as (cx, cy, w, h) in [0, 1].
        sampling_offsets: (N, Q, M, L, K, 2). In pixels of the level for 2-value reference points, in units of half
            the box size divided by K for 4-value reference points: x = cx + offset / K * w / 2
            (arXiv 2010.04159, appendix A.4).
        attention_logits: (N, Q, M, L, K); the softmax runs over L and K together.

    Returns:
        (N, Q, M * D) in the type of value.

    Raises:
        RuntimeError: If an argument has the wrong rank, size, type or device; the message names it.
    """
    value, reference, offsets, logits = _autocast(value, reference_points, sampling_offsets, attention_logits)
    if not use_kernel(value.device.type):
        return ms_deform_attn_fused_reference(value, spatial_shapes, level_start_index, reference, offsets, logits)
    return _call(_FusedFunction, value, spatial_shapes, level_start_index, reference, offsets, logits)


def _call(
    function: type[torch.autograd.Function],
    value: Tensor,
    spatial_shapes: Tensor | Sizes,
    level_start_index: Tensor | Sequence[int] | None,
    *points: Tensor,
) -> Tensor:
    sizes, shapes = split_levels(spatial_shapes)
    inputs = (value, sizes, shapes, start_tensor(level_start_index), *points)
    if torch.compiler.is_compiling():  # the fake kernel checks the arguments
        output: Tensor = _dispatch(function, *inputs)
        return output
    try:
        output = _dispatch(function, *inputs)
        return output
    except RuntimeError as error:
        failure = error
    check_arguments(value, spatial_shapes, level_start_index, *points)  # raises a message that names the argument
    raise failure


def _fake_output(value: Tensor, points: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], points.shape[1], value.shape[2] * value.shape[3])


def _pairs(sizes: list[int], shapes: Tensor | None) -> Tensor | Sizes:
    return list(zip(sizes[::2], sizes[1::2], strict=True)) if shapes is None else shapes


def _dense(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _deterministic() -> bool:
    """Returns whether CUDA must add the gradients of value in a fixed order; the CPU kernels always do."""
    return torch.are_deterministic_algorithms_enabled()


class _PlainFunction(torch.autograd.Function):
    """Autograd formula of the operator, registered with the dispatcher and applied directly under torch.func."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        output: Tensor = torch.ops.ms_deform_attn.forward(*inputs)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, ctx.sizes, shapes, start, locations, weights = inputs
        ctx.save_for_backward(value, shapes, start, locations, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        value, shapes, start, locations, weights = ctx.saved_tensors
        inputs = (grad, value, ctx.sizes, shapes, start, locations, weights, _deterministic())
        grads = _dispatch(_PlainBackward, *inputs)
        return grads[0], None, None, None, grads[1], grads[2]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        _raise_forward_mode_error()


class _FusedFunction(torch.autograd.Function):
    """Autograd formula of the fused operator."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        output: Tensor = torch.ops.ms_deform_attn.fused_forward(*inputs)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, ctx.sizes, shapes, start, reference, offsets, logits = inputs
        ctx.save_for_backward(value, shapes, start, reference, offsets, logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        value, shapes, start, reference, offsets, logits = ctx.saved_tensors
        want_reference = ctx.needs_input_grad[4]
        inputs = (grad, value, ctx.sizes, shapes, start, reference, offsets, logits, want_reference, _deterministic())
        grads = _dispatch(_FusedBackward, *inputs)
        grad_reference = grads[1].sum(1).to(reference.dtype) if want_reference else None
        return grads[0], None, None, None, grad_reference, grads[2], grads[3]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        _raise_forward_mode_error()


class _PlainBackward(torch.autograd.Function):
    """Backward operator, which is not differentiable."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return torch.ops.ms_deform_attn.backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            "ms_deform_attn: the gradient of the gradient is not implemented; "
            "ms_deform_attn.reference.ms_deform_attn_reference can be differentiated twice"
        )


class _FusedBackward(_PlainBackward):
    @staticmethod
    def forward(*inputs: Any) -> Any:
        return torch.ops.ms_deform_attn.fused_backward(*inputs)


def _raise_forward_mode_error() -> None:
    raise NotImplementedError(
        "ms_deform_attn: forward-mode differentiation (jvp) is not implemented; use reverse mode, or "
        "ms_deform_attn.reference.ms_deform_attn_reference, which supports both"
    )


def _dispatch(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Calls the operator. Inside torch.func transforms and forward-mode levels the dispatcher's autograd kernel would
    drop gradients or raise an unrelated error, so the autograd.Function is applied directly."""
    if not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    ):
        return function.apply(*inputs)
    return function.forward(*inputs)


def _register_fakes() -> None:
    @torch.library.register_fake("ms_deform_attn::forward")
    def _(value, sizes, shapes, start, locations, weights):  # type: ignore[no-untyped-def]
        check_shapes(value, _pairs(sizes, shapes), locations, weights)
        return _fake_output(value, locations)

    @torch.library.register_fake("ms_deform_attn::backward")
    def _(grad, value, sizes, shapes, start, locations, weights, deterministic):  # type: ignore[no-untyped-def]
        return _dense(value), _dense(locations), _dense(weights)

    @torch.library.register_fake("ms_deform_attn::fused_forward")
    def _(value, sizes, shapes, start, reference, offsets, logits):  # type: ignore[no-untyped-def]
        check_shapes(value, _pairs(sizes, shapes), reference, offsets, logits)
        return _fake_output(value, offsets)

    @torch.library.register_fake("ms_deform_attn::fused_backward")
    def _(  # type: ignore[no-untyped-def]
        grad, value, sizes, shapes, start, reference, offsets, logits, want_reference, deterministic
    ):
        n, q, levels, r = reference.shape
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        partial = value.new_empty((n, value.shape[2], q, levels, r) if want_reference else (0,), dtype=dtype)
        return _dense(value), partial, _dense(offsets), _dense(logits)


def _register_autograd() -> None:
    functions = {
        "forward": _PlainFunction,
        "fused_forward": _FusedFunction,
        "backward": _PlainBackward,
        "fused_backward": _FusedBackward,
    }
    for name, function in functions.items():
        torch.library.register_autograd(
            f"ms_deform_attn::{name}", function.backward, setup_context=function.setup_context
        )


if LIBRARIES:
    _register_fakes()
    _register_autograd()
