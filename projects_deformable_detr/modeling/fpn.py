"""A feature pyramid (arXiv 1612.03144) on top of any backbone, from torchvision's."""

import math
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..errors import UserError
from .backbone import FeatureSpec

_NORMS = {"": None, "GN": partial(nn.GroupNorm, 32)}


class PyramidBackbone(nn.Module):
    """A backbone and the pyramid over it, as a backbone.

    Its feature maps are named as Detectron2 names them: ``p<n>`` has stride 2^n; one more than there are inputs is
    made of every second pixel of the coarsest.

    Args:
        bottom_up: images (N, 3, H, W) to feature maps by name, with an ``output_shape()``.
        in_features: names of the feature maps to take, finest first.
        channels: of every feature map of the pyramid.
        norm: ``""`` or ``"GN"``, after each convolution.

    Raises:
        UserError: for features that ``bottom_up`` does not have, or another norm.
    """

    def __init__(self, bottom_up: Any, in_features: list[str], channels: int = 256, norm: str = "") -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        if not in_features or any(name not in shapes for name in in_features):
            raise UserError(
                f"MODEL.FPN.IN_FEATURES {list(in_features)}: the backbone gives {list(shapes)}; name at least one of "
                "these and no other"
            )
        if norm not in _NORMS:
            raise UserError(f'MODEL.FPN.NORM {norm!r} is not known: choose "" or "GN"')
        if norm == "GN" and channels % 32:
            raise UserError(
                f"MODEL.FPN.OUT_CHANNELS {channels} must be a multiple of the 32 groups of MODEL.FPN.NORM GN"
            )
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        strides = [shapes[name].stride for name in in_features]
        strides.append(2 * strides[-1])
        self._specs = {f"p{int(math.log2(stride))}": FeatureSpec(channels, stride) for stride in strides}
        self.fpn = FeaturePyramidNetwork(
            [shapes[name].channels for name in in_features],
            channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=_NORMS[norm],
        )

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Channels and stride of every feature map, finest first."""
        return dict(self._specs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to feature maps (N, channels, ceil(H / stride), ceil(W / stride)) by name."""
        features = self.bottom_up(images)
        levels = self.fpn({name: features[name] for name in self.in_features})
        return dict(zip(self._specs, levels.values(), strict=True))


def build_pyramid(cfg: Any, bottom_up: nn.Module) -> PyramidBackbone:
    """The pyramid that ``cfg.MODEL.FPN`` describes by Detectron2's keys.

    Raises:
        UserError: for values that no pyramid of ours has.
    """
    fpn = cfg.MODEL.FPN
    if fpn.FUSE_TYPE != "sum":
        raise UserError(f"MODEL.FPN.FUSE_TYPE {fpn.FUSE_TYPE!r} is not ours: choose sum, or Detectron2's own FPN")
    return PyramidBackbone(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM)
