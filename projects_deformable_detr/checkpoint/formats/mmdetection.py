"""Format of mmdetection 3, in which encoder, decoder and head are submodules of the detector."""

import re

from ...zoo.coco_classes import CONTIGUOUS
from .base import State
from .detector import DetectorFormat, neck_rules, numbered_layer_rules


class _MMDetectionFormat(DetectorFormat):
    def import_state(self, state: State) -> State:
        """Adds zero biases to projections that are followed by a norm, which have no bias in mmdetection."""
        state = super().import_state(state)
        weights = (key for key in state if re.fullmatch(r"tokenizer\.projections\.\d+\.0\.weight", key))
        return {key.replace("weight", "bias"): state[key].new_zeros(len(state[key])) for key in weights} | state


MMDETECTION = _MMDetectionFormat(
    name="mmdetection",
    mark="encoder.layers.0.ffn.layers.0.0.weight",
    deformable=[
        *neck_rules("gn"),
        ("tokenizer.level_embed", "level_embed"),
        ("query_embed.weight", "query_embedding.weight"),
        *numbered_layer_rules("ffn", "self_attn", "self_attn.attn", "cross_attn"),
        ("queries.reference_points.{w}", "reference_points_fc.{w}"),
        ("queries.output.{w}", "memory_trans_fc.{w}"),
        ("queries.output_norm.{w}", "memory_trans_norm.{w}"),
        ("queries.query.{w}", "pos_trans_fc.{w}"),
        ("queries.query_norm.{w}", "pos_trans_norm.{w}"),
        # One head per layer, repeated if shared, followed by the head of the proposals.
        ("decoder.class_heads.{i}.{w}", "bbox_head.cls_branches.{i}.{w}"),
        *(
            (f"decoder.box_heads.{{i}}.layers.{n}.{{w}}", f"bbox_head.reg_branches.{{i}}.{2 * n}.{{w}}")
            for n in range(3)
        ),
    ],
    detr=[
        ("tokenizer.projections.0.0.{w}", "neck.convs.0.conv.{w}"),
        ("query_embed.weight", "query_embedding.weight"),
        *numbered_layer_rules("ffn", "self_attn.attn", "self_attn.attn", "cross_attn.attn"),
        ("decoder.norm.{w}", "decoder.post_norm.{w}"),
        ("decoder.class_heads.0.{w}", "bbox_head.fc_cls.{w}"),
        ("decoder.box_heads.0.layers.0.{w}", "bbox_head.reg_ffn.layers.0.0.{w}"),
        ("decoder.box_heads.0.layers.1.{w}", "bbox_head.reg_ffn.layers.1.{w}"),
        ("decoder.box_heads.0.layers.2.{w}", "bbox_head.fc_reg.{w}"),
    ],
    classes=CONTIGUOUS,
)
