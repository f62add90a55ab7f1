"""Layers shared by DETR and Deformable DETR: feed-forward network, prediction heads and box arithmetic."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from ms_deform_attn import MSDeformAttn
from ms_deform_attn.layers import (
    Dropout,
    Linear,
    compiled_dropout_p,
    draw_seed,
    drop_,
    dropout_scale,
    linear,
    weight_gradient,
)
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..errors import ArgumentError, PositiveInt, Range, check_choice, check_ranges

_TILE = 1024  # tokens of a tile of the feed-forward network on the CPU; four times as many in 16-bit types
_PRIOR = 0.01  # initial probability of every class
# Inverse-sigmoid coordinate of invalid anchors; the logits of invalid tokens and unused queries are its negative. The
# sigmoid is 1 in every precision, and the value is finite in half precision, so that sums with it are never NaN.
INVALID = 1e4
Probability = Annotated[float, Range(0, below=1)]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class LayerConfig:
    """Configuration of an encoder or decoder layer.

    Attributes:
        d_model: channels C of tokens and queries.
        num_heads: number of attention heads; divides ``d_model``.
        dim_feedforward: hidden channels of the feed-forward network.
        dropout: dropout probability.
        activation: ``"relu"`` or ``"gelu"``.
        num_levels: number of feature levels; deformable attention only.
        num_points: number of sampling points per head and level; deformable attention only.
        pre_norm: whether to apply the layer norm before each sublayer instead of after it; DETR only.
    """

    d_model: PositiveInt = 256
    num_heads: PositiveInt = 8
    dim_feedforward: PositiveInt = 1024
    dropout: Probability = 0.1
    activation: str = "relu"
    num_levels: PositiveInt = 4
    num_points: PositiveInt = 4
    pre_norm: bool = False

    def __post_init__(self) -> None:
        check_ranges(LayerConfig, vars(self))
        if self.d_model % self.num_heads:
            raise ArgumentError("d_model", f"must be a multiple of `num_heads` {self.num_heads}, got {self.d_model}")
        check_choice("activation", self.activation, _ACTIVATIONS)


class _TiledFeedForward(torch.autograd.Function):
    """Linear layer, ReLU, dropout and linear layer, (S, C) to (S, C), in tiles of tokens.

    The hidden channels of a tile stay in the processor's cache. The backward pass computes them again instead of
    storing them: they would be the largest activations of the model. The weight of the second layer includes the factor
    of dropout.
    """

    @staticmethod
    def forward(
        x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, p: float, seed: int
    ) -> Tensor:
        weight2 = weight2 * dropout_scale(p)
        weight1, bias1, weight2, bias2 = (tensor.to(x.dtype) for tensor in (weight1, bias1, weight2, bias2))
        output = torch.empty_like(x)
        for index, (tile, rows) in enumerate(zip(_tiles(x), _tiles(output), strict=True)):
            hidden = _hidden_channels(tile, weight1, bias1, p, seed + index)
            rows.copy_(linear(hidden, weight2, bias2))
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight1, bias1, weight2, _, ctx.p, ctx.seed = inputs
        ctx.save_for_backward(x, weight1, bias1, weight2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("FeedForward: second derivatives are not supported on the CPU with activation relu")
        x, *parameters = ctx.saved_tensors
        scale = dropout_scale(ctx.p)
        weight1, bias1, weight2 = (parameter.to(x.dtype) for parameter in (*parameters[:2], parameters[2] * scale))
        transposed1, transposed2 = weight1.t().contiguous(), weight2.t().contiguous()
        needs_x, needs_weight1, needs_bias1, needs_weight2, needs_bias2, *_ = ctx.needs_input_grad
        # Sums over tiles have the precision of the parameters, also under autocast.
        grad_weight1, grad_bias1, grad_weight2 = (torch.zeros_like(parameter) for parameter in parameters)
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        tiles = zip(_tiles(x), _tiles(grad), _tiles(grad_x), strict=True)
        with torch.autocast("cpu", enabled=False):
            for index, (tile, grad_tile, rows) in enumerate(tiles):
                hidden = _hidden_channels(tile, weight1, bias1, ctx.p, ctx.seed + index)
                if needs_weight2:
                    grad_weight2 += weight_gradient(grad_tile, hidden)
                grad_hidden = torch.ops.aten.threshold_backward(linear(grad_tile, transposed2), hidden, 0)
                if needs_weight1:
                    grad_weight1 += weight_gradient(grad_hidden, tile)
                if needs_bias1:
                    grad_bias1 += grad_hidden.sum(0)
                if needs_x:
                    rows.copy_(linear(grad_hidden, transposed1))
        grad_weight2 *= scale
        grad_bias2 = grad.sum(0, dtype=grad_bias1.dtype) if needs_bias2 else None
        gradients = (grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2)
        needed = zip(gradients, ctx.needs_input_grad, strict=False)
        return *(gradient if is_needed else None for gradient, is_needed in needed), None, None


def _tiles(x: Tensor) -> tuple[Tensor, ...]:
    return x.split(_TILE if x.element_size() > 2 else 4 * _TILE)


def _hidden_channels(x: Tensor, weight: Tensor, bias: Tensor, p: float, seed: int) -> Tensor:
    """Returns the hidden channels after dropout, without its factor."""
    hidden = linear(x, weight, bias).relu_()
    return drop_(hidden, p, seed) if p else hidden


class FeedForward(nn.Module):
    """Feed-forward network with residual connection and layer norm, (N, S, C) to (N, S, C)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.linear1 = Linear(config.d_model, config.dim_feedforward)
        self.activation = _ACTIVATIONS[config.activation]()
        self.dropout1 = Dropout(config.dropout)
        self.linear2 = Linear(config.dim_feedforward, config.d_model)
        self.dropout2 = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x) if self.pre_norm else x
        dropout = self.dropout1
        p = compiled_dropout_p(y, dropout.p, dropout.training) if self._can_tile(y) else None
        y = self.linear2(self.dropout1(self.activation(self.linear1(y)))) if p is None else self._apply_tiled(y, p)
        y = self.dropout2(y)
        return x + y if self.pre_norm else self.norm(x + y)

    def _can_tile(self, x: Tensor) -> bool:
        """Returns whether the layers have no subclasses and hooks, and compute in one precision."""
        layers = (self.linear1, self.activation, self.dropout1, self.linear2)
        types = (Linear, nn.ReLU, Dropout, Linear)
        parameters = self._parameters_of_layers()
        if torch.is_autocast_enabled("cpu"):
            has_one_dtype = torch.float64 not in (x.dtype, parameters[0].dtype)
        else:
            has_one_dtype = all(parameter.dtype == x.dtype for parameter in parameters)
        return (
            has_one_dtype
            and all(type(layer) is kind for layer, kind in zip(layers, types, strict=True))
            and all(type(parameter) in (Tensor, nn.Parameter) for parameter in parameters)
            and not has_hooks(*layers)
        )

    def _apply_tiled(self, x: Tensor, p: float) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        seed = draw_seed() if p else 0
        output: Tensor = _TiledFeedForward.apply(x.flatten(0, 1).to(dtype), *self._parameters_of_layers(), p, seed)
        return output.view(x.shape)

    def _parameters_of_layers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.linear1.weight, self.linear1.bias, self.linear2.weight, self.linear2.bias


