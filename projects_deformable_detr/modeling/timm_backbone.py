"""Convolutional networks of timm as backbones; timm is optional, and only this file imports it."""

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .backbone import FeatureSpec

_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class TimmBackbone(nn.Module):
    """A network of timm with ``features_only=True``, for images of any size.

    Its norms are timm's: batch norms learn and keep running statistics, which small batches disturb; networks with
    layer or group norm do not mind.

    Args:
        variant: timm's name of a network, such as ``"convnext_tiny"`` or ``"resnet18"``.
        out_features: names among ``res2`` … ``res5``: the strides 4 … 32, as a ResNet's.

    Raises:
        UserError: without timm, for a name that it does not know, and for networks without such maps of features.
    """

    def __init__(self, variant: str, out_features: Iterable[str] = ("res3", "res4", "res5")) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise UserError("MODEL.BACKBONE.NAME …timm… needs timm: pip install timm") from error
        names = list(out_features)
        try:
            body: Any = timm.create_model(variant, pretrained=False, features_only=True)
        except RuntimeError as error:
            raise UserError(f"MODEL.BACKBONE.VARIANT {variant!r}: timm has no features of it ({error})") from error
        strides = body.feature_info.reduction()
        missing = [name for name in names if _STRIDES.get(name, 0) not in strides]
        if missing or not names or len(set(strides)) < len(strides) or "NHWC" in str(getattr(body, "output_fmt", "")):
            raise UserError(
                f"MODEL.BACKBONE.VARIANT {variant!r} with OUT_FEATURES {names}: timm gives features of strides "
                f"{strides}; take a convolutional network that has the strides wanted, of {_STRIDES}"
            )
        indices = {name: strides.index(_STRIDES[name]) for name in _STRIDES if name in names}
        channels = body.feature_info.channels()
        self._specs = {name: FeatureSpec(channels[at], strides[at]) for name, at in indices.items()}
        # Built once more without the stages beyond the last feature, which would get no gradient.
        self.body = timm.create_model(variant, pretrained=False, features_only=True, out_indices=[*indices.values()])

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Channels and stride of every feature map, finest first."""
        return dict(self._specs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to feature maps (N, C, ceil(H / stride), ceil(W / stride)) by name."""
        height, width = images.shape[-2:]
        # Some networks drop the pixels that fill no whole patch.
        found = self.body(F.pad(images, (0, -width % 32, 0, -height % 32)))
        features = {}
        for (name, spec), feature in zip(self._specs.items(), found, strict=True):
            features[name] = feature[..., : -(-height // spec.stride), : -(-width // spec.stride)]
        return features


def build_timm(cfg: Any) -> TimmBackbone:
    """The network of timm that ``cfg.MODEL.BACKBONE.VARIANT`` names.

    Raises:
        UserError: also for a ``FREEZE_AT`` other than 0: timm's networks have no common stages.
    """
    backbone = cfg.MODEL.BACKBONE
    if backbone.FREEZE_AT != 0:
        raise UserError(f"MODEL.BACKBONE.FREEZE_AT {backbone.FREEZE_AT}: timm's networks train whole; set it to 0")
    return TimmBackbone(backbone.VARIANT, backbone.OUT_FEATURES)
