"""One ResNet, four ways to name its tensors: torchvision's (ours), Detectron2's, Caffe2's and Hugging Face's.

Names are those below the backbone: ``conv1.weight``, ``layer1.0.bn1.weight`` … here.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .names import DROPPED, NameTable, Rule, State

_STAGES = range(1, 5)
_CONVOLUTIONS = range(1, 4)
_EPS = 1e-5  # of torchvision's and Detectron2's frozen norm


def _detectron2_rules() -> list[Rule]:
    rules = [("conv1.{w}", "stem.conv1.{w}"), ("bn1.{x}", "stem.conv1.norm.{x}"), (DROPPED, "stem.fc.{w}")]
    for stage in _STAGES:
        ours, theirs = f"layer{stage}.{{i}}", f"res{stage + 1}.{{i}}"
        rules += [
            (f"{ours}.downsample.0.{{w}}", f"{theirs}.shortcut.{{w}}"),
            (f"{ours}.downsample.1.{{x}}", f"{theirs}.shortcut.norm.{{x}}"),
        ]
        for index in _CONVOLUTIONS:
            rules += [
                (f"{ours}.conv{index}.{{w}}", f"{theirs}.conv{index}.{{w}}"),
                (f"{ours}.bn{index}.{{x}}", f"{theirs}.conv{index}.norm.{{x}}"),
            ]
    return rules


def _caffe2_rules() -> list[Rule]:
    """An affine layer, ``bn_s`` and ``bn_b``, is all that is left of the norm; or a group norm, ``gn_s`` and ``gn_b``.

    The stem's bias is zero, and the classifier is not wanted.
    """
    rules = [("conv1.weight", "conv1_w"), (DROPPED, "conv1_b"), (DROPPED, "fc1000_{x}"), (DROPPED, "pred_{x}")]
    places = [("bn1", "res_conv1"), ("bn1", "conv1")]
    for stage in _STAGES:
        ours, theirs = f"layer{stage}.{{i}}", f"res{stage + 1}_{{i}}_branch"
        rules.append((f"{ours}.downsample.0.weight", f"{theirs}1_w"))
        places.append((f"{ours}.downsample.1", f"{theirs}1"))
        for index, letter in zip(_CONVOLUTIONS, "abc", strict=True):
            rules.append((f"{ours}.conv{index}.weight", f"{theirs}2{letter}_w"))
            places.append((f"{ours}.bn{index}", f"{theirs}2{letter}"))
    for ours, theirs in places:
        for norm in ("bn", "gn"):
            rules += [(f"{ours}.weight", f"{theirs}_{norm}_s"), (f"{ours}.bias", f"{theirs}_{norm}_b")]
    return rules


def _hugging_face_rules() -> list[Rule]:
    """Their own ResNet counts stages, and convolutions of a block, from 0."""
    rules = [
        ("conv1.{w}", "embedder.embedder.convolution.{w}"),
        ("bn1.{x}", "embedder.embedder.normalization.{x}"),
    ]
    for stage in _STAGES:
        ours, theirs = f"layer{stage}.{{i}}", f"encoder.stages.{stage - 1}.layers.{{i}}"
        places = [("downsample.0", "downsample.1", "shortcut")]
        places += [(f"conv{index}", f"bn{index}", f"layer.{index - 1}") for index in _CONVOLUTIONS]
        for convolution, norm, place in places:
            rules += [
                (f"{ours}.{convolution}.{{w}}", f"{theirs}.{place}.convolution.{{w}}"),
                (f"{ours}.{norm}.{{x}}", f"{theirs}.{place}.normalization.{{x}}"),
            ]
    return rules


DETECTRON2 = NameTable(_detectron2_rules())
CAFFE2 = NameTable(_caffe2_rules())
HUGGING_FACE = NameTable(_hugging_face_rules())


def dialect(names: Iterable[str]) -> str | None:
    """Who named a ResNet so: ``"torchvision"``, ``"detectron2"``, ``"caffe2"``, ``"hugging-face"``, or None."""
    names = set(names)
    for kind, wanted in {
        "torchvision": {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"},
        "detectron2": {"stem.conv1.weight", "stem.conv1.norm.weight", "res2.0.conv1.weight"},
        "caffe2": {"conv1_w", "res2_0_branch2a_w"},
        "hugging-face": {"embedder.embedder.convolution.weight"},
    }.items():
        if wanted <= names:
            return kind
    return None


def to_torchvision(state: Mapping[str, Tensor], kind: str) -> State:
    """Renames a whole ResNet of one of ``dialect``'s kinds; classifiers are left out."""
    if kind == "torchvision":
        return {key: value for key, value in state.items() if not key.startswith("fc.")}
    if kind == "caffe2":
        renamed = CAFFE2.to_ours(state)
        return renamed if any("_gn_" in key for key in state) else _with_statistics(renamed)
    return {"detectron2": DETECTRON2, "hugging-face": HUGGING_FACE}[kind].to_ours(state)


def is_known(name: str) -> bool:
    """Whether a plain ResNet has a tensor of this name of ours."""
    return DETECTRON2.has(name)


def from_torchvision(state: Mapping[str, Tensor], kind: str) -> State:
    """The inverse for ``"torchvision"``, ``"detectron2"`` and ``"hugging-face"``; unknown keys keep their names."""
    if kind == "torchvision":
        return dict(state)
    return {"detectron2": DETECTRON2, "hugging-face": HUGGING_FACE}[kind].to_theirs(state, strict=False)


def _with_statistics(state: State) -> State:
    """Mean 0 and variance 1 - eps, with which a frozen norm is just the affine layer that Caffe2's files have."""
    for key, value in list(state.items()):
        match = re.fullmatch(r"(.*(?:bn\d|downsample\.1))\.weight", key)
        if match:
            state[f"{match[1]}.running_mean"] = torch.zeros_like(value)
            state[f"{match[1]}.running_var"] = torch.full_like(value, 1.0 - _EPS)
    return state
