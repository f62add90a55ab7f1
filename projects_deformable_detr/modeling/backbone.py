"""ResNet (arXiv 1512.03385) from torchvision's blocks, as named feature maps.

torchvision's own ``ResNet`` fixes the width of its stages and ends in a classifier; this one takes its blocks
and its parameter names (``conv1``, ``bn1``, ``layer1`` …), so that its ImageNet weights load as they are.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from ..errors import UserError
from .deform_conv import DeformableConv2d

_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
_STAGES = ("res2", "res3", "res4", "res5")


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels), channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "FrozenBN": FrozenBatchNorm2d,
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": _group_norm,
}


def _choose_norm(norm: str, frozen: bool) -> Callable[[int], nn.Module]:
    """A frozen batch norm must not go on with its running statistics, so that it is another module."""
    return FrozenBatchNorm2d if frozen and norm in ("BN", "SyncBN") else _NORMS[norm]


@dataclass(frozen=True)
class FeatureSpec:
    """Channels and stride (input pixels per feature pixel) of a named feature map."""

    channels: int
    stride: int


class ResNet(nn.Module):
    """ResNet-18/34/50/101 without its classifier.

    Args:
        depth: 18, 34, 50 or 101.
        out_features: names among ``res2`` … ``res5``; later stages than the last of them are not built.
        norm: ``"FrozenBN"``, ``"BN"``, ``"SyncBN"`` or ``"GN"``. FrozenBN is the identity until pretrained
            weights are loaded: to train from scratch, choose a live one.
        dilate_res5: keep stride 16 in res5 with dilated convolutions (DC5).
        freeze_at: freeze the stem (1) and the stages up to this one (2 = res2 …), statistics of batch norm included;
            0 freezes nothing.
        stem_channels: channels of the stem, 64 in the paper.
        res2_channels: channels of the first stage's output, 64 (depth 18, 34) or 256 in the paper; each stage
            doubles them.
        deform: for res2 … res5, whether the stage's 3x3 convolutions are deformable (depth 50 and 101).
        deform_modulated: these also weigh their taps (arXiv 1811.11168).
        deform_groups: groups of channels with offsets of their own.

    Raises:
        UserError: for an unknown depth, feature or norm, and deformable convolution without bottleneck blocks.
    """

    def __init__(
        self,
        depth: int,
        out_features: Iterable[str] = ("res3", "res4", "res5"),
        *,
        norm: str = "FrozenBN",
        dilate_res5: bool = False,
        freeze_at: int = 0,
        stem_channels: int = 64,
        res2_channels: int | None = None,
        deform: Sequence[bool] = (False, False, False, False),
        deform_modulated: bool = False,
        deform_groups: int = 1,
    ) -> None:
        super().__init__()
        self.out_features = tuple(out_features)
        _check_arguments(depth, self.out_features, norm)
        _check_deform(depth, deform, deform_groups)
        block, blocks = _DEPTHS[depth]
        planes = (res2_channels or 64 * block.expansion) // block.expansion
        self.conv1 = nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = _choose_norm(norm, freeze_at >= 1)(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        self._specs: dict[str, FeatureSpec] = {}
        channels, stride = stem_channels, 4
        last = max(_STAGES.index(name) for name in self.out_features)
        for index in range(last + 1):
            dilated = dilate_res5 and index == 3
            step = 1 if index == 0 or dilated else 2
            stage = _make_stage(
                block,
                channels,
                planes,
                blocks[index],
                step,
                2 if dilated else 1,
                block is Bottleneck,
                _choose_norm(norm, freeze_at >= index + 2),
            )
            if deform[index]:
                _deform(stage, deform_modulated, deform_groups)
            self.add_module(f"layer{index + 1}", stage)
            channels, stride, planes = planes * block.expansion, stride * step, planes * 2
            self._specs[_STAGES[index]] = FeatureSpec(channels, stride)
        self._reset_parameters()
        self._freeze(freeze_at)

    def _reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, DeformableConv2d):
                module.start()

    def _freeze(self, freeze_at: int) -> None:
        frozen = [self.conv1, self.bn1] if freeze_at >= 1 else []
        frozen += [stage for name, stage in self.named_children() if name in _frozen_stages(freeze_at)]
        for module in frozen:
            for parameter in module.parameters():
                parameter.requires_grad_(False)

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Channels and stride of every feature map in ``out_features``, finest first."""
        return {name: self._specs[name] for name in _STAGES if name in self.out_features}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to feature maps (N, C, ceil(H / stride), ceil(W / stride)) by name."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = {}
        for index, name in enumerate(_STAGES[: len(self._specs)]):
            x = getattr(self, f"layer{index + 1}")(x)
            if name in self.out_features:
                features[name] = x
        return features


