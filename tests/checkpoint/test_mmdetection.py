"""Keys of mmdetection 3, written by hand from the ``state_dict`` of its models.

Outputs were compared with its models outside of the tests, see docs/checkpoints.md.
"""

import argparse
import re
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import (
    CheckpointError,
    LoadOptions,
    import_state,
    load_weights,
    read_weights,
)

# Keys of the multi-scale model: all outside the layers, and those of one layer of each stack.
DEFORMABLE_KEYS = """
level_embed query_embedding.weight reference_points_fc.weight reference_points_fc.bias
neck.convs.0.conv.weight neck.convs.0.gn.weight neck.convs.0.gn.bias neck.convs.2.conv.weight
neck.extra_convs.0.conv.weight neck.extra_convs.0.gn.weight neck.extra_convs.0.gn.bias
backbone.conv1.weight backbone.bn1.running_mean backbone.layer2.0.downsample.0.weight backbone.layer2.0.bn1.bias
bbox_head.cls_branches.0.weight bbox_head.cls_branches.2.bias bbox_head.reg_branches.0.0.weight
bbox_head.reg_branches.0.2.bias bbox_head.reg_branches.2.4.weight
encoder.layers.0.self_attn.sampling_offsets.weight encoder.layers.0.self_attn.attention_weights.bias
encoder.layers.0.self_attn.value_proj.weight encoder.layers.0.self_attn.output_proj.bias
encoder.layers.0.ffn.layers.0.0.weight encoder.layers.0.ffn.layers.1.bias encoder.layers.0.norms.0.weight
encoder.layers.0.norms.1.bias decoder.layers.0.self_attn.attn.in_proj_weight
decoder.layers.0.self_attn.attn.out_proj.bias decoder.layers.0.cross_attn.sampling_offsets.bias
decoder.layers.0.cross_attn.output_proj.weight decoder.layers.0.ffn.layers.0.0.bias
decoder.layers.0.ffn.layers.1.weight decoder.layers.0.norms.0.weight decoder.layers.0.norms.1.bias
decoder.layers.0.norms.2.weight
"""
TWO_STAGE_KEYS = """
memory_trans_fc.weight memory_trans_norm.bias pos_trans_fc.bias pos_trans_norm.weight
bbox_head.cls_branches.3.weight bbox_head.reg_branches.3.4.bias
"""
DETR_KEYS = """
query_embedding.weight neck.convs.0.conv.weight neck.convs.0.conv.bias decoder.post_norm.weight decoder.post_norm.bias
bbox_head.fc_cls.weight bbox_head.reg_ffn.layers.0.0.weight bbox_head.reg_ffn.layers.1.bias bbox_head.fc_reg.weight
encoder.layers.0.self_attn.attn.in_proj_weight encoder.layers.0.self_attn.attn.out_proj.bias
encoder.layers.0.norms.1.weight decoder.layers.0.cross_attn.attn.in_proj_bias
decoder.layers.0.self_attn.attn.out_proj.weight decoder.layers.0.norms.2.bias
"""
KEYS = {
    "multi_scale": DEFORMABLE_KEYS,
    "box_refine": DEFORMABLE_KEYS,
    "two_stage": " ".join(set(DEFORMABLE_KEYS.split()) - {"query_embedding.weight"} | set(TWO_STAGE_KEYS.split())),
    "detr": DETR_KEYS,
}
KEYS["two_stage"] = re.sub(r"reference_points_fc\.\w+", "", KEYS["two_stage"])
NAMES = [
    (r"queries\.class_head\.", "bbox_head.cls_branches.3."),
    (r"queries\.box_head\.", "decoder.box_heads.3."),
    (r"decoder\.class_heads\.(\d)\.", r"bbox_head.cls_branches.\1."),
    (
        r"decoder\.box_heads\.(\d)\.layers\.(\d)\.",
        lambda match: f"bbox_head.reg_branches.{match[1]}.{2 * int(match[2])}.",
    ),
    (r"tokenizer\.level_embed", "level_embed"),
    (r"queries\.reference_points\.", "reference_points_fc."),
    (r"queries\.output\.", "memory_trans_fc."),
    (r"queries\.output_norm\.", "memory_trans_norm."),
    (r"queries\.query\.", "pos_trans_fc."),
    (r"queries\.query_norm\.", "pos_trans_norm."),
    (r"ffn\.linear1\.", "ffn.layers.0.0."),
    (r"ffn\.linear2\.", "ffn.layers.1."),
    (r"(encoder\.layers\.\d)\.ffn\.norm\.", r"\1.norms.1."),
    (r"(decoder\.layers\.\d)\.ffn\.norm\.", r"\1.norms.2."),
    (r"\.norm\.(weight|bias)", r".norms.0.\1"),
    (r"\.self_norm\.", ".norms.0."),
    (r"\.cross_norm\.", ".norms.1."),
    (r"_attn\.(in_proj_|out_proj\.)", r"_attn.attn.\1"),
]
DETR_NAMES = [
    (r"tokenizer\.projections\.0\.0\.", "neck.convs.0.conv."),
    (r"queries\.position", "query_embedding.weight"),
    (r"decoder\.norm\.", "decoder.post_norm."),
    (r"decoder\.class_heads\.0\.", "bbox_head.fc_cls."),
    (r"decoder\.box_heads\.0\.layers\.0\.", "bbox_head.reg_ffn.layers.0.0."),
    (r"decoder\.box_heads\.0\.layers\.1\.", "bbox_head.reg_ffn.layers.1."),
    (r"decoder\.box_heads\.0\.layers\.2\.", "bbox_head.fc_reg."),
]


