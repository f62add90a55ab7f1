"""ResNet (arXiv 1512.03385) and ResNeXt (1611.05431) with named feature maps, built from torchvision's blocks.

Unlike torchvision's ``ResNet``, it has configurable widths and no classifier. Parameters have torchvision's names
(``conv1``, ``bn1``, ``layer1`` …), so that ImageNet weights load unchanged.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
from ms_deform_attn.layers import conv2d, is_traced
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import DeformConv2d, FrozenBatchNorm2d

from ..errors import ArgumentError, OneOf, PositiveInt, Range, check_choice, check_features, check_ranges
from .layers import has_hooks
from .padding import masked_group_norm, resize_mask
from .structures import FeatureSpec

STAGES = ("res2", "res3", "res4", "res5")
FreezeAt = Annotated[int, Range(0, 5)]
_KERNEL_SIZE = 9  # taps of a 3x3 kernel


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels), channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "FrozenBN": FrozenBatchNorm2d,
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": _group_norm,
}


class _Block(nn.Module):
    """Mixin of torchvision's blocks: folds norms into convolutions and accepts a padding mask."""

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Maps x, which is zero on padding, to a map that is zero on padding and does not depend on it."""
        assert isinstance(self, BasicBlock | Bottleneck)
        shortcut = x
        if self.downsample is not None:
            shortcut = _conv_norm(self.downsample[0], self.downsample[1], x, padding_mask)
        x = _conv_norm(self.conv1, self.bn1, x, padding_mask, relu=True)
        if isinstance(self, BasicBlock):
            return _conv_norm(self.conv2, self.bn2, x, padding_mask, relu=True, residual=shortcut)
        x = _conv_norm(self.conv2, self.bn2, x, padding_mask, relu=True)
        return _conv_norm(self.conv3, self.bn3, x, padding_mask, relu=True, residual=shortcut)


class _BasicBlock(_Block, BasicBlock):  # type: ignore[misc]  # torchvision is not typed
    pass


class _Bottleneck(_Block, Bottleneck):  # type: ignore[misc]  # torchvision is not typed
    pass


class _Stage(nn.Sequential):
    """Blocks of one resolution."""

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        for block in self:
            x = block(x, padding_mask)
            if padding_mask is not None:
                padding_mask = resize_mask(padding_mask, x.shape[-2:])
        return x


_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (_BasicBlock, (2, 2, 2, 2)),
    34: (_BasicBlock, (3, 4, 6, 3)),
    50: (_Bottleneck, (3, 4, 6, 3)),
    101: (_Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """ResNet-18/34/50/101 without the classifier.

    Args:
        depth: 18, 34, 50 or 101.
        out_features: any of ``res2`` … ``res5``; stages after the last one are not built.
        norm: ``"FrozenBN"``, ``"BN"``, ``"SyncBN"`` or ``"GN"``. FrozenBN is the identity until pretrained weights are
            loaded: use another norm to train from scratch.
        res5_dilation: 2 dilates res5 instead of striding it, so that its stride is 16 (DC5); 1: no dilation. Depth 50
            and 101 only.
        freeze_at: last frozen part, including batch-norm statistics: 0: none; 1: stem; 2: res2, and so on.
        stem_channels: channels of the stem, 64 in the paper.
        res2_channels: channels of res2; each further stage doubles them. None selects the paper's: 64 for depth 18 and
            34, 256 otherwise.
        groups: groups of the 3x3 convolutions; 32 in ResNeXt. Depth 50 and 101 only.
        width_per_group: channels of each group in res2, doubled in each further stage. With 1 group and 64, the number
            is a quarter of ``res2_channels``.
        deform: for each of res2 … res5, whether its 3x3 convolutions are deformable; depth 50 and 101 only.
        deform_modulated: whether to use modulated deformable convolutions (arXiv 1811.11168).
        deform_groups: number of channel groups with separate offsets.
    """

    masks_padding = True  # forward() accepts the padding mask of the images

    def __init__(
        self,
        depth: Annotated[int, OneOf(tuple(_DEPTHS))],
        out_features: Iterable[str] = ("res3", "res4", "res5"),
        *,
        norm: str = "FrozenBN",
        res5_dilation: Annotated[int, OneOf((1, 2))] = 1,
        freeze_at: FreezeAt = 0,
        stem_channels: PositiveInt = 64,
        res2_channels: Annotated[int | None, Range(1)] = None,
        groups: PositiveInt = 1,
        width_per_group: PositiveInt = 64,
        deform: Sequence[bool] = (False, False, False, False),
        deform_modulated: bool = False,
        deform_groups: PositiveInt = 1,
    ) -> None:
        super().__init__()
        check_ranges(ResNet, locals())
        self.out_features = tuple(out_features)
        _check_arguments(depth, norm, res5_dilation, (groups, width_per_group), deform)
        check_features("out_features", self.out_features, STAGES)
        block, num_blocks = _DEPTHS[depth]
        planes = (res2_channels or 64 * block.expansion) // block.expansion
        # torchvision's bottleneck has int(planes * base_width / 64) channels in each group.
        base_width = 64 if (groups, width_per_group) == (1, 64) else 64 * width_per_group / planes
        self.conv1 = nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = _norm_layer(norm, freeze_at >= 1)(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        self._specs: dict[str, FeatureSpec] = {}
        channels, stride = stem_channels, 4
        last = max(STAGES.index(name) for name in self.out_features)
        for index in range(last + 1):
            dilation = res5_dilation if index == 3 else 1
            step = 1 if index == 0 or dilation > 1 else 2
            norm_layer = _norm_layer(norm, freeze_at >= index + 2)
            options = {"norm_layer": norm_layer, "groups": groups, "base_width": base_width}
            stage = _build_stage(block, channels, planes, num_blocks[index], step, dilation, options)
            if deform[index]:
                _make_deformable(stage, deform_modulated, deform_groups)
            self.add_module(f"layer{index + 1}", stage)
            channels, stride, planes = planes * block.expansion, stride * step, planes * 2
            self._specs[STAGES[index]] = FeatureSpec(channels, stride)
        self._reset_parameters()
        self._freeze(freeze_at)

    def _reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, DeformableConv2d):
                module.reset_parameters()

    def _freeze(self, freeze_at: int) -> None:
        frozen = [self.conv1, self.bn1] if freeze_at >= 1 else []
        stages = {f"layer{index}" for index in range(1, freeze_at)}
        frozen += [module for name, module in self.named_children() if name in stages]
        for module in frozen:
            module.requires_grad_(False)

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Returns channels and stride of every feature map in ``out_features``, finest first."""
        return {name: self._specs[name] for name in STAGES if name in self.out_features}

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Maps images (N, 3, H, W) to feature maps (N, C, ceil(H / stride), ceil(W / stride)) by name.

        With ``padding_mask`` (N, H, W), True on padding, features of an image do not depend on its padding and are zero
        there. Statistics of batch norms in training include the padding.
        """
        # oneDNN's convolutions on the CPU are fastest in this layout, which all operations of the ResNet keep.
        x = images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images
        x = _conv_norm(self.conv1, self.bn1, x, padding_mask, relu=True)
        x = _mask(self.maxpool(x), padding_mask)  # zeros on padding do not change the maxima: no value is negative
        features = {}
        for index, name in enumerate(STAGES[: len(self._specs)]):
            x = getattr(self, f"layer{index + 1}")(x, padding_mask)
            if padding_mask is not None:
                padding_mask = resize_mask(padding_mask, x.shape[-2:])  # once per resolution
            if name in self.out_features:
                features[name] = x
        return features


def _conv_norm(
    conv: nn.Module,
    norm: nn.Module,
    x: Tensor,
    padding_mask: Tensor | None,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Applies a convolution and its norm, adds ``residual`` if given, and applies ReLU if set.

    The result is zero on padding and does not depend on it. Norms with fixed statistics are folded into the weight of
    the convolution where that is faster; under autocast the result then has the lower precision of the convolution.
    """
    mask, affine = padding_mask, None
    if type(conv) is nn.Conv2d and conv.bias is None and conv.padding_mode == "zeros" and not has_hooks(conv, norm):
        # Gradients of a matrix get the contiguous layout of the parameter, which DDP expects.
        weight, bias = conv.weight.flatten(1) if conv.weight.is_contiguous() else conv.weight, None
        affine = _fixed_affine(norm) if _can_fold(conv, x) else None
        if affine is not None:
            scale, bias = affine
            weight = (weight * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
            bias = bias.to(weight.dtype)
        weight = weight.view_as(conv.weight)
        x = conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    else:
        x = conv(x)
    if padding_mask is not None and isinstance(norm, nn.GroupNorm):
        x, mask = masked_group_norm(norm, x, resize_mask(padding_mask, x.shape[-2:])), None
    elif affine is None:
        x = norm(x)
    if residual is not None:
        x += residual
    return _mask(x.relu_() if relu else x, mask)


def _can_fold(conv: nn.Conv2d, x: Tensor) -> bool:
    """Returns whether folding a norm into the weight is faster than applying it to the feature map."""
    # Runtimes fold constants of graphs. Under autocast, a separate norm would return float32.
    if is_traced() or x.is_meta or torch.is_autocast_enabled(x.device.type):
        return True
    positions = x.shape[0] * x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    return positions >= conv.weight[0].numel()  # otherwise the weight is larger than the feature map


def _fixed_affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Returns the factors and offsets (C,) of a batch norm; None for other norms and those with batch statistics."""
    if not isinstance(norm, FrozenBatchNorm2d) and (norm.training or not isinstance(norm, _BatchNorm)):
        return None
    weight, bias, mean, variance = (getattr(norm, name) for name in ("weight", "bias", "running_mean", "running_var"))
    scale = weight * (variance + norm.eps).rsqrt()
    return scale, bias - mean * scale


def _mask(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    if padding_mask is None:
        return x
    return x.masked_fill(resize_mask(padding_mask, x.shape[-2:])[:, None], 0.0)


class DeformableConv2d(DeformConv2d):  # type: ignore[misc]  # torchvision is not typed
    """3x3 convolution, C to C channels, at offsets predicted from the input (arXiv 1703.06211, 1811.11168).

    The weight has the same name and shape as in a plain convolution, so that ImageNet weights load. Initial offsets are
    zero; with ``modulated``, the initial weight of every tap is 1/2.

    Args:
        channels: C.
        stride: input pixels per output pixel.
        dilation: input pixels between taps; also the padding.
        modulated: whether to weight each tap by a number in (0, 1) predicted from the input.
        groups: number of channel groups with separate offsets; divides C.
        weight_groups: number of groups of the convolution; divides C.
    """

    def __init__(
        self, channels: int, *, stride: int, dilation: int, modulated: bool, groups: int, weight_groups: int = 1
    ) -> None:
        if channels % groups:
            raise ArgumentError("deform_groups", f"must divide the {channels} channels, got {groups}")
        shape: Any = {"stride": stride, "padding": dilation, "dilation": dilation}
        super().__init__(channels, channels, 3, **shape, groups=weight_groups, bias=False)
        self.sizes = [2 * groups * _KERNEL_SIZE, groups * _KERNEL_SIZE if modulated else 0]
        self.offset = nn.Conv2d(channels, sum(self.sizes), 3, **shape)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes the weight like the other convolutions of the ResNet, and the offsets to zero."""
        if not hasattr(self, "offset"):  # called by the constructor of DeformConv2d
            super().reset_parameters()
            return
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        offset, weight = torch.split(self.offset(x), self.sizes, dim=1)
        return super().forward(x, offset, weight.sigmoid() if self.sizes[1] else None)


def _check_arguments(
    depth: int, norm: str, res5_dilation: int, groups: tuple[int, int], deform: Sequence[bool]
) -> None:
    check_choice("norm", norm, _NORMS)
    if len(deform) != len(STAGES):
        raise ArgumentError("deform", f"must be a bool for each of {', '.join(STAGES)}, got {list(deform)}")
    if _DEPTHS[depth][0] is not _Bottleneck:
        unsupported = {
            "res5_dilation": res5_dilation > 1,
            "groups": groups[0] > 1,
            "width_per_group": groups[1] != 64,
            "deform": any(deform),
        }
        for argument, used in unsupported.items():
            if used:
                raise ArgumentError(argument, f"needs bottleneck blocks: set `depth` to 50 or 101, got {depth}")


def _norm_layer(norm: str, frozen: bool) -> Callable[[int], nn.Module]:
    """Returns the norm of a stage; in frozen stages, batch norm must not update its statistics."""
    return FrozenBatchNorm2d if frozen and norm in ("BN", "SyncBN") else _NORMS[norm]


def _build_stage(
    block: type[BasicBlock] | type[Bottleneck],
    channels: int,
    planes: int,
    num_blocks: int,
    stride: int,
    dilation: int,
    options: dict[str, Any],
) -> nn.Sequential:
    """Builds a stage; the first block of a dilated stage has dilation 1, as in torchvision's models."""
    out_channels = planes * block.expansion
    shortcut = None
    if stride != 1 or channels != out_channels:
        conv = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(conv, options["norm_layer"](out_channels))
    layers = [block(channels, planes, stride, shortcut, **options)]
    layers += [block(out_channels, planes, dilation=dilation, **options) for _ in range(1, num_blocks)]
    return _Stage(*layers)


def _make_deformable(stage: nn.Sequential, modulated: bool, groups: int) -> None:
    """Replaces the 3x3 convolution of every bottleneck block."""
    for block in stage:
        assert isinstance(block, Bottleneck)
        conv = block.conv2
        block.conv2 = DeformableConv2d(
            conv.in_channels,
            stride=conv.stride[0],
            dilation=conv.dilation[0],
            modulated=modulated,
            groups=groups,
            weight_groups=conv.groups,
        )
