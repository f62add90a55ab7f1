"""Whose weights a file holds, told by its keys, and their names in this project.

The published checkpoints differ in names and in a few layouts only: object queries as one (Q, 2C) matrix of
position and content, attention projections apart (Hugging Face) or stacked, heads repeated for every layer.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

_ATTENTION_TAIL = r"(sampling_offsets|attention_weights|value_proj|output_proj)\.(weight|bias)"

# (pattern, replacement) in the order of trial; a key that none matches is unexpected.
_OFFICIAL_RULES = [
    (r"backbone\.0\.body\.(.+)", r"backbone.\1"),
    (r"input_proj\.(\d+)\.([01])\.(weight|bias)", r"tokenizer.projections.\1.\2.\3"),
    (r"transformer\.level_embed", r"tokenizer.level_embed"),
    (
        rf"transformer\.encoder\.layers\.(\d+)\.self_attn\.{_ATTENTION_TAIL}",
        r"encoder.layers.\1.self_attn.\2.\3",
    ),
    (r"transformer\.encoder\.layers\.(\d+)\.norm1\.(.+)", r"encoder.layers.\1.norm.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm2\.(.+)", r"encoder.layers.\1.ffn.norm.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.(linear[12])\.(.+)", r"encoder.layers.\1.ffn.\2.\3"),
    (
        rf"transformer\.decoder\.layers\.(\d+)\.cross_attn\.{_ATTENTION_TAIL}",
        r"decoder.layers.\1.cross_attn.\2.\3",
    ),
    (r"transformer\.decoder\.layers\.(\d+)\.self_attn\.(.+)", r"decoder.layers.\1.self_attn.\2"),
    # The official layer runs its norm2 first, after self-attention, and norm1 after cross-attention.
    (r"transformer\.decoder\.layers\.(\d+)\.norm2\.(.+)", r"decoder.layers.\1.self_norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm1\.(.+)", r"decoder.layers.\1.cross_norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm3\.(.+)", r"decoder.layers.\1.ffn.norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.(linear[12])\.(.+)", r"decoder.layers.\1.ffn.\2.\3"),
    (r"transformer\.reference_points\.(.+)", r"queries.reference_points.\1"),
    (r"transformer\.enc_output\.(.+)", r"queries.output.\1"),
    (r"transformer\.enc_output_norm\.(.+)", r"queries.output_norm.\1"),
    (r"transformer\.pos_trans\.(.+)", r"queries.query.\1"),
    (r"transformer\.pos_trans_norm\.(.+)", r"queries.query_norm.\1"),
    (r"class_embed\.(\d+)\.(weight|bias)", r"decoder.class_heads.\1.\2"),
    (r"bbox_embed\.(\d+)\.layers\.(\d)\.(weight|bias)", r"decoder.box_heads.\1.layers.\2.\3"),
    # The decoder and the transformer hold the same heads once more.
    (r"transformer\.decoder\.(class_embed|bbox_embed)\..+", r""),
]

_HUGGING_FACE_RULES = [
    (r"model\.backbone\.(?:conv_encoder\.)?model\.embedder\.embedder\.convolution\.(.+)", r"backbone.conv1.\1"),
    (r"model\.backbone\.(?:conv_encoder\.)?model\.embedder\.embedder\.normalization\.(.+)", r"backbone.bn1.\1"),
    (r"model\.backbone\.(?:conv_encoder\.)?model\.(.+)", r"backbone.\1"),
    (r"model\.input_proj\.(\d+)\.([01])\.(weight|bias)", r"tokenizer.projections.\1.\2.\3"),
    (r"model\.level_embed", r"tokenizer.level_embed"),
    (rf"model\.encoder\.layers\.(\d+)\.self_attn\.{_ATTENTION_TAIL}", r"encoder.layers.\1.self_attn.\2.\3"),
    (r"model\.encoder\.layers\.(\d+)\.self_attn_layer_norm\.(.+)", r"encoder.layers.\1.norm.\2"),
    (r"model\.encoder\.layers\.(\d+)\.final_layer_norm\.(.+)", r"encoder.layers.\1.ffn.norm.\2"),
    (r"model\.encoder\.layers\.(\d+)\.(?:mlp\.)?fc([12])\.(.+)", r"encoder.layers.\1.ffn.linear\2.\3"),
    (
        rf"model\.decoder\.layers\.(\d+)\.encoder_attn\.{_ATTENTION_TAIL}",
        r"decoder.layers.\1.cross_attn.\2.\3",
    ),
    (
        r"model\.decoder\.layers\.(\d+)\.self_attn\.(?:out|o)_proj\.(.+)",
        r"decoder.layers.\1.self_attn.out_proj.\2",
    ),
    (
        r"model\.decoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(.+)",
        r"decoder.layers.\1.self_attn.in_proj_\3.\2",
    ),
    (r"model\.decoder\.layers\.(\d+)\.self_attn_layer_norm\.(.+)", r"decoder.layers.\1.self_norm.\2"),
    (r"model\.decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.(.+)", r"decoder.layers.\1.cross_norm.\2"),
    (r"model\.decoder\.layers\.(\d+)\.final_layer_norm\.(.+)", r"decoder.layers.\1.ffn.norm.\2"),
    (r"model\.decoder\.layers\.(\d+)\.(?:mlp\.)?fc([12])\.(.+)", r"decoder.layers.\1.ffn.linear\2.\3"),
    (r"model\.query_position_embeddings\.weight", r"query_embed.weight"),
    (r"model\.reference_points\.(.+)", r"queries.reference_points.\1"),
    (r"model\.enc_output\.(.+)", r"queries.output.\1"),
    (r"model\.enc_output_norm\.(.+)", r"queries.output_norm.\1"),
    (r"model\.pos_trans\.(.+)", r"queries.query.\1"),
    (r"model\.pos_trans_norm\.(.+)", r"queries.query_norm.\1"),
    # Refining models tie the heads to the decoder's; a saved file has one of the two names only.
    (r"(?:model\.decoder\.)?class_embed\.(\d+)\.(weight|bias)", r"decoder.class_heads.\1.\2"),
    (r"(?:model\.decoder\.)?bbox_embed\.(\d+)\.layers\.(\d)\.(weight|bias)", r"decoder.box_heads.\1.layers.\2.\3"),
]


def recognise(keys: Mapping[str, object]) -> str:
    """``"ours"``, ``"official"``, ``"hugging-face"``, ``"resnet"`` or ``"unknown"``."""
    names = {key.removeprefix("detector.") for key in keys}
    if "decoder.box_heads.0.layers.0.weight" in names:
        return "ours"
    if "transformer.encoder.layers.0.self_attn.sampling_offsets.weight" in names:
        return "official"
    if "model.encoder.layers.0.self_attn.sampling_offsets.weight" in names:
        return "hugging-face"
    if {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"} <= names:
        return "resnet"
    return "unknown"


def to_ours(state: Mapping[str, Tensor], kind: str) -> State:
    """Renames a state dict of a recognised kind to the detector's names; what no rule knows keeps its name."""
    if kind == "ours":
        return {key.removeprefix("detector."): value for key, value in state.items()}
    if kind == "resnet":
        return {f"backbone.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    if kind in ("official", "hugging-face"):
        rules = _OFFICIAL_RULES if kind == "official" else _HUGGING_FACE_RULES
        return _shared_layout(_rename(state, rules))
    raise ValueError(f"weights of kind {kind!r} have no names that are known")


def _rename(state: Mapping[str, Tensor], rules: list[tuple[str, str]]) -> State:
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            if re.fullmatch(pattern, key):
                key = re.sub(pattern, replacement, key)
                break
        if key:
            renamed[_resnet_name(key)] = value
    return renamed


def _resnet_name(key: str) -> str:
    """Hugging Face's own ResNet counts stages, and convolutions of a block, from 0 and names norms apart."""
    match = re.fullmatch(r"backbone\.encoder\.stages\.(\d)\.layers\.(\d+)\.(layer\.(\d)|shortcut)\.(\w+)\.(.+)", key)
    if match is None:
        return key
    stage, block, part, index, kind, tail = match.groups()
    convolution = kind == "convolution"
    if part == "shortcut":
        name = "downsample.0" if convolution else "downsample.1"
    else:
        name = f"{'conv' if convolution else 'bn'}{int(index) + 1}"
    return f"backbone.layer{int(stage) + 1}.{block}.{name}.{tail}"


def _shared_layout(state: State) -> State:
    state = _split_queries(_stack_projections(state))
    return _unshare_heads(state)


def _stack_projections(state: State) -> State:
    """``in_proj_weight.q``, ``.k``, ``.v`` become the stacked ``in_proj_weight`` of nn.MultiheadAttention."""
    stacked = {
        key: value for key, value in state.items() if ".in_proj_" not in key or key[-2:] not in (".q", ".k", ".v")
    }
    for key in state:
        if ".in_proj_" in key and key.endswith(".q"):
            stem = key[:-2]
            stacked[stem] = torch.cat([state[f"{stem}.{part}"] for part in "qkv"])
    return stacked


def _split_queries(state: State) -> State:
    """A two-stage model has none; otherwise the first half is the position, the second the content."""
    queries = state.pop("query_embed.weight", None)
    if queries is not None and not any(key.startswith("queries.output.") for key in state):
        position, content = queries.chunk(2, dim=1)
        state |= {"queries.position": position.contiguous(), "queries.content": content.contiguous()}
    return state


def _unshare_heads(state: State) -> State:
    """Heads that all layers share are kept once; a two-stage model's last head is that of the proposals."""
    layers = len({key.split(".")[2] for key in state if key.startswith("decoder.layers.")})
    if "decoder.box_heads.1.layers.0.weight" in state and "decoder.class_heads.1.weight" not in state:
        # transformers ties the class heads of a refining model, and then saves the first alone.
        for index in range(1, layers):
            for tail in ("weight", "bias"):
                state[f"decoder.class_heads.{index}.{tail}"] = state[f"decoder.class_heads.0.{tail}"]
    if f"decoder.class_heads.{layers}.weight" in state:
        for key in [
            key for key in state if key.startswith((f"decoder.class_heads.{layers}.", f"decoder.box_heads.{layers}."))
        ]:
            name = key.replace(f"decoder.class_heads.{layers}", "queries.class_head")
            state[name.replace(f"decoder.box_heads.{layers}", "queries.box_head")] = state.pop(key)
    elif _all_equal(state, "decoder.box_heads", layers) and _all_equal(state, "decoder.class_heads", layers):
        state = {key: value for key, value in state.items() if not re.match(r"decoder\.(class|box)_heads\.[1-9]", key)}
    return state


def _all_equal(state: State, stem: str, count: int) -> bool:
    first = {key[len(stem) + 2 :]: value for key, value in state.items() if key.startswith(f"{stem}.0")}
    return all(
        torch.equal(value, state.get(f"{stem}.{index}{tail}", value))
        for index in range(1, count)
        for tail, value in first.items()
    )
