"""Names in Hugging Face's DETR and Deformable DETR: those of the published files, and those of transformers 5.

The published names come first, and are what is written: every version of transformers reads them.
"""

from . import official
from .names import NameTable, Rule
from .official import layer_rules

_ENCODER = {"norm": "self_attn_layer_norm", "ffn.norm": "final_layer_norm"}
_DECODER = {
    "self_norm": "self_attn_layer_norm",
    "cross_norm": "encoder_attn_layer_norm",
    "ffn.norm": "final_layer_norm",
}
_FFN = [{"ffn.linear1": f"{prefix}fc1", "ffn.linear2": f"{prefix}fc2"} for prefix in ("", "mlp.")]


def _attention(stack: str, ours: str, theirs: str) -> list[Rule]:
    """Projections apart, where PyTorch's attention has them stacked: `layout.stack_projections`."""
    ours, theirs = f"{stack}.layers.{{i}}.{ours}", f"model.{stack}.layers.{{i}}.{theirs}"
    rules = [(f"{ours}.out_proj.{{w}}", f"{theirs}.{name}.{{w}}") for name in ("out_proj", "o_proj")]
    return rules + [(f"{ours}.in_proj_{{w}}.{part}", f"{theirs}.{part}_proj.{{w}}") for part in "qkv"]


_COMMON: list[Rule] = [
    ("backbone.{x}", "model.backbone.conv_encoder.model.{x}"),
    ("backbone.{x}", "model.backbone.model.{x}"),
    ("query_embed.weight", "model.query_position_embeddings.weight"),
    ("tokenizer.position_embedding.row", "model.position_embedding.row_embeddings.weight"),
    ("tokenizer.position_embedding.column", "model.position_embedding.column_embeddings.weight"),
    ("tokenizer.position_embedding.row", "model.backbone.position_embedding.row_embeddings.weight"),
    ("tokenizer.position_embedding.column", "model.backbone.position_embedding.column_embeddings.weight"),
    *layer_rules("encoder", _ENCODER, "model."),
    *layer_rules("decoder", _DECODER, "model."),
    *(rule for ffn in _FFN for stack in ("encoder", "decoder") for rule in layer_rules(stack, ffn, "model.")),
    *_attention("decoder", "self_attn", "self_attn"),
]

DEFORMABLE_DETR = NameTable(
    [
        *_COMMON,
        ("tokenizer.projections.{i}.{j}.{w}", "model.input_proj.{i}.{j}.{w}"),
        ("tokenizer.level_embed", "model.level_embed"),
        *layer_rules("encoder", {"self_attn": "self_attn"}, "model."),
        *layer_rules("decoder", {"cross_attn": "encoder_attn"}, "model."),
        ("queries.reference_points.{w}", "model.reference_points.{w}"),
        ("queries.output.{w}", "model.enc_output.{w}"),
        ("queries.output_norm.{w}", "model.enc_output_norm.{w}"),
        ("queries.query.{w}", "model.pos_trans.{w}"),
        ("queries.query_norm.{w}", "model.pos_trans_norm.{w}"),
        ("decoder.class_heads.{i}.{w}", "class_embed.{i}.{w}"),
        ("decoder.box_heads.{i}.layers.{j}.{w}", "bbox_embed.{i}.layers.{j}.{w}"),
        # Refining models tie the heads to the decoder's; a saved file has one of the two names only.
        ("decoder.class_heads.{i}.{w}", "model.decoder.class_embed.{i}.{w}"),
        ("decoder.box_heads.{i}.layers.{j}.{w}", "model.decoder.bbox_embed.{i}.layers.{j}.{w}"),
    ]
)

# Published as the official ones; transformers 5 names the parts by what they do.
_CONVOLUTIONS = ("conv1", "conv2", "fpn_stages.0.refine", "fpn_stages.1.refine", "fpn_stages.2.refine")
MASKS: list[Rule] = [
    *official.MASKS,
    ("mask_head.attention.query.{w}", "bbox_attention.q_proj.{w}"),
    ("mask_head.attention.key.{w}", "bbox_attention.k_proj.{w}"),
    *((f"mask_head.convs.{index}.0.{{w}}", f"mask_head.{name}.conv.{{w}}") for index, name in enumerate(_CONVOLUTIONS)),
    *((f"mask_head.convs.{index}.1.{{w}}", f"mask_head.{name}.norm.{{w}}") for index, name in enumerate(_CONVOLUTIONS)),
    *((f"mask_head.adapters.{index}.{{w}}", f"mask_head.fpn_stages.{index}.fpn_adapter.{{w}}") for index in range(3)),
    ("mask_head.output.{w}", "mask_head.output_conv.{w}"),
]

DETR = NameTable(
    [
        *_COMMON,
        ("tokenizer.projections.0.0.{w}", "model.input_projection.{w}"),
        *_attention("encoder", "self_attn", "self_attn"),
        *_attention("decoder", "cross_attn", "encoder_attn"),
        ("encoder.norm.{w}", "model.encoder.layernorm.{w}"),
        ("decoder.norm.{w}", "model.decoder.layernorm.{w}"),
        ("decoder.class_heads.0.{w}", "class_labels_classifier.{w}"),
        ("decoder.box_heads.0.layers.{i}.{w}", "bbox_predictor.layers.{i}.{w}"),
        *MASKS,
    ]
)
