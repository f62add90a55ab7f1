"""Feature pyramid (arXiv 1612.03144) on any backbone, built from torchvision's."""

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..errors import ArgumentError, PositiveInt, check_choice, check_features, check_ranges
from .structures import FeatureSpec, output_shape

_NORM_GROUPS = 32
_NORMS = {"": None, "GN": partial(nn.GroupNorm, _NORM_GROUPS)}


class BackboneWithFPN(nn.Module):
    """Backbone with a feature pyramid.

    Feature maps have the names of Detectron2: ``p<n>`` has stride 2^n. The coarsest map is subsampled once more.

    Args:
        bottom_up: backbone that maps images (N, 3, H, W) to feature maps by name, with an ``output_shape()`` method.
        in_features: names of the backbone's feature maps, finest first.
        out_channels: channels of all feature maps of the pyramid.
        norm: norm after each convolution, ``""`` (none) or ``"GN"``.
        fuse_type: combination of top-down and lateral maps; only ``"sum"`` is supported.
    """

    def __init__(
        self,
        bottom_up: nn.Module,
        in_features: Sequence[str],
        out_channels: PositiveInt = 256,
        norm: str = "",
        fuse_type: str = "sum",
    ) -> None:
        super().__init__()
        check_ranges(BackboneWithFPN, locals())
        shapes = output_shape(bottom_up)
        check_features("in_features", in_features, shapes)
        check_choice("norm", norm, _NORMS)
        check_choice("fuse_type", fuse_type, ["sum"])
        if norm == "GN" and out_channels % _NORM_GROUPS:
            raise ArgumentError(
                "out_channels", f"must be a multiple of the {_NORM_GROUPS} groups of `norm` GN, got {out_channels}"
            )
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        strides = [shapes[name].stride for name in in_features]
        strides.append(2 * strides[-1])
        self._specs = {f"p{int(math.log2(stride))}": FeatureSpec(out_channels, stride) for stride in strides}
        self.fpn = FeaturePyramidNetwork(
            [shapes[name].channels for name in in_features],
            out_channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=_NORMS[norm],
        )

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Returns channels and stride of every feature map, finest first."""
        return dict(self._specs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps images (N, 3, H, W) to feature maps (N, C, ceil(H / stride), ceil(W / stride)) by name."""
        features = self.bottom_up(images)
        levels = self.fpn({name: features[name] for name in self.in_features})
        return dict(zip(self._specs, levels.values(), strict=True))
