"""Deformable convolution in a ResNet (arXiv 1703.06211), or its modulated form (arXiv 1811.11168)."""

import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

_TAPS = 9  # of a 3x3 kernel


class DeformableConv2d(DeformConv2d):
    """A 3x3 convolution, C to C channels, whose taps are moved by offsets that the input tells.

    Its own weight has the name and shape of the plain convolution's, so that ImageNet weights load into it; the
    offsets start at zero, which with ``modulated`` means a weight of 1/2 at every tap, as in that paper.

    Args:
        channels: C, in and out.
        stride: input pixels per output pixel.
        dilation: input pixels between taps, and the padding.
        modulated: weigh each tap too, by a number in (0, 1) that the input tells.
        groups: groups of channels with offsets of their own; divides C.
    """

    def __init__(self, channels: int, *, stride: int, dilation: int, modulated: bool, groups: int) -> None:
        super().__init__(channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.sizes = [2 * groups * _TAPS, groups * _TAPS if modulated else 0]
        self.offset = nn.Conv2d(channels, sum(self.sizes), 3, stride=stride, padding=dilation, dilation=dilation)
        self.start()

    def start(self) -> None:
        """Initial values: those of the ResNet's other convolutions, and no offset."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the offsets come from x
        """(N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        offset, weight = torch.split(self.offset(x), self.sizes, dim=1)
        return super().forward(x, offset, weight.sigmoid() if self.sizes[1] else None)
