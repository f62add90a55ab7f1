"""Numbers of parameters and floating-point operations of detectors.

A multiply-add counts as one operation, as in the papers. Matrix products, convolutions, attention and the sampling of
deformable attention and convolution are counted; norms, activations and resizing are not.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from ms_deform_attn.flops import HANDLERS
from torch import Tensor, nn

Size = tuple[int, int]


class _Tensors(nn.Module):
    """Returns a detector's predictions as plain tensors, for tracing."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, ...]:
        predictions = self.detector(images, padding_mask)
        masks = () if predictions.masks is None else (predictions.masks.all(),)
        return predictions.logits, predictions.boxes, *masks


def _attention_products(inputs: Any, outputs: Any) -> int:
    """Counts multiply-adds of scaled_dot_product_attention: query by key, and weights by value."""
    batch, heads, queries, channels = inputs[0].type().sizes()
    keys = inputs[1].type().sizes()[-2]
    return int(2 * batch * heads * queries * keys * channels)


def _deformable_convolution(inputs: Any, outputs: Any) -> int:
    """Counts multiply-adds of deform_conv2d: those of a convolution, plus four per sampled tap and channel."""
    out_channels, in_channels, *kernel = inputs[1].type().sizes()
    batch, _, height, width = outputs[0].type().sizes()
    return int(batch * height * width * math.prod(kernel) * in_channels * (out_channels + 4))


_HANDLERS: dict[str, Callable[[Any, Any], int]] = {
    "aten::scaled_dot_product_attention": _attention_products,
    "torchvision::deform_conv2d": _deformable_convolution,
    **HANDLERS,
}
_NOT_COUNTED = ("norm", "upsample", "pool")


@torch.no_grad()
def count_flops(module: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Counts the FLOPs of one forward pass, in billions."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)  # it lists the operators that are not counted
    analysis = FlopCountAnalysis(module, inputs).set_op_handle(**_HANDLERS)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counted = analysis.by_operator().items()
    return sum(value for name, value in counted if not any(word in name for word in _NOT_COUNTED)) / 1e9


def count_parameters(module: nn.Module) -> float:
    """Counts parameters, in millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def count_detector(detector: nn.Module, sizes: Sequence[Size]) -> list[float]:
    """Returns the FLOPs of a detector in billions, with the masks of all queries, for one image of each size (H, W)."""
    flops = []
    for height, width in sizes:
        images, mask = torch.zeros(1, 3, height, width), torch.zeros(1, height, width, dtype=torch.bool)
        flops.append(count_flops(_Tensors(detector.eval()), (images, mask)))
    return flops