def level_name(match):
    level, part = int(match[1]), "gn" if match[2] == "1" else "conv"
    return f"neck.convs.{level}.{part}." if level < 3 else f"neck.extra_convs.{level - 3}.{part}."


def mmdetection_state(detector, variant):
    """Returns the weights in mmdetection's layout: no bias before a norm, one head per layer, joined queries."""
    state, detr = dict(detector.state_dict()), variant == "detr"
    if not detr:
        for level in range(4):
            assert not state.pop(f"tokenizer.projections.{level}.0.bias").any()
    if "queries.content" in state:
        parts = [state.pop(key) for key in ("queries.position", "queries.content")]
        state["query_embedding.weight"] = torch.cat(parts, dim=1)
    if variant == "multi_scale":
        for key, value in list(state.items()):
            match = re.fullmatch(r"(decoder\.(?:class|box)_heads)\.0\.(.+)", key)
            if match:
                state |= {f"{match[1]}.{layer}.{match[2]}": value for layer in (1, 2)}
    named = {}
    for key, value in state.items():
        for pattern, target in (
            DETR_NAMES if detr else [(r"tokenizer\.projections\.(\d)\.(\d)\.", level_name)]
        ) + NAMES:
            key = re.sub(pattern, target, key) if not key.startswith("backbone.") else key
        named[key] = value
    return named


@pytest.fixture
def make_pair(make_cfg, shake):
    """Makes a detector, its weights with mmdetection's names, and another detector to load into."""

    def make(variant, **changes):
        cfg = make_cfg(variant, **changes)
        detector = shake(build_detector(cfg))
        if variant != "detr":
            for projection in detector.tokenizer.projections:
                torch.nn.init.zeros_(projection[0].bias)
        return detector, mmdetection_state(detector, variant), build_detector(cfg)

    return make


def write(path, state, **beside):
    torch.save({"meta": {"epoch": 50, "cfg": "model = 1", **beside}, "state_dict": OrderedDict(state)}, path)
    return path


@pytest.mark.parametrize("variant", KEYS)
def test_every_tensor_is_filled(make_pair, check_same, tmp_path, variant):
    detector, state, other = make_pair(variant)
    assert set(KEYS[variant].split()) <= state.keys()
    assert not any("tokenizer" in key or "queries." in key or "_heads." in key for key in state)
    assert import_state(state)[0].name == "mmdetection"
    report = load_weights(other, write(tmp_path / "mmdetection.pth", state), LoadOptions(for_evaluation=True))
    assert (report.format, report.missing, report.unexpected, report.mismatched) == ("mmdetection", (), (), ())
    check_same(other, detector)


def test_an_unknown_key_is_reported(make_pair, tmp_path):
    _, state, other = make_pair("multi_scale")
    path = write(tmp_path / "mmdetection.pth", state | {"dn_query_generator.label_embedding.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"unexpected in the file \(1\): dn_query_generator"):
        load_weights(other, path)


@pytest.mark.parametrize("place", ["classes", "CLASSES"])
def test_class_names_are_read(make_pair, tmp_path, place):
    """Classes in another order are mapped by name."""
    detector, state, other = make_pair("multi_scale")
    names = ("ant", "bee", "cat", "dog", "eel")
    path = write(tmp_path / "mmdetection.pth", state, dataset_meta={place: names, "palette": [(1, 2, 3)]})
    assert read_weights(path).class_names == names
    report = load_weights(other, path, LoadOptions(class_names=names[::-1]))
    assert report.classes.action == "mapped"
    assert torch.equal(other.decoder.class_heads[0].weight, detector.decoder.class_heads[0].weight.flip(0))


@pytest.mark.parametrize(("variant", "logits"), [("multi_scale", 80), ("detr", 81)])
def test_80_classes_are_those_of_coco(make_pair, tmp_path, variant, logits):
    _, state, other = make_pair(variant, NUM_CLASSES=80)
    heads = [key for key in state if "cls_branches" in key or "fc_cls" in key]
    assert heads and all(len(state[key]) == logits for key in heads)
    path = write(tmp_path / "mmdetection.pth", state)
    names = ("cat", "dog", *(f"thing {number}" for number in range(78)))
    report = load_weights(other, path, LoadOptions(class_names=names))
    assert report.classes.action == "mapped" and len(report.classes.new) == 78


class HistoryBuffer:
    """Pickled like mmengine's: arrays, and its own methods by name."""

    def __init__(self):
        self._log_history, self._count_history = np.array([1.5, np.float64(2.5)]), np.array([1, 1])
        self._statistics_methods = {"mean": self.mean}

    def mean(self):
        """A method that the pickle refers to."""


def test_a_training_checkpoint_with_its_log(make_pair, monkeypatch, tmp_path):
    """Names in the log's pickle are not imported."""
    monkeypatch.setattr(HistoryBuffer, "__module__", "mmengine.logging.history_buffer")
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    _, state, _ = make_pair("multi_scale")
    path = tmp_path / "epoch_50.pth"
    torch.save({"state_dict": state, "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}}}, path)
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    before = torch.serialization.get_safe_globals()
    assert read_weights(path).state.keys() == state.keys()
    assert "mmengine" not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_code_next_to_the_log_is_rejected(tmp_path):
    """Substitutes for the log's classes do not permit other names."""

    class RunsCode:
        def __reduce__(self):
            return eval, ("1 + 1",)

    torch.save(
        {"state_dict": {"weight": torch.zeros(1)}, "args": argparse.Namespace(code=RunsCode())}, tmp_path / "x.pth"
    )
    with pytest.raises(CheckpointError, match="without running code"):
        read_weights(tmp_path / "x.pth")
