"""Swin Transformer (arXiv 2103.14030) with named feature maps, built from torchvision's."""

from collections.abc import Iterable
from typing import Annotated, TypedDict

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer

from ..errors import Range, check_choice, check_features, check_ranges
from .resnet import STAGES, FreezeAt
from .structures import FeatureSpec


class SwinSize(TypedDict):
    """Size arguments of a Swin Transformer, which have the same names in torchvision and Detectron2."""

    embed_dim: int
    depths: list[int]
    num_heads: list[int]


# arXiv 2103.14030, section 3.3. torchvision has ImageNet weights of the first three.
VARIANTS: dict[str, SwinSize] = {
    "swin_t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "swin_s": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "swin_b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    "swin_l": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
}
_PATCH_SIZE = 4


class SwinBackbone(nn.Module):
    """Swin-T, -S, -B or -L without the classifier.

    Modules have torchvision's names (``features.0`` is the patch embedding, followed by alternating stages and patch
    merging), so that its ImageNet weights load. Each feature map has its own, newly initialized layer norm.

    Args:
        variant: ``"swin_t"``, ``"swin_s"``, ``"swin_b"`` or ``"swin_l"``.
        out_features: any of ``res2`` … ``res5``, with strides 4 … 32 as in a ResNet; stages after the last one
            are not built.
        drop_path_rate: stochastic depth rate of the last block; rates increase linearly from 0 at the first block.
        freeze_at: last frozen part: 0: none; 1: patch embedding; 2: res2, and so on. Stages are frozen with the patch
            merging after them, as in Detectron2's Swin; frozen stages have no stochastic depth.
    """

    def __init__(
        self,
        variant: str = "swin_t",
        out_features: Iterable[str] = ("res3", "res4", "res5"),
        *,
        drop_path_rate: Annotated[float, Range(0, below=1)] = 0.2,
        freeze_at: FreezeAt = 0,
    ) -> None:
        super().__init__()
        check_ranges(SwinBackbone, locals())
        self.out_features = tuple(out_features)
        check_choice("variant", variant, VARIANTS)
        check_features("out_features", self.out_features, STAGES)
        size = VARIANTS[variant]
        model = SwinTransformer(
            [_PATCH_SIZE, _PATCH_SIZE], window_size=[7, 7], stochastic_depth_prob=drop_path_rate, **size
        )
        last = max(STAGES.index(name) for name in self.out_features)
        self.features = model.features[: 2 * last + 2]
        self._specs = {
            name: FeatureSpec(size["embed_dim"] * 2**index, _PATCH_SIZE * 2**index)
            for index, name in enumerate(STAGES)
            if name in self.out_features
        }
        self.norms = nn.ModuleDict({name: nn.LayerNorm(spec.channels) for name, spec in self._specs.items()})
        self._frozen = list(self.features)[: max(0, 2 * freeze_at - 1)]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "SwinBackbone":
        """Sets the mode of all modules except frozen stages, which stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Returns channels and stride of every feature map in ``out_features``, finest first."""
        return dict(self._specs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps images (N, 3, H, W) to feature maps (N, C, ceil(H / stride), ceil(W / stride)) by name."""
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % _PATCH_SIZE, 0, -height % _PATCH_SIZE))
        features = {}
        for index, module in enumerate(self.features):
            x = module(x)  # (N, H, W, C)
            name = STAGES[(index - 1) // 2] if index % 2 else ""
            if name in self.out_features:
                features[name] = self.norms[name](x).permute(0, 3, 1, 2).contiguous()
        return features
