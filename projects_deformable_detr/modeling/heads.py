"""Prediction heads and the feed-forward parts of the transformer."""

import math

import torch
from torch import Tensor, nn

from ..errors import UserError

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


def make_activation(name: str) -> nn.Module:
    """The activation called ``"relu"`` or ``"gelu"``; UserError for another name."""
    if name not in _ACTIVATIONS:
        raise UserError(f"MODEL.DETR.ACTIVATION {name!r} is not known: choose one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


class FeedForward(nn.Module):
    """Two linear layers with a residual and a norm after it, or before them (``pre_norm``): (N, S, C) to (N, S, C)."""

    def __init__(self, channels: int, hidden: int, dropout: float, activation: str, pre_norm: bool = False) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.linear1 = nn.Linear(channels, hidden)
        self.activation = make_activation(activation)
        self.dropout1 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(hidden, channels)
        self.dropout2 = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout1(self.activation(self.linear1(self.norm(x) if self.pre_norm else x)))
        x = x + self.dropout2(self.linear2(hidden))
        return x if self.pre_norm else self.norm(x)


class BoxHead(nn.Module):
    """Three linear layers: (…, C) to (…, 4), an offset to a reference before the sigmoid.

    It starts as the constant ``(0, 0, size_bias, size_bias)``: -2 gives boxes of 12 % of the image around a
    reference point; 0 leaves four-value references as they are. None keeps PyTorch's own start, as DETR does, which
    has no references.
    """

    def __init__(self, channels: int, size_bias: float | None = 0.0) -> None:
        super().__init__()
        last = nn.Linear(channels, 4)
        self.layers = nn.ModuleList([nn.Linear(channels, channels), nn.Linear(channels, channels), last])
        if size_bias is None:
            return
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([0.0, 0.0, size_bias, size_bias]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](self.layers[1](self.layers[0](x).relu()).relu())


def make_class_head(channels: int, num_classes: int, *, prior: float = 0.01, no_object: bool = False) -> nn.Linear:
    """A linear layer whose sigmoid starts at ``prior``, the focal loss's start (arXiv 1708.02002, 4.1).

    ``no_object`` gives it a last logit for no object and leaves PyTorch's own start, for a softmax.
    """
    if no_object:
        return nn.Linear(channels, num_classes + 1)
    head = nn.Linear(channels, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - prior) / prior))
    return head


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) of x clamped to [eps, 1 - eps], in at least float32, where eps is not rounded away."""
    return torch.logit(at_least_float32(x), eps=eps)


def at_least_float32(x: Tensor) -> Tensor:
    """Coordinates of 16 bits in float32: bfloat16 rounds a sigmoid to 0.4 % of the image."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def apply_box_delta(delta: Tensor, reference: Tensor) -> Tensor:
    """Boxes (N, Q, 4) as (cx, cy, w, h) from a head's output and a reference.

    A four-value reference is moved and scaled; a two-value one gives the centre only (arXiv 2010.04159,
    section 4 and "Iterative Bounding Box Refinement").
    """
    offset = inverse_sigmoid(reference)
    if reference.shape[-1] == 4:
        return (delta + offset).sigmoid()
    return torch.cat((delta[..., :2] + offset, delta[..., 2:].to(offset.dtype)), dim=-1).sigmoid()
