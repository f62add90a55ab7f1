"""Formats of ImageNet backbones: torchvision's Swin Transformer, and ResNets of torchvision and other projects.

The detector uses torchvision's keys. Keys are relative to the backbone: ``conv1.weight``, ``layer1.0.bn1.weight``.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence

import torch

from .base import DROPPED, Format, Rule, State

_EPS = 1e-5  # epsilon used by FrozenBatchNorm2d in torchvision and Detectron2


class BackboneFormat(Format):
    """ImageNet backbone, whose rules map torchvision's keys to those of another project."""

    is_backbone = True

    def import_state(self, state: State) -> State:
        return {f"backbone.{key}": value for key, value in self.to_torchvision(state).items()}

    def to_torchvision(self, state: State) -> State:
        """Renames keys to those of torchvision and removes the classifier."""
        return super().import_state(state)


class _Caffe2ResNet(BackboneFormat):
    def to_torchvision(self, state: State) -> State:
        """Adds mean 0 and variance 1 - eps, so that a frozen batch norm equals the affine layer in Caffe2 files."""
        renamed = super().to_torchvision(state)
        norms = [key for key in renamed if re.search(r"(bn\d|downsample\.1)\.weight$", key)]
        for key in () if is_group_norm(state) else norms:
            renamed[key.replace("weight", "running_mean")] = torch.zeros_like(renamed[key])
            renamed[key.replace("weight", "running_var")] = torch.full_like(renamed[key], 1.0 - _EPS)
        return renamed


def is_group_norm(state: Iterable[str]) -> bool:
    """Returns whether a ResNet with Caffe2 keys has group norm."""
    return any("_gn_" in key for key in state)


def _rules(
    stem: str, block: Callable[[int], str], convolutions: Sequence[str], conv: Sequence[Rule], norm: Sequence[Rule]
) -> list[Rule]:
    """Returns the rules of a ResNet.

    Args:
        stem: name of the stem's convolution in the other project.
        block: returns the prefix of a stage's blocks in the other project, given the number of the stage.
        convolutions: names of a block's shortcut and convolutions in the other project.
        conv: suffixes of the tensors of a convolution in torchvision and in the other project.
        norm: suffixes of the tensors of the norm after a convolution in torchvision and in the other project.
    """
    layers = [("conv1", "bn1", stem)]
    modules = (("downsample.0", "downsample.1"), ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
    for stage in range(1, 5):
        prefix = f"layer{stage}.{{i}}."
        layers += [
            (prefix + convolution, prefix + batch_norm, block(stage) + name)
            for (convolution, batch_norm), name in zip(modules, convolutions, strict=True)
        ]
    return [
        (f"{module}{suffix}", f"{name}{foreign_suffix}")
        for convolution, batch_norm, name in layers
        for module, suffixes in ((convolution, conv), (batch_norm, norm))
        for suffix, foreign_suffix in suffixes
    ]


TORCHVISION_SWIN = BackboneFormat(
    "swin",
    {"features.0.0.weight", "features.1.0.attn.qkv.weight"},
    # The last norm and the head belong to the classifier.
    [("features.{x}", "features.{x}"), (DROPPED, "{x}")],
)
TORCHVISION_RESNET = BackboneFormat(
    "resnet", {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"}, [(DROPPED, "fc.{x}")]
)
DETECTRON2_RESNET = BackboneFormat(
    "resnet",
    {"stem.conv1.weight", "stem.conv1.norm.weight", "res2.0.conv1.weight"},
    [
        (DROPPED, "stem.fc.{w}"),
        *_rules(
            "stem.conv1",
            lambda stage: f"res{stage + 1}.{{i}}.",
            ("shortcut", "conv1", "conv2", "conv3"),
            conv=[(".{w}", ".{w}")],
            norm=[(".{x}", ".norm.{x}")],
        ),
    ],
)
# Batch norms are folded into affine layers (bn_s, bn_b); group norms are gn_s and gn_b. The bias of the stem is zero.
CAFFE2_RESNET = _Caffe2ResNet(
    "resnet-caffe2",
    {"conv1_w", "res2_0_branch2a_w"},
    [
        *((DROPPED, name) for name in ("conv1_b", "fc1000_{x}", "pred_{x}")),
        ("bn1.weight", "res_conv1_bn_s"),
        ("bn1.bias", "res_conv1_bn_b"),
        *_rules(
            "conv1",
            lambda stage: f"res{stage + 1}_{{i}}_branch",
            ("1", "2a", "2b", "2c"),
            conv=[(".weight", "_w")],
            norm=[(".weight", "_bn_s"), (".bias", "_bn_b"), (".weight", "_gn_s"), (".bias", "_gn_b")],
        ),
    ],
)
HUGGING_FACE_RESNET = BackboneFormat(
    "resnet",
    {"embedder.embedder.convolution.weight"},
    _rules(
        "embedder.embedder",
        lambda stage: f"encoder.stages.{stage - 1}.layers.{{i}}.",
        ("shortcut", "layer.0", "layer.1", "layer.2"),
        conv=[(".{w}", ".convolution.{w}")],
        norm=[(".{x}", ".normalization.{x}")],
    ),
)
RESNETS = (TORCHVISION_RESNET, DETECTRON2_RESNET, CAFFE2_RESNET, HUGGING_FACE_RESNET)


def detect_resnet(names: Collection[str]) -> BackboneFormat | None:
    """Returns the format of a ResNet with these keys, or None for other networks."""
    return next((format for format in RESNETS if format.detect(names)), None)


def rename_backbone(state: State, to: BackboneFormat = TORCHVISION_RESNET, prefix: str = "backbone.") -> State:
    """Renames keys of the ResNet under ``backbone.`` and moves it to ``prefix``; other backbones are unchanged."""
    backbone = {key.removeprefix("backbone."): state[key] for key in state if key.startswith("backbone.")}
    format = detect_resnet(backbone)
    if format is None or (format, "backbone.") == (to, prefix):
        return state
    resnet = to.table.export_state(format.to_torchvision(backbone), strict=False)
    rest = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    return rest | {f"{prefix}{key}": value for key, value in resnet.items()}


def match_backbone(state: State, model_keys: Collection[str]) -> State:
    """Renames the backbone to match the keys of a model, which may have an FPN or Detectron2's ResNet."""
    if any(key.startswith("backbone.bottom_up.features.") for key in model_keys):
        return {key.replace("backbone.features.", "backbone.bottom_up.features."): state[key] for key in state}
    for prefix in ("backbone.", "backbone.bottom_up."):
        format = detect_resnet({key.removeprefix(prefix) for key in model_keys if key.startswith(prefix)})
        if format is not None:
            return rename_backbone(state, format, prefix)
    return state
