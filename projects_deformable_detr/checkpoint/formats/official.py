"""Formats of the official repositories of DETR and Deformable DETR, and of detrex, whose keys are similar.

The official decoders number the norms differently: in DETR, norm1 follows self-attention and norm2 follows
cross-attention; in Deformable DETR, the order is reversed.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ...zoo.coco_classes import BY_ID, CATEGORIES, CONTIGUOUS
from ..files import CheckpointError, write_atomically
from .base import DROPPED, Rule, State
from .detector import CLASS_HEAD, DetectorFormat, layer_rules, neck_rules, numbered_layer_rules, portable_state

# Bias of unused logits; their sigmoid and softmax are 0, even in half precision.
_UNUSED_BIAS = -100.0

_FFN = {"self_attn": "self_attn", "ffn.linear1": "linear1", "ffn.linear2": "linear2"}
_ENCODER = layer_rules("encoder", _FFN | {"norm": "norm1", "ffn.norm": "norm2"}, "transformer.")


def _decoder(cross_attn: str, self_norm: str, cross_norm: str) -> list[Rule]:
    parts = {"cross_attn": cross_attn, "self_norm": self_norm, "cross_norm": cross_norm, "ffn.norm": "norm3"}
    return layer_rules("decoder", _FFN | parts, "transformer.")


def query_rules(prefix: str) -> list[Rule]:
    """Returns the rules for the queries and proposals of Deformable DETR."""
    parts = {"reference_points": "reference_points", "output": "enc_output", "output_norm": "enc_output_norm"}
    parts |= {"query": "pos_trans", "query_norm": "pos_trans_norm"}
    return [(f"queries.{native}.{{w}}", f"{prefix}{foreign}.{{w}}") for native, foreign in parts.items()]


def head_rules(prefix: str = "") -> list[Rule]:
    """Returns the rules for separate heads of each layer."""
    return [
        ("decoder.class_heads.{i}.{w}", f"{prefix}class_embed.{{i}}.{{w}}"),
        ("decoder.box_heads.{i}.layers.{j}.{w}", f"{prefix}bbox_embed.{{i}}.layers.{{j}}.{{w}}"),
    ]


# Copies of the heads in the decoder.
_COPIES = [(DROPPED, f"transformer.decoder.{name}_embed.{{x}}") for name in ("class", "bbox")]
_UNUSED = (DROPPED, "criterion.empty_weight")
_SHARED_HEADS: list[Rule] = [
    ("decoder.class_heads.0.{w}", "class_embed.{w}"),
    ("decoder.box_heads.0.layers.{i}.{w}", "bbox_embed.layers.{i}.{w}"),
]
MASKS: list[Rule] = [
    ("mask_head.attention.query.{w}", "bbox_attention.q_linear.{w}"),
    ("mask_head.attention.key.{w}", "bbox_attention.k_linear.{w}"),
    *((f"mask_head.convs.{index}.0.{{w}}", f"mask_head.lay{index + 1}.{{w}}") for index in range(5)),
    *((f"mask_head.convs.{index}.1.{{w}}", f"mask_head.gn{index + 1}.{{w}}") for index in range(5)),
    *((f"mask_head.adapters.{index}.{{w}}", f"mask_head.adapter{index + 1}.{{w}}") for index in range(3)),
    ("mask_head.output.{w}", "mask_head.out_lay.{w}"),
]

OFFICIAL = DetectorFormat(
    name="official",
    mark="transformer.encoder.layers.0.norm1.weight",
    deformable=[
        ("backbone.{x}", "backbone.0.body.{x}"),
        ("tokenizer.projections.{i}.{j}.{w}", "input_proj.{i}.{j}.{w}"),
        ("tokenizer.level_embed", "transformer.level_embed"),
        ("query_embed.weight", "query_embed.weight"),
        *_ENCODER,
        *_decoder("cross_attn", self_norm="norm2", cross_norm="norm1"),
        *query_rules("transformer."),
        *head_rules(),
        *_COPIES,
    ],
    detr=[
        ("backbone.{x}", "backbone.0.body.{x}"),
        ("backbone.{x}", "backbone.0.backbone.{x}"),  # DETR's Detectron2 wrapper
        ("tokenizer.position_embedding.row", "backbone.1.row_embed.weight"),
        ("tokenizer.position_embedding.column", "backbone.1.col_embed.weight"),
        ("tokenizer.projections.0.0.{w}", "input_proj.{w}"),
        ("query_embed.weight", "query_embed.weight"),
        *_ENCODER,
        *_decoder("multihead_attn", self_norm="norm1", cross_norm="norm2"),
        ("encoder.norm.{w}", "transformer.encoder.norm.{w}"),
        ("decoder.norm.{w}", "transformer.decoder.norm.{w}"),
        *_SHARED_HEADS,
        *MASKS,
        _UNUSED,
    ],
    classes=BY_ID,
)


DETREX = DetectorFormat(
    name="detrex",
    mark="transformer.encoder.layers.0.norms.0.weight",
    deformable=[
        *neck_rules("norm"),
        ("tokenizer.level_embed", "transformer.level_embeds"),
        ("query_embed.weight", "query_embedding.weight"),
        *numbered_layer_rules("ffns.0", "attentions.0", "attentions.0.attn", "attentions.1", "transformer."),
        *query_rules("transformer."),
        *head_rules(),
        *_COPIES,
        _UNUSED,
    ],
    detr=[
        ("backbone.{x}", "backbone.body.{x}"),  # torchvision's ResNet in the DC5 models
        ("tokenizer.projections.0.0.{w}", "input_proj.{w}"),
        *numbered_layer_rules("ffns.0", "attentions.0.attn", "attentions.0.attn", "attentions.1.attn", "transformer."),
        ("encoder.norm.{w}", "transformer.encoder.post_norm_layer.{w}"),
        ("decoder.norm.{w}", "transformer.decoder.post_norm_layer.{w}"),
        *_SHARED_HEADS,
        _UNUSED,
    ],
    classes=BY_ID | CONTIGUOUS,
)


def write_official(path: str | Path, detector: nn.Module, coco_names: Sequence[str] | None = None) -> None:
    """Writes a ``.pth`` file that the official DETR or Deformable DETR can load with ``strict=True``.

    Args:
        path: output file.
        detector: detector with a ResNet backbone and batch norm.
        coco_names: class names of the detector; if given, its logits are moved to the COCO category ids.

    Raises:
        CheckpointError: if the official code does not support the model, or the names are not those of COCO.
    """
    state = portable_state(detector)
    if coco_names is not None:
        state = _to_category_ids(state, coco_names, bool(getattr(detector, "no_object", False)))
    state = OFFICIAL.export_state(state)
    # With box refinement, the decoder contains copies of the box heads; in a two-stage model, also of the class heads.
    copies = ("bbox_embed.",) * bool(getattr(detector.decoder, "box_refine", False))
    copies += ("class_embed.",) * ("transformer.enc_output.weight" in state)
    state |= {f"transformer.decoder.{key}": value for key, value in state.items() if key.startswith(copies)}
    write_atomically(path, {"model": state})


def _to_category_ids(state: State, names: Sequence[str], no_object: bool) -> State:
    """Moves the logits of contiguous COCO classes to their category ids, with unused logits in between."""
    if tuple(names) not in CONTIGUOUS.values():
        raise CheckpointError(
            "category ids require the 80 classes of COCO, or 133 panoptic ones; the detector's differ"
        )
    ids = {name: index for index, name in CATEGORIES.items()}
    rows = [ids[name] for name in names]
    count = next(logits for logits in BY_ID if logits > max(rows))
    if no_object:
        rows, count = [*rows, count], count + 1
    spread = dict(state)
    for key, value in state.items():
        if CLASS_HEAD.fullmatch(key):
            spread[key] = value.new_full((count, *value.shape[1:]), _UNUSED_BIAS if value.dim() == 1 else 0.0)
            # The first logit of a proposal is its objectness, regardless of the classes.
            spread[key][torch.tensor(range(len(value)) if key.startswith("queries.") else rows)] = value
    return spread
