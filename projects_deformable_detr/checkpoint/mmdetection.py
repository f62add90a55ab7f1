"""Names in mmdetection 3's DETR and Deformable DETR, whose detectors have encoder, decoder and head side by side.

Its necks have convolutions without a bias where a norm follows: `layout.add_biases`.
"""

from .names import NameTable, Rule
from .official import layer_rules

_FFN = {"ffn.linear1": "ffn.layers.0.0", "ffn.linear2": "ffn.layers.1"}
_NORMS = {"self_norm": "norms.0", "cross_norm": "norms.1", "ffn.norm": "norms.2"}


def _layers(self_attention: str, cross_attention: str) -> list[Rule]:
    """PyTorch's attention lies one level deeper than the deformable one."""
    encoder = {"self_attn": self_attention, "norm": "norms.0", "ffn.norm": "norms.1"}
    decoder = {"self_attn": "self_attn.attn", "cross_attn": cross_attention} | _NORMS
    return layer_rules("encoder", encoder | _FFN, "") + layer_rules("decoder", decoder | _FFN, "")


DEFORMABLE_DETR = NameTable(
    [
        ("tokenizer.projections.{i}.0.{w}", "neck.convs.{i}.conv.{w}"),
        ("tokenizer.projections.{i}.1.{w}", "neck.convs.{i}.gn.{w}"),
        # Counted on from the others by `layout.number_extra_levels`.
        ("tokenizer.extra.{i}.0.{w}", "neck.extra_convs.{i}.conv.{w}"),
        ("tokenizer.extra.{i}.1.{w}", "neck.extra_convs.{i}.gn.{w}"),
        ("tokenizer.level_embed", "level_embed"),
        ("query_embed.weight", "query_embedding.weight"),
        *_layers("self_attn", "cross_attn"),
        ("queries.reference_points.{w}", "reference_points_fc.{w}"),
        ("queries.output.{w}", "memory_trans_fc.{w}"),
        ("queries.output_norm.{w}", "memory_trans_norm.{w}"),
        ("queries.query.{w}", "pos_trans_fc.{w}"),
        ("queries.query_norm.{w}", "pos_trans_norm.{w}"),
        # A head for each layer, the same one again where layers share it, and after them that of the proposals.
        ("decoder.class_heads.{i}.{w}", "bbox_head.cls_branches.{i}.{w}"),
        *(
            (f"decoder.box_heads.{{i}}.layers.{n}.{{w}}", f"bbox_head.reg_branches.{{i}}.{2 * n}.{{w}}")
            for n in range(3)
        ),
    ]
)
DETR = NameTable(
    [
        ("tokenizer.projections.0.0.{w}", "neck.convs.0.conv.{w}"),
        ("query_embed.weight", "query_embedding.weight"),
        *_layers("self_attn.attn", "cross_attn.attn"),
        ("decoder.norm.{w}", "decoder.post_norm.{w}"),
        ("decoder.class_heads.0.{w}", "bbox_head.fc_cls.{w}"),
        ("decoder.box_heads.0.layers.0.{w}", "bbox_head.reg_ffn.layers.0.0.{w}"),
        ("decoder.box_heads.0.layers.1.{w}", "bbox_head.reg_ffn.layers.1.{w}"),
        ("decoder.box_heads.0.layers.2.{w}", "bbox_head.fc_reg.{w}"),
    ]
)
