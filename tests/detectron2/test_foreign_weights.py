"""Weights of other projects, loaded by the trainer's checkpointer and by Detectron2's."""

import argparse
import dataclasses
import os
import pickle
import re

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from projects_deformable_detr.checkpoint import CheckpointError, save_detector, write_official
from projects_deformable_detr.config.model import export_hugging_face
from projects_deformable_detr.detectron2_plugin import Trainer
from projects_deformable_detr.training.last_checkpoint import write_last_checkpoint
from projects_deformable_detr.zoo.files import UrlFile

BATCH_NORM = {"MODEL__RESNETS__NORM": "FrozenBN"}
CAFFE2 = {
    **BATCH_NORM,
    "MODEL__BACKBONE__NAME": "build_resnet_backbone",
    "MODEL__RESNETS__DEPTH": 50,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 64,
    "MODEL__RESNETS__STRIDE_IN_1X1": True,
    "INPUT__FORMAT": "BGR",
}


@pytest.fixture
def make_model(make_cfg):
    """Returns a function that builds a model with random weights, and its config."""

    def make(**overrides):
        cfg = make_cfg(**BATCH_NORM | overrides)
        model = build_model(cfg).eval()
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.add_(0.05 * torch.randn(tensor.shape))
        return model, cfg

    return make


def write(model, path):
    """Writes a file of the official repository, which also contains the command line; returns its path."""
    write_official(path, model.detector)
    state = torch.load(path, weights_only=True)
    torch.save(state | {"args": argparse.Namespace(lr=2e-4)}, path)
    return str(path)


def check_same(one, other):
    found, expected = one.state_dict(), other.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(value, expected[key]) for key, value in found.items())


def test_default_predictor_reads_official_files(make_model, tmp_path):
    model, cfg = make_model()
    cfg.MODEL.WEIGHTS = write(model, tmp_path / "official.pth")
    predictor = DefaultPredictor(cfg)
    check_same(predictor.model, model)
    instances = predictor(np.full((64, 80, 3), 128, np.uint8))["instances"]
    assert len(instances) > 0


def test_default_predictor_reads_bin_files_of_hugging_face(make_model, tmp_path):
    from safetensors.torch import load_file

    model, cfg = make_model(MODEL__DETR__NUM_CLASSES=2)
    export_hugging_face(cfg, tmp_path, model.detector)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    cfg.MODEL.WEIGHTS = str(tmp_path / "pytorch_model.bin")
    check_same(DefaultPredictor(cfg).model, model)


def test_default_predictor_rejects_a_head_without_its_classes(make_model, make_cfg, tmp_path):
    """COCO has neither of the tiny data set's classes, red and blue."""
    model, _ = make_model(MODEL__DETR__NUM_CLASSES=91, DATASETS__TRAIN="()", DATASETS__TEST="()")
    cfg = make_cfg(**BATCH_NORM)
    cfg.MODEL.WEIGHTS = write(model, tmp_path / "official.pth")
    with pytest.raises(CheckpointError, match="lacks some of the model's classes"):
        DefaultPredictor(cfg)


@pytest.mark.parametrize("with_trainer", [True, False])
def test_fine_tuning_warns_about_a_new_class_head(make_model, make_cfg, tmp_path, caplog, with_trainer):
    model, _ = make_model(MODEL__DETR__NUM_CLASSES=91, DATASETS__TRAIN="()", DATASETS__TEST="()")
    cfg = make_cfg(**BATCH_NORM)
    target = build_model(cfg)
    before = target.detector.decoder.class_heads[0].weight.clone()
    checkpointer = Trainer.build_checkpointer(cfg, target) if with_trainer else DetectionCheckpointer(target)
    with caplog.at_level("WARNING"):
        checkpointer.resume_or_load(write(model, tmp_path / "official.pth"), resume=False)
    assert "The class head of 2 classes (red, blue) keeps its initial weights" in caplog.text
    assert torch.equal(target.detector.decoder.class_heads[0].weight, before)
    assert torch.equal(target.detector.tokenizer.level_embed, model.detector.tokenizer.level_embed)


def test_detectron2_checkpointer_loads_torchvision_names(make_cfg, tmp_path, monkeypatch):
    from torchvision.models import resnet18

    imagenet = resnet18()

    torch.save(imagenet.state_dict(), tmp_path / "resnet18.pth")
    monkeypatch.setattr(UrlFile, "download", lambda file: tmp_path / "resnet18.pth")
    model = build_model(
        make_cfg(**BATCH_NORM, MODEL__RESNETS__RES2_OUT_CHANNELS=64, MODEL__RESNETS__STEM_OUT_CHANNELS=64)
    )
    DetectionCheckpointer(model).load("torchvision://resnet18")
    assert torch.equal(model.detector.backbone.layer3[1].conv2.weight, imagenet.layer3[1].conv2.weight)


