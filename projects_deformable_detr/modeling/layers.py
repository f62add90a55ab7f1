"""Layers shared by DETR and Deformable DETR: feed-forward network, prediction heads and box arithmetic."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from ms_deform_attn import MSDeformAttn
from torch import Tensor, nn

from ..errors import ArgumentError, PositiveInt, Range, check_choice, check_ranges

_PRIOR = 0.01  # initial probability of every class
Dropout = Annotated[float, Range(0, below=1)]
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
    dropout: Dropout = 0.1
    activation: str = "relu"
    num_levels: PositiveInt = 4
    num_points: PositiveInt = 4
    pre_norm: bool = False

    def __post_init__(self) -> None:
        check_ranges(LayerConfig, vars(self))
        if self.d_model % self.num_heads:
            raise ArgumentError("d_model", f"must be a multiple of `num_heads` {self.num_heads}, got {self.d_model}")
        check_choice("activation", self.activation, _ACTIVATIONS)


class FeedForward(nn.Module):
    """Feed-forward network with residual connection and layer norm, (N, S, C) to (N, S, C)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.linear1 = nn.Linear(config.d_model, config.dim_feedforward)
        self.activation = _ACTIVATIONS[config.activation]()
        self.dropout1 = nn.Dropout(config.dropout)
        self.linear2 = nn.Linear(config.dim_feedforward, config.d_model)
        self.dropout2 = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout1(self.activation(self.linear1(self.norm(x) if self.pre_norm else x)))
        x = x + self.dropout2(self.linear2(hidden))
        return x if self.pre_norm else self.norm(x)


class BoxHead(nn.Module):
    """Three-layer perceptron, (…, C) to (…, 4), which predicts an offset to a reference in inverse-sigmoid space.

    ``size_bias`` is the initial output for width and height; the initial output for the center is 0. With -2, boxes
    around a reference point start at 12 % of the image; with 0, four-value references start unchanged. None keeps
    PyTorch's default initialization, as in DETR, which has no references.
    """

    def __init__(self, d_model: int, size_bias: float | None = 0.0) -> None:
        super().__init__()
        last = nn.Linear(d_model, 4)
        self.layers = nn.ModuleList([nn.Linear(d_model, d_model), nn.Linear(d_model, d_model), last])
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
        return nn.Linear(d_model, num_classes + 1)
    head = nn.Linear(d_model, num_classes)
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
