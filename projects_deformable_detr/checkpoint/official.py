"""Names in the official repositories of DETR and Deformable DETR, and in detrex, which follows them.

The two official transformers number their norms differently: Deformable DETR's decoder layer runs its norm2 first,
after self-attention, and its norm1 after cross-attention.
"""

from .names import DROPPED, NameTable, Rule

_ENCODER = {"self_attn": "self_attn", "norm": "norm1", "ffn.norm": "norm2"}
_FFN = {"ffn.linear1": "linear1", "ffn.linear2": "linear2"}
_DETR_DECODER = {"self_norm": "norm1", "cross_attn": "multihead_attn", "cross_norm": "norm2"}
_DEFORMABLE_DECODER = {"self_norm": "norm2", "cross_attn": "cross_attn", "cross_norm": "norm1"}


def layer_rules(stack: str, parts: dict[str, str], prefix: str) -> list[Rule]:
    """Rules for the layers of ``"encoder"`` or ``"decoder"``: ``parts`` of a layer, ours to theirs."""
    return [
        (f"{stack}.layers.{{i}}.{ours}.{{x}}", f"{prefix}{stack}.layers.{{i}}.{theirs}.{{x}}")
        for ours, theirs in parts.items()
    ]


def _official_layers(decoder: dict[str, str]) -> list[Rule]:
    rules = layer_rules("encoder", _ENCODER | _FFN, "transformer.")
    decoder = {"self_attn": "self_attn", "ffn.norm": "norm3"} | decoder | _FFN
    return rules + layer_rules("decoder", decoder, "transformer.")


# Two-stage queries, in each of the three.
_PROPOSALS: list[Rule] = [
    ("queries.reference_points.{w}", "transformer.reference_points.{w}"),
    ("queries.output.{w}", "transformer.enc_output.{w}"),
    ("queries.output_norm.{w}", "transformer.enc_output_norm.{w}"),
    ("queries.query.{w}", "transformer.pos_trans.{w}"),
    ("queries.query_norm.{w}", "transformer.pos_trans_norm.{w}"),
]
_HEADS: list[Rule] = [
    ("decoder.class_heads.{i}.{w}", "class_embed.{i}.{w}"),
    ("decoder.box_heads.{i}.layers.{j}.{w}", "bbox_embed.{i}.layers.{j}.{w}"),
    # The decoder, and with it the transformer, holds the same heads once more.
    (DROPPED, "transformer.decoder.class_embed.{x}"),
    (DROPPED, "transformer.decoder.bbox_embed.{x}"),
]
_SHARED_HEADS: list[Rule] = [
    ("decoder.class_heads.0.{w}", "class_embed.{w}"),
    ("decoder.box_heads.0.layers.{i}.{w}", "bbox_embed.layers.{i}.{w}"),
]
# The mask head of DETR's panoptic models, where the rest is below ``detr.``.
MASKS: list[Rule] = [
    ("mask_head.attention.query.{w}", "bbox_attention.q_linear.{w}"),
    ("mask_head.attention.key.{w}", "bbox_attention.k_linear.{w}"),
    *((f"mask_head.convs.{index}.0.{{w}}", f"mask_head.lay{index + 1}.{{w}}") for index in range(5)),
    *((f"mask_head.convs.{index}.1.{{w}}", f"mask_head.gn{index + 1}.{{w}}") for index in range(5)),
    *((f"mask_head.adapters.{index}.{{w}}", f"mask_head.adapter{index + 1}.{{w}}") for index in range(3)),
    ("mask_head.output.{w}", "mask_head.out_lay.{w}"),
]

DEFORMABLE_DETR = NameTable(
    [
        ("backbone.{x}", "backbone.0.body.{x}"),
        ("tokenizer.projections.{i}.{j}.{w}", "input_proj.{i}.{j}.{w}"),
        ("tokenizer.level_embed", "transformer.level_embed"),
        ("query_embed.weight", "query_embed.weight"),
        *_official_layers(_DEFORMABLE_DECODER),
        *_PROPOSALS,
        *_HEADS,
    ]
)
DETR = NameTable(
    [
        ("backbone.{x}", "backbone.0.body.{x}"),
        ("backbone.{x}", "backbone.0.backbone.{x}"),  # its Detectron2 wrapper
        ("tokenizer.position_embedding.row", "backbone.1.row_embed.weight"),
        ("tokenizer.position_embedding.column", "backbone.1.col_embed.weight"),
        ("tokenizer.projections.0.0.{w}", "input_proj.{w}"),
        ("query_embed.weight", "query_embed.weight"),
        *_official_layers(_DETR_DECODER),
        ("encoder.norm.{w}", "transformer.encoder.norm.{w}"),
        ("decoder.norm.{w}", "transformer.decoder.norm.{w}"),
        *_SHARED_HEADS,
        *MASKS,
        (DROPPED, "criterion.empty_weight"),
    ]
)


def _detrex_layers(self_attention: str, cross_attention: str) -> list[Rule]:
    """Lists of attentions, norms and feed-forward networks, in the order in which they run."""
    ffn = {"ffn.linear1": "ffns.0.layers.0.0", "ffn.linear2": "ffns.0.layers.1"}
    encoder = {"self_attn": self_attention, "norm": "norms.0", "ffn.norm": "norms.1"}
    decoder = {"self_attn": "attentions.0.attn", "self_norm": "norms.0", "cross_attn": cross_attention}
    decoder |= {"cross_norm": "norms.1", "ffn.norm": "norms.2"}
    return layer_rules("encoder", encoder | ffn, "transformer.") + layer_rules("decoder", decoder | ffn, "transformer.")


DETREX_DEFORMABLE_DETR = NameTable(
    [
        ("tokenizer.projections.{i}.0.{w}", "neck.convs.{i}.conv.{w}"),
        ("tokenizer.projections.{i}.1.{w}", "neck.convs.{i}.norm.{w}"),
        # Counted on from the others by `layout.number_extra_levels`.
        ("tokenizer.extra.{i}.0.{w}", "neck.extra_convs.{i}.conv.{w}"),
        ("tokenizer.extra.{i}.1.{w}", "neck.extra_convs.{i}.norm.{w}"),
        ("tokenizer.level_embed", "transformer.level_embeds"),
        ("query_embed.weight", "query_embedding.weight"),
        *_detrex_layers("attentions.0", "attentions.1"),
        *_PROPOSALS,
        *_HEADS,
        (DROPPED, "criterion.empty_weight"),
    ]
)
DETREX_DETR = NameTable(
    [
        ("backbone.{x}", "backbone.body.{x}"),  # the DC5 models' torchvision backbone
        ("tokenizer.projections.0.0.{w}", "input_proj.{w}"),
        *_detrex_layers("attentions.0.attn", "attentions.1.attn"),
        ("encoder.norm.{w}", "transformer.encoder.post_norm_layer.{w}"),
        ("decoder.norm.{w}", "transformer.decoder.post_norm_layer.{w}"),
        *_SHARED_HEADS,
        (DROPPED, "criterion.empty_weight"),
    ]
)
