"""Base class of detector formats, which converts their layout: stacked projections, joined queries, shared heads.

During a conversion, a state dict contains the detector's keys and three kinds of intermediate keys:
``query_embed.weight``, ``….in_proj_weight.q`` (or ``k``, ``v``; also ``in_proj_bias``) and ``tokenizer.extra.{i}``.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ..files import CheckpointError
from .backbones import DETECTRON2_RESNET, TORCHVISION_RESNET, detect_resnet, rename_backbone
from .base import Format, Names, NameTable, Rule, State

CLASS_HEAD = re.compile(r"(decoder\.class_heads\.\d+|queries\.class_head)\.(weight|bias)")
_HEAD = re.compile(r"decoder\.(class|box)_heads\.(\d+)\.(.+)")
NATIVE = Format("native", {"tokenizer.projections.0.0.weight"})


class DetectorFormat(Format):
    """Format of DETR and Deformable DETR in another project.

    Args:
        name: name of the format.
        mark: key that identifies the format.
        deformable: rules of Deformable DETR, see `NameTable`.
        detr: rules of DETR.
        classes: see `Format`.
    """

    def __init__(
        self, name: str, mark: str, deformable: Iterable[Rule], detr: Iterable[Rule], classes: Mapping[int, Names]
    ) -> None:
        super().__init__(name, {mark}, classes=classes)
        self.deformable, self.detr = NameTable(deformable), NameTable(detr)

    def import_state(self, state: State) -> State:
        table = self.deformable if is_deformable(state) else self.detr
        state = rename_backbone(_number_extra_levels(_stack_projections(table.import_state(state))))
        return _unshare_heads(_split_queries(state))

    def export_state(self, state: State) -> State:
        """Converts the result of `portable_state` to the keys and layout of the other project.

        Raises:
            CheckpointError: if a tensor has no counterpart in the other project.
        """
        deformable = is_deformable(state)
        state = _join_queries(state)
        try:
            if deformable:
                return self.deformable.export_state(_share_heads(state))
            state = self.detr.export_state(state)
        except KeyError as error:
            raise CheckpointError(f"{error.args[0]} has no counterpart in the {self.name} format") from error
        masks = ("mask_head.", "bbox_attention.")
        if not any(key.startswith(masks) for key in state):
            return state
        # In a model with masks, the detector is the submodule ``detr``.
        return {key if key.startswith(masks) else f"detr.{key}": value for key, value in state.items()}


def layer_rules(stack: str, parts: Mapping[str, str], prefix: str = "") -> list[Rule]:
    """Returns the rules for the layers of ``"encoder"`` or ``"decoder"``.

    Args:
        stack: ``"encoder"`` or ``"decoder"``.
        parts: maps submodules of the detector's layers to those of the other project.
        prefix: prefix of the other project's keys.
    """
    layer = f"{stack}.layers.{{i}}"
    return [(f"{layer}.{native}.{{x}}", f"{prefix}{layer}.{foreign}.{{x}}") for native, foreign in parts.items()]


def numbered_layer_rules(ffn: str, encoder: str, self_attn: str, cross_attn: str, prefix: str = "") -> list[Rule]:
    """Returns the rules for layers with numbered norms, as in detrex and mmdetection.

    Args:
        ffn: prefix of the linear layers of the feed-forward network.
        encoder: name of the encoder's self-attention.
        self_attn, cross_attn: names of the decoder's attention layers.
        prefix: prefix of the other project's keys.
    """
    parts = {"ffn.linear1": f"{ffn}.layers.0.0", "ffn.linear2": f"{ffn}.layers.1"}
    encoder_parts = parts | {"self_attn": encoder, "norm": "norms.0", "ffn.norm": "norms.1"}
    decoder_parts = parts | {"self_attn": self_attn, "self_norm": "norms.0"}
    decoder_parts |= {"cross_attn": cross_attn, "cross_norm": "norms.1", "ffn.norm": "norms.2"}
    return layer_rules("encoder", encoder_parts, prefix) + layer_rules("decoder", decoder_parts, prefix)


def neck_rules(norm: str) -> list[Rule]:
    """Returns the rules for the input projections of detrex and mmdetection; ``norm`` is the name of their norms."""
    modules = (("projections", "neck.convs"), ("extra", "neck.extra_convs"))
    parts = (("0", "conv"), ("1", norm))
    return [
        (f"tokenizer.{native}.{{i}}.{index}.{{w}}", f"{foreign}.{{i}}.{part}.{{w}}")
        for native, foreign in modules
        for index, part in parts
    ]


def portable_state(detector: nn.Module) -> State:
    """Returns the weights of a detector on the CPU, with torchvision's keys and without step counters of batch norm.

    Raises:
        CheckpointError: if other projects do not support the model.
    """
    state = rename_backbone({key: value.detach().cpu() for key, value in detector.state_dict().items()})
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    backbone = {key.removeprefix("backbone.") for key in state if key.startswith("backbone.")}
    unknown = sorted(name for name in backbone if not DETECTRON2_RESNET.table.has(name))
    if detect_resnet(backbone) is not TORCHVISION_RESNET or "bn1.running_mean" not in backbone or unknown:
        found = f", got one with {unknown[0]}" if unknown else ""
        raise CheckpointError(f"export requires a plain ResNet with batch norm as backbone{found}")
    if not any(key.startswith("decoder.layers.") for key in state):
        raise CheckpointError("export requires a decoder: other projects do not support encoder-only models")
    return state


def is_deformable(state: Iterable[str]) -> bool:
    """Returns whether the keys of a detector are those of Deformable DETR instead of DETR."""
    return any(".sampling_offsets." in key for key in state)


def split_projections(state: State) -> State:
    """Splits each ``….in_proj_weight`` (3C, C) and bias (3C,) into query, key and value projections."""
    split: State = {}
    for key, value in state.items():
        if re.search(r"\.in_proj_(weight|bias)$", key):
            split |= {f"{key}.{name}": part.contiguous() for name, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            split[key] = value
    return split


def _stack_projections(state: State) -> State:
    """Inverse of `split_projections`."""
    stacked = {key: value for key, value in state.items() if not re.search(r"\.in_proj_\w+\.[qkv]$", key)}
    for key in state:
        stem, _, part = key.rpartition(".")
        if part == "q" and all(f"{stem}.{name}" in state for name in "qkv"):
            stacked[stem] = torch.cat([state[f"{stem}.{name}"] for name in "qkv"])
    return stacked


def _split_queries(state: State) -> State:
    """Splits the query embedding of Deformable DETR into position and content; DETR has only positions."""
    queries = state.pop("query_embed.weight", None)
    if queries is None or any(key.startswith("queries.output.") for key in state):
        return state
    if not is_deformable(state):
        return state | {"queries.position": queries}
    position, content = queries.chunk(2, dim=1)
    return state | {"queries.position": position.contiguous(), "queries.content": content.contiguous()}


def _join_queries(state: State) -> State:
    """Inverse of `_split_queries`."""
    state = dict(state)
    parts = [state.pop(key) for key in ("queries.position", "queries.content") if key in state]
    return state | {"query_embed.weight": torch.cat(parts, dim=1)} if parts else state


def _number_extra_levels(state: State) -> State:
    """Renumbers extra levels to follow those of the backbone; detrex and mmdetection number them from 0."""
    first = _count(state, "tokenizer.projections.")

    def number(match: re.Match[str]) -> str:
        return f"tokenizer.projections.{first + int(match[1])}."

    return {re.sub(r"^tokenizer\.extra\.(\d+)\.", number, key): value for key, value in state.items()}


def _unshare_heads(state: State) -> State:
    """Removes copies of shared heads, and moves the last heads of a two-stage model to the proposals."""
    layers = _count(state, "decoder.layers.")
    if "decoder.box_heads.1.layers.0.weight" in state and "decoder.class_heads.1.weight" not in state:
        # transformers ties the class heads of a model with box refinement and saves only the first.
        first = [key for key in state if key.startswith("decoder.class_heads.0.")]
        state |= {key.replace(".0.", f".{index}."): state[key] for key in first for index in range(1, layers)}
    heads = {key: match for key in state if (match := _HEAD.fullmatch(key))}
    if f"decoder.class_heads.{layers}.weight" in state:
        moved = {key: f"queries.{match[1]}_head.{match[3]}" for key, match in heads.items() if int(match[2]) == layers}
        return {moved.get(key, key): value for key, value in state.items()}
    copies = {key: f"decoder.{match[1]}_heads.0.{match[3]}" for key, match in heads.items() if match[2] != "0"}
    if all(torch.equal(state[key], state.get(first, state[key])) for key, first in copies.items()):
        return {key: value for key, value in state.items() if key not in copies}
    return state


def _share_heads(state: State) -> State:
    """Inverse of `_unshare_heads`: one head per layer, followed by the head of the proposals."""
    layers, shared = _count(state, "decoder.layers."), dict(state)
    for key, value in state.items():
        if match := re.fullmatch(r"queries\.(class|box)_head\.(.+)", key):
            shared[f"decoder.{match[1]}_heads.{layers}.{match[2]}"] = shared.pop(key)
        elif match := _HEAD.fullmatch(key):
            for index in range(1, layers):
                shared.setdefault(f"decoder.{match[1]}_heads.{index}.{match[3]}", value)
    return shared


def _count(state: State, prefix: str) -> int:
    """Returns the number of modules in a list; ``prefix`` consists of two names."""
    return len({key.split(".")[2] for key in state if key.startswith(prefix)})