@pytest.mark.parametrize("writer", ["project", "DefaultTrainer's"])
def test_own_logits_are_mapped_by_name(make_model, make_cfg, tmp_path, monkeypatch, writer):
    """Plain Detectron2 would load them by number."""
    model, cfg = make_model()
    if writer == "project":
        save_detector(
            tmp_path / "model_final.pth", model.detector, iteration=0, cfg_text="", class_names=["blue", "red"]
        )
    else:
        options = dataclasses.replace(model.load_options, class_names=("blue", "red"))
        monkeypatch.setattr(model, "load_options", options)
        DetectionCheckpointer(model, str(tmp_path)).save("model_final")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    predictor, target = DefaultPredictor(cfg), build_model(cfg)
    assert predictor.model.load_options.class_names == ("red", "blue")
    DetectionCheckpointer(target).load(cfg.MODEL.WEIGHTS)
    for found in (predictor.model, target):
        weight, original = (each.detector.decoder.class_heads[0].weight for each in (found, model))
        assert torch.equal(weight, original[[1, 0]])
        assert torch.equal(found.detector.tokenizer.level_embed, model.detector.tokenizer.level_embed)
    with pytest.raises(CheckpointError, match=r"has 2 classes \(blue, red\), the data sets have 2 \(red, blue\)"):
        write_last_checkpoint(tmp_path / "model_final.pth")
        DetectionCheckpointer(target, str(tmp_path)).resume_or_load("", resume=True)


def test_other_modules_of_a_subclass_are_loaded(make_model, tmp_path):
    model, cfg = make_model()
    model.counter, other = torch.nn.Linear(2, 1), make_model()[0]
    other.counter = torch.nn.Linear(2, 1)
    DetectionCheckpointer(model, str(tmp_path)).save("model_final")
    DetectionCheckpointer(other).load(str(tmp_path / "model_final.pth"))
    check_same(other, model)


def caffe2_file(model, folder):
    """Writes a file like MSRA's R-50.pkl, with Caffe2's names and norms folded to affine layers."""
    arrays = {}
    for key, value in model.detector.backbone.state_dict().items():
        if "running" in key:
            continue
        name = re.sub(r"^stem\.conv1\.norm\.", "res_conv1_bn.", key).replace("stem.conv1.weight", "conv1_w")
        name = re.sub(r"(res\d)\.(\d+)\.conv([123])", lambda m: f"{m[1]}_{m[2]}_branch2{'abc'[int(m[3]) - 1]}", name)
        name = re.sub(r"(res\d)\.(\d+)\.shortcut", r"\1_\2_branch1", name).replace(".norm.", "_bn.")
        name = name.replace("_bn.weight", "_bn_s").replace("_bn.bias", "_bn_b").replace(".weight", "_w")
        arrays[name] = value.numpy()
    path = folder / "R-50.pkl"
    path.write_bytes(pickle.dumps(arrays | {"fc1000_w": np.zeros((2, 2)), "conv1_b": np.zeros(16)}, 2))
    return str(path)


def test_msra_resnet_loads_as_in_detectron2(make_model, make_cfg, tmp_path):
    model, _ = make_model(**CAFFE2)
    path = caffe2_file(model, tmp_path)
    cfg = make_cfg(**CAFFE2)
    found, expected = build_model(cfg), build_model(cfg)
    Trainer.build_checkpointer(cfg, found).resume_or_load(path, resume=False)
    DetectionCheckpointer(expected).load(path)
    # Detectron2 neglects the 1e-5 that its norm adds to the variance of 1.
    torch.testing.assert_close(
        found.detector.backbone.state_dict(), expected.detector.backbone.state_dict(), rtol=2e-5, atol=0
    )
    assert torch.equal(found.detector.backbone.res4[2].conv2.weight, model.detector.backbone.res4[2].conv2.weight)


@pytest.mark.parametrize("wrong", [{"INPUT__FORMAT": "RGB"}, {"MODEL__RESNETS__STRIDE_IN_1X1": False}])
def test_msra_resnet_needs_bgr_and_strides_in_the_1x1(make_model, make_cfg, tmp_path, wrong):
    path = caffe2_file(make_model(**CAFFE2)[0], tmp_path)
    cfg = make_cfg(**CAFFE2 | wrong)
    with pytest.raises(CheckpointError, match=r"INPUT\.FORMAT BGR.*STRIDE_IN_1X1 True"):
        Trainer.build_checkpointer(cfg, build_model(cfg)).resume_or_load(path, resume=False)


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_checkpoint",)


@pytest.mark.parametrize("build", [Trainer.build_checkpointer, lambda _, model: DetectionCheckpointer(model)])
@pytest.mark.parametrize("name", ["R-50.pkl", "model.pth"])
def test_code_in_a_file_is_never_executed(make_model, tmp_path, monkeypatch, name, build):
    model, cfg = make_model()
    monkeypatch.chdir(tmp_path)
    content = {"model": {"stem.conv1.weight": RunsCode()}, "__author__": "someone", "matching_heuristics": True}
    (tmp_path / name).write_bytes(pickle.dumps(content, 2))
    with pytest.raises(CheckpointError, match=f"{name}: .*without running code"):
        build(cfg, model).resume_or_load(str(tmp_path / name), resume=False)
    assert not (tmp_path / "made_by_a_checkpoint").exists()