class BoxHead(nn.Module):
    """Three-layer perceptron, (…, C) to (…, 4), which predicts an offset to a reference in inverse-sigmoid space.

    ``size_bias`` is the initial output for width and height; the initial output for the center is 0. With -2, boxes
    around a reference point start at 12 % of the image; with 0, four-value references start unchanged. None keeps
    PyTorch's default initialization, as in DETR, which has no references.
    """

    def __init__(self, d_model: int, size_bias: float | None = 0.0) -> None:
        super().__init__()
        last = Linear(d_model, 4)
        self.layers = nn.ModuleList([Linear(d_model, d_model), Linear(d_model, d_model), last])
        if size_bias is not None:
            nn.init.zeros_(last.weight)
            with torch.no_grad():
                last.bias.copy_(torch.tensor([0.0, 0.0, size_bias, size_bias]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](self.layers[1](self.layers[0](x).relu()).relu())


def build_class_head(d_model: int, num_classes: int, *, no_object: bool = False) -> nn.Linear:
    """Builds the classification layer.

    With ``no_object``, a last logit for "no object" is added, for softmax classification. Without it, the initial
    sigmoid output is 0.01, as for the focal loss (arXiv 1708.02002, section 4.1).
    """
    if no_object:
        return Linear(d_model, num_classes + 1)
    head = Linear(d_model, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
    return head


def xavier_init(layers: Iterable[nn.Module]) -> None:
    """Initializes all matrices Xavier-uniform, as in DETR; deformable attention keeps its own initialization."""
    for layer in layers:
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in layer.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()


def has_hooks(*modules: nn.Module) -> bool:
    """Returns whether any of the modules has hooks or a replaced ``forward``, so that it must be called."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    has_own = any(getattr(module, kind) for module in modules for kind in kinds)
    return has_own or any("forward" in vars(module) for module in modules) or bool(_has_any_global_hook())


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Computes log(x / (1 - x)) with x clamped to [1e-5, 1 - 1e-5], in float32 for 16-bit types, which round to 1."""
    return torch.logit(at_least_float32(x), eps=1e-5)


def at_least_float32(x: Tensor) -> Tensor:
    """Converts 16-bit coordinates to float32: bfloat16 rounds a sigmoid to 0.4 % of the image."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def apply_box_delta(delta: Tensor, reference: Tensor) -> Tensor:
    """Adds a box head's output (N, Q, 4) to references (N, Q, 2 or 4) in inverse-sigmoid space.

    A four-value reference is moved and scaled; a two-value reference provides the center only (arXiv 2010.04159,
    section 4). Returns boxes (N, Q, 4) as normalized (cx, cy, w, h).
    """
    offset = inverse_sigmoid(reference)
    if reference.shape[-1] == 4:
        return (delta + offset).sigmoid()
    return torch.cat((delta[..., :2] + offset, delta[..., 2:].to(offset.dtype)), dim=-1).sigmoid()
