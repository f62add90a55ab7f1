"""Keys of the official repositories, written by hand, and of detrex, derived from them as by its converter.

The official code loaded files of `write_official` outside of the tests, see docs/checkpoints.md.
"""

import argparse
import re

import pytest
import torch

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import (
    CheckpointError,
    LoadOptions,
    import_state,
    load_weights,
    read_weights,
    write_official,
)

DEFORMABLE = ["single_scale", "single_scale_dc5", "multi_scale", "box_refine", "two_stage"]
DETR = ["detr", "detr_pre_norm", "detr_masks"]
MASKS = {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8}

BODY = "backbone.0.body."

# Keys of one layer and around the layers in published files: Deformable DETR …
DEFORMABLE_KEYS = """
backbone.0.body.conv1.weight backbone.0.body.bn1.running_var backbone.0.body.layer2.0.downsample.0.weight
input_proj.0.0.weight input_proj.0.1.bias transformer.level_embed
transformer.encoder.layers.0.self_attn.sampling_offsets.weight
transformer.encoder.layers.0.self_attn.attention_weights.bias transformer.encoder.layers.0.self_attn.value_proj.weight
transformer.encoder.layers.0.self_attn.output_proj.bias transformer.encoder.layers.0.norm1.weight
transformer.encoder.layers.0.norm2.weight transformer.encoder.layers.0.linear1.weight
transformer.encoder.layers.0.linear2.bias transformer.decoder.layers.1.self_attn.in_proj_weight
transformer.decoder.layers.1.self_attn.in_proj_bias transformer.decoder.layers.1.self_attn.out_proj.weight
transformer.decoder.layers.1.cross_attn.sampling_offsets.bias transformer.decoder.layers.1.norm1.weight
transformer.decoder.layers.1.norm2.bias transformer.decoder.layers.1.norm3.weight
transformer.decoder.layers.1.linear1.bias transformer.decoder.layers.1.linear2.weight
class_embed.0.weight class_embed.2.bias bbox_embed.0.layers.0.weight bbox_embed.2.layers.2.bias
"""
# … and DETR.
DETR_KEYS = """
backbone.0.body.conv1.weight backbone.0.body.layer4.1.bn2.bias input_proj.weight input_proj.bias query_embed.weight
transformer.encoder.layers.1.self_attn.in_proj_weight transformer.encoder.layers.1.self_attn.out_proj.bias
transformer.encoder.layers.1.norm1.weight transformer.encoder.layers.1.norm2.bias
transformer.encoder.layers.1.linear1.weight transformer.decoder.layers.2.multihead_attn.in_proj_bias
transformer.decoder.layers.2.multihead_attn.out_proj.weight transformer.decoder.layers.2.self_attn.in_proj_weight
transformer.decoder.layers.2.norm1.bias transformer.decoder.layers.2.norm2.weight
transformer.decoder.layers.2.norm3.weight transformer.decoder.layers.2.linear2.weight transformer.decoder.norm.weight
class_embed.weight class_embed.bias bbox_embed.layers.0.weight bbox_embed.layers.2.bias
"""
TWO_STAGE_KEYS = """
transformer.enc_output.weight transformer.enc_output_norm.bias transformer.pos_trans.weight
transformer.pos_trans_norm.weight class_embed.3.weight bbox_embed.3.layers.1.weight
transformer.decoder.class_embed.3.weight transformer.decoder.bbox_embed.3.layers.1.weight
"""
MASK_KEYS = """
bbox_attention.q_linear.weight bbox_attention.k_linear.bias mask_head.lay1.weight mask_head.gn1.bias
mask_head.lay2.weight mask_head.lay5.bias mask_head.gn5.weight mask_head.adapter1.weight mask_head.adapter3.bias
mask_head.out_lay.weight
"""
EXTRA_KEYS = {
    "single_scale": ["query_embed.weight", "transformer.reference_points.weight"],
    "multi_scale": ["input_proj.3.0.weight"],
    "box_refine": ["transformer.decoder.bbox_embed.2.layers.2.bias", "query_embed.weight"],
    "two_stage": TWO_STAGE_KEYS.split(),
    "detr_pre_norm": ["transformer.encoder.norm.weight", "backbone.1.row_embed.weight", "backbone.1.col_embed.weight"],
}


def write(path, state):
    """Writes a file with arguments, like the official code."""
    torch.save({"model": state, "epoch": 49, "args": argparse.Namespace(lr=2e-4)}, path)
    return path


@pytest.fixture
def make_pair(make_cfg, shake, tmp_path):
    """Makes a detector, its official state dict, and another detector to load into."""

    def make(variant, **changes):
        cfg = make_cfg("detr", **MASKS) if variant == "detr_masks" else make_cfg(variant, **changes)
        detector = shake(build_detector(cfg))
        write_official(tmp_path / "official.pth", detector)
        return detector, read_weights(tmp_path / "official.pth").state, build_detector(cfg)

    return make


@pytest.mark.parametrize("variant", DEFORMABLE + DETR)
def test_a_round_trip_is_exact(make_pair, check_same, tmp_path, variant):
    detector, state, other = make_pair(variant)
    wanted = DETR_KEYS if variant in DETR else DEFORMABLE_KEYS
    below = "detr." if variant == "detr_masks" else ""
    for key in wanted.split() + EXTRA_KEYS.get(variant, []):
        assert f"{below}{key}" in state, key
    assert below == "" or set(MASK_KEYS.split()) <= state.keys()
    assert not set(state) & set(detector.state_dict())
    assert import_state(state)[0].name == "official"
    assert load_weights(other, write(tmp_path / "official.pth", state)).format == "official"
    check_same(other, detector)