def _check_arguments(depth: int, out_features: tuple[str, ...], norm: str) -> None:
    if depth not in _DEPTHS:
        raise UserError(f"MODEL.RESNETS.DEPTH {depth} is not known: choose one of {sorted(_DEPTHS)}")
    unknown = [name for name in out_features if name not in _STAGES]
    if unknown or not out_features:
        raise UserError(
            f"MODEL.RESNETS.OUT_FEATURES {list(out_features)}: name at least one of {list(_STAGES)} and no other"
        )
    if norm not in _NORMS:
        raise UserError(f"MODEL.RESNETS.NORM {norm!r} is not known: choose one of {', '.join(_NORMS)}")


def _check_deform(depth: int, deform: Sequence[bool], groups: int) -> None:
    if len(deform) != len(_STAGES):
        raise UserError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE {list(deform)}: one of True and False for each of {_STAGES}"
        )
    if any(deform) and _DEPTHS[depth][0] is not Bottleneck:
        raise UserError("MODEL.RESNETS.DEFORM_ON_PER_STAGE needs bottleneck blocks: DEPTH 50 or 101")
    if groups < 1:
        raise UserError(f"MODEL.RESNETS.DEFORM_NUM_GROUPS must be at least 1, got {groups}")


def _deform(stage: nn.Sequential, modulated: bool, groups: int) -> None:
    """Makes the 3x3 convolution of every bottleneck block of a stage deformable."""
    for block in stage:
        plain: Any = block.conv2
        if plain.in_channels % groups:
            raise UserError(f"MODEL.RESNETS.DEFORM_NUM_GROUPS {groups} must divide the {plain.in_channels} channels")
        block.conv2 = DeformableConv2d(
            plain.in_channels,
            stride=plain.stride[0],
            dilation=plain.dilation[0],
            modulated=modulated,
            groups=groups,
        )


def _frozen_stages(freeze_at: int) -> set[str]:
    return {f"layer{index}" for index in range(1, freeze_at)}


def _make_stage(
    block: Any,
    channels: int,
    planes: int,
    blocks: int,
    stride: int,
    dilation: int,
    dilatable: bool,
    make_norm: Callable[[int], nn.Module],
) -> nn.Sequential:
    """One stage. A dilated stage keeps dilation 1 in its first block, as torchvision's ImageNet models do."""
    if dilation > 1 and not dilatable:
        raise UserError("MODEL.RESNETS.RES5_DILATION 2 (DC5) needs bottleneck blocks: DEPTH 50 or 101")
    out_channels = planes * block.expansion
    shortcut = None
    if stride != 1 or channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False), make_norm(out_channels)
        )
    layers = [block(channels, planes, stride, shortcut, norm_layer=make_norm)]
    layers += [block(out_channels, planes, dilation=dilation, norm_layer=make_norm) for _ in range(1, blocks)]
    return nn.Sequential(*layers)


def build_resnet(cfg: Any) -> ResNet:
    """The backbone that ``cfg.MODEL.RESNETS`` and ``cfg.MODEL.BACKBONE.FREEZE_AT`` describe.

    ``RES2_OUT_CHANNELS`` is Detectron2's key, whose default of 256 stands for the paper's width at every depth;
    write another number to widen or narrow the network.

    Raises:
        UserError: for values that no backbone of ours has.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.STRIDE_IN_1X1:
        raise UserError("MODEL.RESNETS.STRIDE_IN_1X1 True is not ours: torchvision's weights stride in the 3x3")
    if resnets.RES5_DILATION not in (1, 2):
        raise UserError(f"MODEL.RESNETS.RES5_DILATION must be 1 or 2 (DC5), got {resnets.RES5_DILATION}")
    width = resnets.RES2_OUT_CHANNELS
    return ResNet(
        resnets.DEPTH,
        resnets.OUT_FEATURES,
        norm=resnets.NORM,
        dilate_res5=resnets.RES5_DILATION == 2,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        stem_channels=resnets.STEM_OUT_CHANNELS,
        res2_channels=None if width == 256 else width,
        deform=resnets.DEFORM_ON_PER_STAGE,
        deform_modulated=resnets.DEFORM_MODULATED,
        deform_groups=resnets.DEFORM_NUM_GROUPS,
    )
