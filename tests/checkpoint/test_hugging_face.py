"""Folders for transformers and from transformers: equal outputs, and the same weights after a round trip."""

import json

import pytest
import torch

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import CheckpointError, LoadOptions, load_weights, read_weights
from projects_deformable_detr.checkpoint.export import write_hugging_face
from projects_deformable_detr.modeling import batch_images

transformers = pytest.importorskip("transformers", reason="transformers reads and writes these files")

VARIANTS = ["single_scale", "multi_scale", "box_refine", "two_stage", "detr", "detr_learned"]
CLASSES = {
    "DetrForObjectDetection": transformers.DetrForObjectDetection,
    "DeformableDetrForObjectDetection": transformers.DeformableDetrForObjectDetection,
}


@pytest.fixture
def make_detector(make_cfg):
    """A detector in which every tensor matters, and its config."""

    def make(variant):
        changes = {}
        if variant == "detr_learned":
            variant, changes = "detr", {"POSITION_EMBEDDING": "learned"}
        cfg = make_cfg(variant, **changes)
        detector = build_detector(cfg).eval()
        shake(detector)
        return detector, cfg

    return make


def shake(detector):
    for name, tensor in detector.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape), alpha=0.02 if name.startswith("backbone") else 0.1)


def theirs_in(folder):
    """The model of a folder, loaded as transformers' users do."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = CLASSES[architecture].from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def check_equal_outputs(detector, theirs):
    images, mask = batch_images([torch.randn(3, 96, 128), torch.randn(3, 128, 64)])
    with torch.no_grad():
        ours = detector(images, mask)
        other = theirs(pixel_values=images, pixel_mask=(~mask).long())
    torch.testing.assert_close(ours.logits[-1], other.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.boxes[-1], other.pred_boxes, rtol=1e-4, atol=1e-4)


def check_same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_for_transformers_gives_equal_outputs_and_comes_back(make_detector, tmp_path, variant):
    detector, cfg = make_detector(variant)
    names = ["ant", "bee", "cat", "dog", "eel"]
    write_hugging_face(tmp_path, detector, cfg, names)
    assert read_weights(tmp_path).class_names == tuple(names)
    theirs = theirs_in(tmp_path)
    assert theirs.config.id2label == dict(enumerate(names))
    check_equal_outputs(detector, theirs)
    back = build_detector(cfg)
    assert load_weights(back, tmp_path, LoadOptions(class_names=tuple(names))).kind == "hugging-face"
    check_same_weights(back, detector)