def test_norms_are_assigned_by_position(make_pair):
    """The official decoders number them differently."""
    detector, state, _ = make_pair("multi_scale")
    layer = detector.decoder.layers[1]
    assert torch.equal(state["transformer.decoder.layers.1.norm2.weight"], layer.self_norm.weight)
    assert torch.equal(state["transformer.decoder.layers.1.norm1.weight"], layer.cross_norm.weight)
    detector, state, _ = make_pair("detr")
    layer = detector.decoder.layers[1]
    assert torch.equal(state["transformer.decoder.layers.1.norm1.weight"], layer.self_norm.weight)
    assert torch.equal(state["transformer.decoder.layers.1.norm2.weight"], layer.cross_norm.weight)


def test_queries_are_position_then_content(make_pair):
    detector, state, _ = make_pair("multi_scale")
    expected = torch.cat((detector.queries.position, detector.queries.content), dim=1)
    assert torch.equal(state["query_embed.weight"], expected)


@pytest.mark.parametrize("variant", ["multi_scale", "detr"])
def test_an_unknown_key_is_reported(make_pair, tmp_path, variant):
    _, state, other = make_pair(variant)
    path = write(tmp_path / "official.pth", state | {"transformer.decoder.extra.weight": torch.zeros(1)})
    report = load_weights(other, path, LoadOptions(allow_partial=True))
    assert report.unexpected == ("transformer.decoder.extra.weight",)
    with pytest.raises(CheckpointError, match=r"unexpected in the file \(1\): transformer\.decoder\.extra\.weight"):
        load_weights(other, path)


def test_detectron2_wrapper_of_detr(make_pair, check_same, detectron2_name, tmp_path):
    """Its detector is ``detr``, with Detectron2's ResNet."""
    detector, state, other = make_pair("detr")
    renamed = {f"detr.{detectron2_name(key, BODY, 'backbone.0.backbone.')}": value for key, value in state.items()}
    assert "detr.backbone.0.backbone.res3.0.shortcut.norm.running_mean" in renamed
    path = write(tmp_path / "wrapped.pth", renamed | {"criterion.empty_weight": torch.ones(6)})
    assert load_weights(other, path).format == "official"
    check_same(other, detector)


def detrex_name(key, deformable):
    """Renames a key of the official code to detrex's."""
    if key.startswith("input_proj.") and deformable:
        level, part, tail = key.split(".")[1:]
        place = f"convs.{level}" if int(level) < 3 else f"extra_convs.{int(level) - 3}"
        return f"neck.{place}.{'conv' if part == '0' else 'norm'}.{tail}"
    key = key.replace("linear1", "ffns.0.layers.0.0").replace("linear2", "ffns.0.layers.1")
    key = key.replace("decoder.norm", "decoder.post_norm_layer")
    if deformable:
        key = key.replace("level_embed", "level_embeds").replace("query_embed", "query_embedding")
    norms = {"norm1": "norms.1", "norm2": "norms.0", "norm3": "norms.2"}
    if "encoder" in key or not deformable:
        norms = {"norm1": "norms.0", "norm2": "norms.1", "norm3": "norms.2"}
    key = re.sub(r"\bnorm[123]\b", lambda match: norms[match[0]], key)
    plain = "attentions.0" if "encoder" in key and deformable else "attentions.0.attn"
    key = key.replace("self_attn", plain).replace("multihead_attn", "attentions.1.attn")
    return key.replace("cross_attn", "attentions.1")


@pytest.mark.parametrize("variant", ["multi_scale", "box_refine", "two_stage", "detr"])
def test_detrex_files_load(make_pair, check_same, detectron2_name, tmp_path, variant):
    detector, state, other = make_pair(variant)
    named = {detectron2_name(key, BODY, "backbone."): value for key, value in state.items()}
    renamed = {detrex_name(key, variant != "detr"): value for key, value in named.items()}
    renamed["criterion.empty_weight"] = torch.ones(6)
    assert import_state(renamed)[0].name == "detrex"
    assert load_weights(other, write(tmp_path / "detrex.pth", renamed)).format == "detrex"
    check_same(other, detector)


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("encoder_only", {}, "support encoder-only models"),
        ("multi_scale", {"NORM": "GN"}, "ResNet with batch norm"),
    ],
)
def test_models_that_the_official_code_lacks_are_rejected(make_cfg, tmp_path, variant, changes, message):
    with pytest.raises(CheckpointError, match=message):
        write_official(tmp_path / "official.pth", build_detector(make_cfg(variant, **changes)))
    assert not (tmp_path / "official.pth").exists()


def test_dilated_detr_of_detrex_has_the_torchvision_backbone(make_pair, check_same, tmp_path):
    detector, state, other = make_pair("detr")
    renamed = {
        detrex_name(key.replace(BODY, "backbone.body."), deformable=False): value for key, value in state.items()
    }
    assert "backbone.body.layer1.0.bn1.weight" in renamed
    assert load_weights(other, write(tmp_path / "detrex.pth", renamed)).format == "detrex"
    check_same(other, detector)
