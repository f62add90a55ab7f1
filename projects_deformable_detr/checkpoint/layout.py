"""What differs between projects beyond names: stacked projections, joined queries, heads stored for every layer.

Keys are ours, with three that are on the way: ``query_embed.weight``, ``….in_proj_weight.q`` (``k``, ``v``; ``bias``),
``tokenizer.extra.{i}``.
"""

import re
from collections.abc import Iterable

import torch

from .names import State

_HEADS = ("decoder.class_heads", "decoder.box_heads")


def is_deformable(state: State) -> bool:
    """Whether a detector with our names is Deformable DETR, and not DETR."""
    return any(".sampling_offsets." in key for key in state)


def stack_projections(state: State) -> State:
    """``….in_proj_weight.q`` and its ``k`` and ``v`` to one ``….in_proj_weight`` (3C, C)."""
    stacked = {key: value for key, value in state.items() if not re.search(r"\.in_proj_\w+\.[qkv]$", key)}
    for key in state:
        stem, _, part = key.rpartition(".")
        if part == "q" and all(f"{stem}.{name}" in state for name in "qkv"):
            stacked[stem] = torch.cat([state[f"{stem}.{name}"] for name in "qkv"])
    return stacked


def split_projections(state: State) -> State:
    """The inverse of `stack_projections`."""
    split: State = {}
    for key, value in state.items():
        if re.search(r"\.in_proj_(weight|bias)$", key):
            parts = zip("qkv", value.chunk(3), strict=True)
            split |= {f"{key}.{name}": part.contiguous() for name, part in parts}
        else:
            split[key] = value
    return split


def split_queries(state: State) -> State:
    """DETR's queries are positions; half of Deformable DETR's; a two-stage model has none of its own."""
    queries = state.pop("query_embed.weight", None)
    if queries is None or any(key.startswith("queries.output.") for key in state):
        return state
    if not is_deformable(state):
        return state | {"queries.position": queries}
    position, content = queries.chunk(2, dim=1)
    return state | {"queries.position": position.contiguous(), "queries.content": content.contiguous()}


def join_queries(state: State) -> State:
    """The inverse of `split_queries`."""
    parts = [state.pop(key) for key in ("queries.position", "queries.content") if key in state]
    return state | {"query_embed.weight": torch.cat(parts, dim=1)} if parts else state


def number_extra_levels(state: State) -> State:
    """detrex and mmdetection count the levels that the backbone does not have from 0."""
    first = len({key.split(".")[2] for key in state if key.startswith("tokenizer.projections.")})
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"tokenizer\.extra\.(\d+)\.(.+)", key)
        renamed[f"tokenizer.projections.{first + int(match[1])}.{match[2]}" if match else key] = value
    return renamed


def add_biases(state: State) -> State:
    """mmdetection's projections have none where a norm follows; a bias of 0 is the same."""
    weights = (key for key in state if re.fullmatch(r"tokenizer\.projections\.\d+\.0\.weight", key))
    biases = {key.replace("weight", "bias"): state[key].new_zeros(len(state[key])) for key in weights}
    return biases | state


def unshare_heads(state: State) -> State:
    """Heads that all layers share are kept once; a two-stage model's last head is that of the proposals."""
    layers = decoder_layers(state)
    if "decoder.box_heads.1.layers.0.weight" in state and "decoder.class_heads.1.weight" not in state:
        # transformers ties the class heads of a refining model, and then saves the first alone.
        for index in range(1, layers):
            for tail in ("weight", "bias"):
                state[f"decoder.class_heads.{index}.{tail}"] = state[f"decoder.class_heads.0.{tail}"]
    if f"decoder.class_heads.{layers}.weight" in state:
        return _rename_last_heads(state, layers)
    if all(_all_equal(state, stem, layers) for stem in _HEADS):
        return {key: value for key, value in state.items() if not re.match(r"decoder\.(class|box)_heads\.[1-9]", key)}
    return state


def decoder_layers(state: State) -> int:
    """The number of decoder layers in a state dict with our names."""
    return len({key.split(".")[2] for key in state if key.startswith("decoder.layers.")})


def _rename_last_heads(state: State, layers: int) -> State:
    renamed = {}
    for key, value in state.items():
        name = key.replace(f"decoder.class_heads.{layers}.", "queries.class_head.")
        renamed[name.replace(f"decoder.box_heads.{layers}.", "queries.box_head.")] = value
    return renamed


def share_heads(state: State) -> State:
    """The inverse of `unshare_heads`: a head for each layer, and the proposals' after them."""
    layers, shared = decoder_layers(state), dict(state)
    for key, value in state.items():
        match = re.fullmatch(r"queries\.(class|box)_head\.(.+)", key)
        if match:
            shared[f"decoder.{match[1]}_heads.{layers}.{match[2]}"] = shared.pop(key)
        for stem in _HEADS:
            if key.startswith(f"{stem}.0.") and not _has(state, f"{stem}.1."):
                tail = key.removeprefix(f"{stem}.0.")
                shared |= {f"{stem}.{index}.{tail}": value for index in range(1, layers)}
    return shared


def _has(state: Iterable[str], stem: str) -> bool:
    return any(key.startswith(stem) for key in state)


def _all_equal(state: State, stem: str, count: int) -> bool:
    first = {key[len(stem) + 2 :]: value for key, value in state.items() if key.startswith(f"{stem}.0")}
    return all(
        torch.equal(value, state.get(f"{stem}.{index}{tail}", value))
        for index in range(1, count)
        for tail, value in first.items()
    )
