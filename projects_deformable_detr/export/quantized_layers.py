"""INT8 convolutions and linear layers for Inductor on x86 CPUs, whose other operators compute in bfloat16.

The layers quantize and dequantize their inputs and weights; Inductor replaces these operators by kernels of oneDNN.
Attention, normalization, input projections, sampling offsets and prediction heads are not quantized.
"""

import math
import re
import statistics
from collections.abc import Iterable
from typing import Any

import torch
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401  # registers operators and passes
from ms_deform_attn.layers import Linear
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import ShiftedWindowAttention

from ..config.inference import ModelMetadata
from ..errors import UserError
from ..inference import Detector
from ..modeling import Detector as Model

_QUANTIZED = re.compile(r"(backbone|encoder|decoder\.layers)\.(?!.*(sampling_offsets|attention_weights))")


class QuantizedLayer(nn.Module):
    """A convolution or linear layer with 8-bit inputs and INT8 weights, which are quantized by output channel.

    Args:
        layer: layer in float32.
        low, high: range of the inputs.
    """

    weight: Tensor
    scale: Tensor
    zeros: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, low: float, high: float) -> None:
        super().__init__()
        low, high = min(low, 0.0), max(high, 0.0)
        self.input_scale = max(high - low, 1e-8) / 255
        self.input_zero = round(-low / self.input_scale)
        weight = layer.weight.detach()
        scale = weight.abs().flatten(1).amax(1).clamp(min=1e-8) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("zeros", torch.zeros(len(scale), dtype=torch.int64))
        shape = -1, *[1] * (weight.ndim - 1)
        self.register_buffer("weight", (weight / scale.view(shape)).round().clamp(-127, 127).to(torch.int8))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.convolution: tuple[Any, ...] | None = None
        if isinstance(layer, nn.Conv2d):
            self.convolution = layer.stride, layer.padding, layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """Computes the outputs in the dtype of ``x``."""
        ops, dtype, shape = torch.ops.quantized_decomposed, x.dtype, x.shape
        if self.convolution is None:
            x = x.flatten(0, -2)  # Inductor does not match linear layers with several dimensions of dynamic size
        parameters = self.input_scale, self.input_zero, 0, 255, torch.uint8
        x = ops.quantize_per_tensor.default(x.float(), *parameters)
        x = ops.dequantize_per_tensor.default(x, *parameters).to(dtype)
        weight = ops.dequantize_per_channel.default(self.weight, self.scale, self.zeros, 0, -127, 127, torch.int8)
        weight = weight.to(dtype)
        if self.convolution is not None:
            return F.conv2d(x, weight, self.bias, *self.convolution)
        return F.linear(x, weight, self.bias).unflatten(0, shape[:-1])

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantizedLayer":
        scale = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scale = scale.to(self.scale.device)  # the kernels require scales in float32
        return self


def quantize_layers(model: Model, metadata: ModelMetadata, images: Iterable[Tensor]) -> Model:
    """Returns a copy of a model with INT8 layers; the ranges of their inputs are averages over the images.

    Args:
        model: model in float32.
        metadata: preprocessing.
        images: (3, h, w) uint8 RGB, at least one.
    """
    detector = Detector(model, metadata, device="cpu")  # copies the model
    assert isinstance(detector.model, Model)
    model = detector.model
    # Its forward method does not call its linear layers.
    functional = {name for name, module in model.named_modules() if isinstance(module, ShiftedWindowAttention)}
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) in (nn.Conv2d, nn.Linear, Linear)
        and getattr(layer, "padding_mode", "zeros") == "zeros"
        and _QUANTIZED.match(name)
        and name.rpartition(".")[0] not in functional
    }
    bounds: dict[str, tuple[float, float]] = {}  # current image; a layer may be called several times
    ranges: list[dict[str, tuple[float, float]]] = []  # all images

    def record(name: str) -> Any:
        def update(_: nn.Module, inputs: tuple[Tensor]) -> None:
            low, high = bounds.get(name, (math.inf, -math.inf))
            bounds[name] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

        return update

    hooks = [layer.register_forward_pre_hook(record(name)) for name, layer in layers.items()]
    for image in images:
        detector(image)
        ranges.append(dict(bounds))
        bounds.clear()
    for hook in hooks:
        hook.remove()
    if missing := sorted(layers.keys() - set(ranges[0])):
        raise UserError(
            f"int8: {len(missing)} layers cannot be quantized, because the model uses their weights without calling "
            f"them: {', '.join(missing[:3])}; export in bfloat16"
        )
    for name, layer in layers.items():
        low, high = (statistics.mean(image[name][side] for image in ranges) for side in (0, 1))
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, QuantizedLayer(layer, low, high))
    return model
