"""Layers that are faster on the CPU than PyTorch's.

Parameters are the same; results are the same up to rounding and to the random numbers of dropout. Without the compiled
library, and in other types than float32, float16 and bfloat16, dropout is PyTorch's.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn import grad as gradients

from .library import LIBRARIES

_MIN_PRODUCTS = 2**22  # multiplications below which the overhead of a convolution matters
_MIN_ELEMENTS = 20480  # up to this size, PyTorch computes dilated convolutions without oneDNN
_MIN_OUTPUTS = 8  # output channels below which oneDNN is slower
_MIN_COPIED = 2**21  # elements of a convolution that does not fit into the caches, so that the layout matters
_MIN_CHANNELS = 32  # input channels; the stem, with three, is faster in the channels-last layout
_measuring = threading.Lock()


class Linear(nn.Linear):
    """``nn.Linear`` that uses `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes ``F.linear``, with oneDNN where that is faster.

    PyTorch's linear layers use a BLAS library in float32, usually MKL, and its convolutions use oneDNN. On processors
    of other vendors than Intel, MKL can be less than half as fast.

    Args:
        input: (…, C).
        weight: (O, C).
        bias: (O,).

    Returns:
        (…, O).
    """
    if is_traced() or type(weight) not in (Tensor, nn.Parameter) or weight.dtype != torch.float32:
        return F.linear(input, weight, bias)
    if weight.layout != torch.strided or input.shape[-1] != weight.shape[-1]:
        return F.linear(input, weight, bias)
    if not _is_large(input, weight.shape[0]) or not _prefers_onednn(input):
        return F.linear(input, weight, bias)
    # With a dilation, which does not change 1x1 convolutions, PyTorch selects oneDNN also for one thread.
    output = F.conv2d(_as_map(input), weight[..., None, None], bias, dilation=2)
    return output.permute(0, 2, 3, 1).reshape(*input.shape[:-1], weight.shape[0])


def weight_gradient(grad: Tensor, input: Tensor) -> Tensor:
    """Computes the gradient (O, C) of the weight of a linear layer from grad (S, O) and input (S, C)."""
    sizes = grad.shape[1], input.shape[1]
    if not (_is_large(input, sizes[0]) and _prefers_onednn(input)):
        return grad.t() @ input
    return gradients.conv2d_weight(_as_map(input), (*sizes, 1, 1), _as_map(grad), dilation=2)[..., 0, 0]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Computes ``F.conv2d``, with a faster backward pass of channels-last feature maps on the CPU.

    oneDNN computes gradients of strided 1x1 convolutions slowly, and, on processors without AVX-512, those of larger
    kernels in the channels-last layout.

    Args:
        input: (N, C, H, W).
        weight: (O, C / groups, kH, kW).
        bias: (O,).
        stride, padding, dilation: along H and W, as in ``nn.Conv2d``.
        groups: groups of channels.

    Returns:
        (N, O, H', W').
    """
    if is_traced() or type(input) not in (Tensor, nn.Parameter) or input.device.type != "cpu":
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    is_pointwise = weight.shape[2:] == (1, 1)
    has_gradient = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    is_improved = has_gradient and input.is_contiguous(memory_format=torch.channels_last)
    is_sampled = is_improved and is_pointwise and padding == (0, 0) and stride != (1, 1)
    if is_sampled:
        # Sliced as (N, H, W, C), so that the gradient keeps the layout. PyTorch does not recognize that of all slices.
        pixels = input.permute(0, 2, 3, 1)[:, :: stride[0], :: stride[1]].permute(0, 3, 1, 2)
        input, stride = pixels.contiguous(memory_format=torch.channels_last), (1, 1)
    uses_onednn = _may_use_onednn if is_sampled else _prefers_onednn  # strided convolutions use oneDNN in PyTorch, too
    if is_pointwise and torch.get_num_threads() == 1 and uses_onednn(input):
        dilation = 2, 2  # as in `linear`
    is_dense = not is_pointwise and groups == 1 and isinstance(padding, tuple)
    if is_improved and is_dense and _may_use_onednn(input) and _is_worth_copying(input, weight, stride):
        output: Tensor = _CopyingConvolution.apply(input, weight, bias, stride, padding, dilation)
        return output
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _is_worth_copying(input: Tensor, weight: Tensor, stride: tuple[int, ...]) -> bool:
    output = input.numel() // input.shape[1] * weight.shape[0] // (stride[0] * stride[1])
    is_large = input.numel() + output + weight.numel() >= _MIN_COPIED and input.shape[1] >= _MIN_CHANNELS
    # A measurement could differ between runs.
    return is_large and not torch.are_deterministic_algorithms_enabled() and contiguous_is_faster(stride[0])


class _CopyingConvolution(torch.autograd.Function):
    """Convolution of a channels-last feature map, whose gradients are computed in the contiguous layout."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        return F.conv2d(input, weight, bias, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, bias, *ctx.options = inputs
        ctx.save_for_backward(input, weight)
        ctx.bias_sizes = None if bias is None else bias.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        options = ctx.bias_sizes, *ctx.options, ctx.needs_input_grad[:3]
        if torch._C._functorch.is_legacy_batchedtensor(grad) or torch._C._functorch.is_batchedtensor(grad):
            # The layouts of batched gradients are unknown.
            return *_convolution_backward(grad, input, weight, *options), None, None, None
        grad_input, *others = _convolution_backward(grad.contiguous(), input.contiguous(), weight, *options)
        if grad_input is not None:
            grad_input = grad_input.contiguous(memory_format=torch.channels_last)
        return grad_input, *others, None, None, None


def _convolution_backward(
    grad: Tensor, input: Tensor, weight: Tensor, bias_sizes: Any, stride: Any, padding: Any, dilation: Any, needed: Any
) -> Any:
    """Returns the gradients of the input, weight and bias of a convolution, None where not needed."""
    options = stride, padding, dilation, False, (0, 0), 1  # not transposed, one group
    return torch.ops.aten.convolution_backward(grad, input, weight, bias_sizes, *options, needed)


def _as_map(x: Tensor) -> Tensor:
    """Returns (…, C) as a channels-last feature map (1, C, 1, …), without a copy if it is contiguous."""
    return x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def _is_large(input: Tensor, outputs: int) -> bool:
    return input.numel() * outputs >= _MIN_PRODUCTS and outputs >= _MIN_OUTPUTS


def _prefers_onednn(input: Tensor) -> bool:
    """Returns whether products with a float32 tensor on the CPU should use oneDNN.

    False for other and for small tensors, for traced models, under autocast, if ``torch.backends.mkldnn.enabled`` is
    False, and if a lower precision is allowed (``torch.set_float32_matmul_precision``).
    """
    return _may_use_onednn(input) and onednn_is_faster()


def _may_use_onednn(input: Tensor) -> bool:
    mkldnn: Any = torch.backends.mkldnn
    return (
        not is_traced()  # first: the number of elements may be symbolic
        and type(input) in (Tensor, nn.Parameter)
        and input.dtype == torch.float32
        and input.device.type == "cpu"
        and input.numel() > _MIN_ELEMENTS
        and not torch.is_autocast_enabled("cpu")
        and bool(mkldnn.enabled)
        and all(kind.fp32_precision in ("none", "ieee") for kind in (mkldnn.conv, mkldnn.matmul))
    )


@functools.cache
def onednn_is_faster() -> bool:
    """Returns whether oneDNN multiplies matrices at least 1.3 times as fast as the BLAS library on this processor.

    The environment variable ``MS_DEFORM_ATTN_ONEDNN`` (0 or 1) replaces the measurement, which takes about 20 ms on
    one thread.
    """
    setting = os.environ.get("MS_DEFORM_ATTN_ONEDNN", "")
    if setting or not torch.backends.mkldnn.is_available():
        return setting not in ("", "0")
    input, weight = (torch.ones(rows, 256, dtype=torch.float32, device="cpu") for rows in (1024, 256))
    input_map, weight_map = _as_map(input), weight[..., None, None]
    onednn = functools.partial(F.conv2d, input_map, weight_map, dilation=2)
    return _measure(functools.partial(F.linear, input, weight), onednn) > 1.3


@functools.cache
def contiguous_is_faster(stride: int) -> bool:
    """Returns whether the backward pass of a large 3x3 convolution is faster with copies in the contiguous layout.

    The measurement takes one or two seconds on one thread. False if the environment variable ``MS_DEFORM_ATTN_ONEDNN``
    is set.
    """
    if os.environ.get("MS_DEFORM_ATTN_ONEDNN") or not torch.backends.mkldnn.is_available():
        return False
    sizes = (1, 512, stride * 25, stride * 34), (512, 512, 3, 3), (1, 512, 25, 34)
    input, weight, grad = (torch.ones(size, dtype=torch.float32, device="cpu") for size in sizes)
    input, grad = (x.contiguous(memory_format=torch.channels_last) for x in (input, grad))
    options = None, (stride, stride), (1, 1), (1, 1), [True, True, False]

    def contiguous() -> Tensor:
        grads = _convolution_backward(grad.contiguous(), input.contiguous(), weight, *options)
        copy: Tensor = grads[0].contiguous(memory_format=torch.channels_last)
        return copy

    return _measure(functools.partial(_convolution_backward, grad, input, weight, *options), contiguous, 2) > 1.1


def _measure(before: Callable[[], Tensor], after: Callable[[], Tensor], repetitions: int = 10) -> float:
    """Returns the ratio of the times of two functions on one thread."""

    def measure() -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # with several threads, other programs would affect the result
        try:
            times = [(_seconds(before), _seconds(after)) for _ in range(repetitions)]
        finally:
            torch.set_num_threads(threads)
        return min(seconds for seconds, _ in times) / min(seconds for _, seconds in times)

    # Another thread has no autocast, modes and hooks of the caller. The lock protects the number of threads.
    with _measuring, ThreadPoolExecutor(1) as pool:
        return pool.submit(measure).result()


def _seconds(function: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Dropout(nn.Dropout):
    """``nn.Dropout`` with a faster random generator and without a stored mask on the CPU.

    On the CPU, ``nn.Dropout`` spends most of its time in PyTorch's generator and stores its mask. The compiled dropout
    computes 16 random bits of each element from the element's index and a seed, which is drawn from PyTorch's
    generator, in the forward and again in the backward pass. The probability is rounded to a multiple of 2^-16.
    """

    def forward(self, input: Tensor) -> Tensor:
        p = compiled_dropout_p(input, self.p, self.training)
        if not p or self.inplace:
            return super().forward(input)
        output: Tensor = _SeededDropout.apply(input, p, draw_seed())
        return output


def compiled_dropout_p(input: Tensor, p: float, training: bool) -> float | None:
    """Returns the probability, 0 in evaluation mode, if the compiled dropout may be used; otherwise None."""
    if type(input) is not Tensor or input.device.type != "cpu" or is_traced():
        return None
    if not training or p == 0:
        return 0.0
    is_supported = input.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return p if p < 1 and LIBRARIES and is_supported else None


class _SeededDropout(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, p: float, seed: int) -> Tensor:
        input = input.contiguous()
        output = torch.empty_like(input)
        torch.ops.ms_deform_attn.dropout(input, _threshold(p), seed, dropout_scale(p), output)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.options = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _SeededDropout.apply(grad, *ctx.options), None, None


def draw_seed() -> int:
    """Draws a seed from PyTorch's generator."""
    return int(torch.randint(2**63 - 1, (), device="cpu"))


def drop_(x: Tensor, p: float, seed: int) -> Tensor:
    """Sets elements of x, which is contiguous, to zero in place; the others must be multiplied by `dropout_scale`."""
    torch.ops.ms_deform_attn.dropout(x, _threshold(p), seed, 1.0, x)
    return x


def dropout_scale(p: float) -> float:
    """Returns the factor of elements that `drop_` keeps."""
    return 1 / (1 - _threshold(p) / 2**16)


def _threshold(p: float) -> int:
    return min(round(p * 2**16), 2**16 - 1)


def is_traced() -> bool:
    """Returns whether a model is traced, compiled or exported, so that values of tensors cannot be read.

    Transforms of ``torch.func`` and forward-mode differentiation count, too.
    """
    return (
        torch.jit.is_tracing()
        or torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
