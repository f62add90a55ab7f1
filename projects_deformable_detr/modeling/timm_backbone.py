"""Convolutional backbones from timm, an optional dependency."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ArgumentError, UserError
from .structures import FeatureSpec

_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class TimmBackbone(nn.Module):
    """timm network with ``features_only=True``, for images of any size.

    Batch norms of the network are trained and update their statistics, which requires large batches.

    Args:
        variant: name of a network in timm, such as ``"convnext_tiny"`` or ``"resnet18"``.
        out_features: any of ``res2`` … ``res5``, with strides 4 … 32 as in a ResNet.
        freeze_at: must be 0, because the networks have no common stages to freeze.

    Raises:
        UserError: if timm is not installed.
    """

    def __init__(
        self, variant: str, out_features: Iterable[str] = ("res3", "res4", "res5"), *, freeze_at: int = 0
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise UserError("the timm backbone needs timm: pip install timm") from error
        if freeze_at != 0:
            raise ArgumentError("freeze_at", f"must be 0 for timm backbones, got {freeze_at}")
        names = list(out_features)
        try:
            body: Any = timm.create_model(variant, pretrained=False, features_only=True)
        except RuntimeError as error:
            raise ArgumentError(
                "variant", f"must be a timm network with features_only, got {variant!r}: {error}"
            ) from error
        strides = body.feature_info.reduction()
        missing = [name for name in names if _STRIDES.get(name, 0) not in strides]
        if missing or not names or len(set(strides)) < len(strides) or "NHWC" in str(getattr(body, "output_fmt", "")):
            raise ArgumentError(
                "variant",
                f"must be a convolutional network with the strides of `out_features` {names} ({_STRIDES}), got "
                f"{variant!r} with strides {strides}",
            )
        indices = {name: strides.index(_STRIDES[name]) for name in _STRIDES if name in names}
        channels = body.feature_info.channels()
        self._specs = {name: FeatureSpec(channels[index], strides[index]) for name, index in indices.items()}
        # Built again without the stages after the last feature map, which would get no gradient.
        self.body = timm.create_model(variant, pretrained=False, features_only=True, out_indices=[*indices.values()])

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Returns channels and stride of every feature map, finest first."""
        return dict(self._specs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps images (N, 3, H, W) to feature maps (N, C, ceil(H / stride), ceil(W / stride)) by name."""
        height, width = images.shape[-2:]
        # Some networks drop pixels that do not fill a patch.
        maps = self.body(F.pad(images, (0, -width % 32, 0, -height % 32)))
        features = {}
        for (name, spec), feature in zip(self._specs.items(), maps, strict=True):
            features[name] = feature[..., : -(-height // spec.stride), : -(-width // spec.stride)]
        return features
