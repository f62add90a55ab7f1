"""Whose weights a file holds, told by its keys, and their names in this project."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from . import hugging_face, layout, mmdetection, official, resnet
from .names import State

# A key that only this project's files, or only that project's, have.
_MARKS = {
    "ours": "tokenizer.projections.0.0.weight",
    "official": "transformer.encoder.layers.0.norm1.weight",
    "detrex": "transformer.encoder.layers.0.norms.0.weight",
    "hugging-face": "model.encoder.layers.0.self_attn_layer_norm.weight",
    "mmdetection": "encoder.layers.0.ffn.layers.0.0.weight",
}
# Prefixes of whole files: distributed training's, ours; of the detector in a model with masks, once or twice.
_PREFIXES = ("module.", "detector.", "detr.", "detr.")
_SWIN = {"features.0.0.weight", "features.1.0.attn.qkv.weight"}  # torchvision's


def recognise(keys: Mapping[str, object]) -> str:
    """Whose weights these are.

    Returns:
        ``"ours"``, ``"official"``, ``"detrex"``, ``"hugging-face"`` or ``"mmdetection"`` for a whole detector, DETR or
        Deformable DETR;
        ``"resnet"`` for a backbone, ``"resnet-caffe2"`` for one that was trained in Caffe2 (BGR images, by Detectron2's
        model zoo), ``"swin"`` for torchvision's; ``"unknown"`` for all else.
    """
    names = {_without_prefixes(key) for key in keys}
    for kind, mark in _MARKS.items():
        if mark in names:
            return kind
    if names >= _SWIN:
        return "swin"
    dialect = resnet.dialect(names)
    if dialect is None:
        return "unknown"
    return "resnet-caffe2" if dialect == "caffe2" else "resnet"


def is_backbone(kind: str) -> bool:
    """Whether weights of that kind fill a backbone and nothing else."""
    return kind in ("resnet", "resnet-caffe2", "swin")


def to_ours(state: Mapping[str, Tensor], kind: str) -> State:
    """Renames a state dict of a recognised kind to the detector's names; what no rule knows keeps its name."""
    if kind == "unknown":
        raise ValueError(f"weights of kind {kind!r} have no names that are known")
    bare = {_without_prefixes(key): value for key, value in state.items()}
    if kind == "ours":
        return bare
    if kind in ("resnet", "resnet-caffe2"):
        renamed = resnet.to_torchvision(bare, resnet.dialect(bare) or "")
        return {f"backbone.{key}": value for key, value in renamed.items()}
    if kind == "swin":  # its last norm and its head are the classifier's
        return {f"backbone.{key}": value for key, value in bare.items() if key.startswith("features.")}
    deformable = layout.is_deformable(bare)
    if kind == "official":
        bare = (official.DEFORMABLE_DETR if deformable else official.DETR).to_ours(bare)
    elif kind == "detrex":
        bare = (official.DETREX_DEFORMABLE_DETR if deformable else official.DETREX_DETR).to_ours(bare)
        bare = layout.number_extra_levels(bare)
    elif kind == "mmdetection":
        bare = (mmdetection.DEFORMABLE_DETR if deformable else mmdetection.DETR).to_ours(bare)
        bare = layout.add_biases(layout.number_extra_levels(bare))
    else:
        bare = (hugging_face.DEFORMABLE_DETR if deformable else hugging_face.DETR).to_ours(bare)
        bare = layout.stack_projections(bare)
    return layout.unshare_heads(layout.split_queries(backbone_names(bare)))


def backbone_names(state: State, wanted: str = "torchvision", prefix: str = "backbone.") -> State:
    """The ResNet below ``backbone.`` with the names of a dialect, below ``prefix``; another backbone keeps its own."""
    names = {key.removeprefix("backbone."): key for key in state if key.startswith("backbone.")}
    dialect = resnet.dialect(names)
    if dialect is None or (dialect, "backbone.") == (wanted, prefix):
        return state
    backbone = resnet.to_torchvision({name: state[key] for name, key in names.items()}, dialect)
    rest = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    return rest | {f"{prefix}{key}": value for key, value in resnet.from_torchvision(backbone, wanted).items()}


def to_dialect_of(own: Iterable[str], state: State) -> State:
    """Our names of the backbone to those of a model that has it inside an FPN, or has Detectron2's ResNet."""
    own = list(own)
    if any(key.startswith("backbone.bottom_up.features.") for key in own):
        return {key.replace("backbone.features.", "backbone.bottom_up.features."): state[key] for key in state}
    for prefix in ("backbone.", "backbone.bottom_up."):
        dialect = resnet.dialect(key.removeprefix(prefix) for key in own if key.startswith(prefix))
        if dialect is not None:
            return backbone_names(state, dialect, prefix)
    return state


def _without_prefixes(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key
