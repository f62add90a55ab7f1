"""Folders written for and by transformers: equal outputs, and the same weights after a round trip."""

import json

import pytest
import torch
from safetensors.torch import load_file

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import LoadOptions, import_state, load_weights, read_weights
from projects_deformable_detr.config.model import export_hugging_face
from projects_deformable_detr.modeling import batch_images

transformers = pytest.importorskip("transformers", reason="transformers reads and writes these files")

MASKS = {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8}
VARIANTS = ["single_scale", "multi_scale", "box_refine", "two_stage", "detr", "detr_learned", "detr_masks"]
CLASSES = {
    "DetrForObjectDetection": transformers.DetrForObjectDetection,
    "DetrForSegmentation": transformers.DetrForSegmentation,
    "DeformableDetrForObjectDetection": transformers.DeformableDetrForObjectDetection,
}


@pytest.fixture
def make_detector(make_cfg, shake):
    """Makes a detector with distinct tensors, and its config."""

    def make(variant):
        changes = {}
        if variant == "detr_learned":
            variant, changes = "detr", {"POSITION_EMBEDDING": "learned"}
        if variant == "detr_masks":
            variant, changes = "detr", MASKS
        cfg = make_cfg(variant, **changes)
        return shake(build_detector(cfg)), cfg

    return make


def load_hf_model(folder):
    """Loads a folder with transformers."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = CLASSES[architecture].from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def check_equal_outputs(detector, hf_model):
    detector.mask_padding = "never"  # transformers includes the padding of the batch
    images, mask = batch_images([torch.randn(3, 96, 128), torch.randn(3, 128, 64)])
    with torch.no_grad():
        predictions = detector(images, mask)
        other = hf_model(pixel_values=images, pixel_mask=(~mask).long())
    torch.testing.assert_close(predictions.logits[-1], other.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predictions.boxes[-1], other.pred_boxes, rtol=1e-4, atol=1e-4)
    if predictions.masks is not None:
        torch.testing.assert_close(predictions.masks.all(), other.pred_masks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_for_transformers_has_equal_outputs_and_round_trips(make_detector, check_same, tmp_path, variant):
    detector, cfg = make_detector(variant)
    names = ["ant", "bee", "cat", "dog", "eel"]
    export_hugging_face(cfg, tmp_path, detector, names)
    assert read_weights(tmp_path).class_names == tuple(names)
    hf_model = load_hf_model(tmp_path)
    assert hf_model.config.id2label == dict(enumerate(names))
    check_equal_outputs(detector, hf_model)
    back = build_detector(cfg)
    assert load_weights(back, tmp_path, LoadOptions(class_names=tuple(names))).format == "hugging-face"
    check_same(back, detector)


@pytest.mark.parametrize("variant", ["single_scale_dc5", "detr_dc5"])
def test_dilated_models_use_the_resnet_of_timm(make_cfg, shake, check_same, tmp_path, variant):
    pytest.importorskip("timm", reason="transformers has dilation with timm's ResNets only")
    changes = {"META_ARCHITECTURE": "DETR"} if variant == "detr_dc5" else {}
    cfg = make_cfg("single_scale_dc5", **changes)
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64, 256
    detector = shake(build_detector(cfg))
    export_hugging_face(cfg, tmp_path, detector)
    check_equal_outputs(detector, load_hf_model(tmp_path))
    back = build_detector(cfg)
    load_weights(back, tmp_path / "model.safetensors")
    check_same(back, detector)


def written_by_transformers(detector, cfg, folder, how):
    """Returns a folder saved by transformers in one of its layouts."""
    export_hugging_face(cfg, folder / "exported", detector)
    hf_model, saved = load_hf_model(folder / "exported"), folder / "saved"
    hf_model.save_pretrained(saved)
    if how == "safetensors":
        return saved
    state = hf_model.state_dict()  # with the names of transformers 5
    if how == "old_bin":
        state = load_file(saved / "model.safetensors")  # with those of the published files
        assert any(".conv_encoder." in key for key in state) and any(".out_proj." in key for key in state)
    else:
        assert any(".o_proj." in key for key in state) and any(".mlp.fc1." in key for key in state)
    (saved / "model.safetensors").unlink()
    torch.save(state, saved / "pytorch_model.bin")
    return saved


@pytest.mark.parametrize("how", ["safetensors", "old_bin", "new_bin"])
@pytest.mark.parametrize("variant", ["multi_scale", "box_refine", "two_stage", "detr", "detr_masks"])
def test_files_saved_by_transformers_load(make_detector, check_same, tmp_path, variant, how):
    detector, cfg = make_detector(variant)
    folder = written_by_transformers(detector, cfg, tmp_path, how)
    back = build_detector(cfg).eval()
    assert load_weights(back, folder).format == "hugging-face"
    check_same(back, detector)
    assert import_state(read_weights(folder).state)[0].name == "hugging-face"
