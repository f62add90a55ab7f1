"""Numbers of parameters and floating-point operations of detectors.

A multiply-add counts as one operation, as in the papers. Matrix products, convolutions, attention and the sampling of
deformable attention and convolution are counted; norms, activations and resizing are not.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ms_deform_attn.flops import multiply_adds
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Size = tuple[int, int]
_Shape = Sequence[int]


def _deformable_attention(value: _Shape, *inputs: Any, out_shape: _Shape, **_: Any) -> int:
    """Counts the sampling; the last argument of the operator is the attention weights or logits, (N, Q, M, L, K)."""
    weights: _Shape = inputs[-1]
    batch, queries, heads, levels, points = weights
    return 2 * multiply_adds(batch, queries, heads, value[3], levels, points)


def _deformable_convolution(images: _Shape, weight: _Shape, *_: Any, out_shape: _Shape, **__: Any) -> int:
    """Counts the multiply-adds of a convolution, plus four per sampled tap and channel."""
    out_channels, in_channels, *kernel = weight
    batch, height, width = out_shape[0], out_shape[2], out_shape[3]
    return int(2 * batch * height * width * math.prod(kernel) * in_channels * (out_channels + 4))


def _attention(query: _Shape, key: _Shape, value: _Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _operators() -> dict[Any, Callable[..., int]]:
    operators = torch.ops.ms_deform_attn
    return {
        operators.forward: _deformable_attention,
        operators.fused_forward: _deformable_attention,
        torch.ops.torchvision.deform_conv2d: _deformable_convolution,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    }


@torch.no_grad()
def count_flops(run: Callable[..., object], *inputs: Any) -> float:
    """Counts the FLOPs of ``run(*inputs)``, in billions. Tensors on the meta device need neither time nor memory."""
    with FlopCounterMode(display=False, custom_mapping=_operators()) as counter:
        run(*inputs)
    return counter.get_total_flops() / 2e9


def count_parameters(module: nn.Module) -> float:
    """Returns the number of parameters in millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def count_detector(detector: nn.Module, sizes: Sequence[Size]) -> list[float]:
    """Returns the FLOPs of a detector in billions, including all masks, for one image of each size (H, W).

    The detector is set to evaluation mode, without gradients, and should be on the meta device.
    """

    def run(images: torch.Tensor, padding_mask: torch.Tensor) -> None:
        predictions = detector(images, padding_mask)
        if predictions.masks is not None:
            predictions.masks.all()

    detector.eval().requires_grad_(False)  # the counter's hooks need consistent gradients
    device = next(detector.parameters()).device
    return [
        count_flops(
            run, torch.zeros(1, 3, *size, device=device), torch.zeros(1, *size, dtype=torch.bool, device=device)
        )
        for size in sizes
    ]
