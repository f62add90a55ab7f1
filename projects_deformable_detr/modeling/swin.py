"""Swin Transformer (arXiv 2103.14030) from torchvision's, as named feature maps."""

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import SwinTransformer

from ..errors import UserError
from .backbone import FeatureSpec

# arXiv 2103.14030, section 3.3. torchvision has ImageNet weights of the first three.
VARIANTS: dict[str, dict[str, Any]] = {
    "swin_t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "swin_s": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "swin_b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    "swin_l": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
}
_STAGES = ("res2", "res3", "res4", "res5")
_PATCH = 4


class SwinBackbone(nn.Module):
    """Swin-T, -S, -B or -L without its classifier.

    Its modules keep torchvision's names (``features.0`` the patches, then stages and, between them, the merging of
    patches), so that its ImageNet weights load. Each feature map has a layer norm of its own, which starts anew, as
    is usual where Swin detects.

    Attention windows reach into the padding of a batch: an image's features depend on it slightly.

    Args:
        variant: a name among ``VARIANTS``.
        out_features: names among ``res2`` … ``res5``, which tell the strides 4 … 32 as a ResNet's do; later stages
            than the last of them are not built.
        drop_path: stochastic depth of the last block; it grows from 0 at the first.
        freeze_at: freeze the patches' embedding (1) and the stages up to this one (2 = res2 …), with the merging
            that follows each, as Detectron2's Swin does; they skip no block then. 0 freezes nothing.

    Raises:
        UserError: for an unknown variant or feature.
    """

    def __init__(
        self,
        variant: str = "swin_t",
        out_features: Iterable[str] = ("res3", "res4", "res5"),
        *,
        drop_path: float = 0.2,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.out_features = tuple(out_features)
        if variant not in VARIANTS:
            raise UserError(f"MODEL.BACKBONE.VARIANT {variant!r} is no Swin: choose one of {', '.join(VARIANTS)}")
        unknown = [name for name in self.out_features if name not in _STAGES]
        if unknown or not self.out_features:
            raise UserError(
                f"MODEL.BACKBONE.OUT_FEATURES {list(self.out_features)}: name at least one of {list(_STAGES)} and no "
                "other"
            )
        whole = SwinTransformer(
            [_PATCH, _PATCH], window_size=[7, 7], stochastic_depth_prob=drop_path, **VARIANTS[variant]
        )
        width = VARIANTS[variant]["embed_dim"]
        last = max(_STAGES.index(name) for name in self.out_features)
        self.features = whole.features[: 2 * last + 2]
        self._specs = {
            name: FeatureSpec(width * 2**index, _PATCH * 2**index)
            for index, name in enumerate(_STAGES)
            if name in self.out_features
        }
        self.norms = nn.ModuleDict({name: nn.LayerNorm(spec.channels) for name, spec in self._specs.items()})
        self._frozen = list(self.features)[: max(0, 2 * freeze_at - 1)]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "SwinBackbone":
        """Frozen stages stay as in evaluation."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Channels and stride of every feature map in ``out_features``, finest first."""
        return dict(self._specs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to feature maps (N, C, ceil(H / stride), ceil(W / stride)) by name."""
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % _PATCH, 0, -height % _PATCH))
        found = {}
        for index, module in enumerate(self.features):
            x = module(x)  # (N, H, W, C)
            name = _STAGES[(index - 1) // 2] if index % 2 else ""
            if name in self.out_features:
                found[name] = self.norms[name](x).permute(0, 3, 1, 2).contiguous()
        return found


def build_swin(cfg: Any) -> SwinBackbone:
    """The Swin Transformer that ``cfg.MODEL.BACKBONE`` describes.

    Raises:
        UserError: for values that no Swin Transformer has.
    """
    backbone = cfg.MODEL.BACKBONE
    return SwinBackbone(
        backbone.VARIANT, backbone.OUT_FEATURES, drop_path=backbone.DROP_PATH_RATE, freeze_at=backbone.FREEZE_AT
    )
