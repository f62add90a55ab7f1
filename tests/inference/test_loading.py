"""Sources that `Detector.load` opens."""

import dataclasses
import logging
import shutil
from types import MappingProxyType

import pytest
import torch
import yaml
from fvcore.common.config import CfgNode

from projects_deformable_detr import get_cfg, zoo
from projects_deformable_detr.checkpoint import read_checkpoint, write_official
from projects_deformable_detr.cli.main import main
from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.inference import Detector
from projects_deformable_detr.zoo.coco_classes import THINGS

ALL = {"score_threshold": 0.0}
NAMES = ("ant", "bee", "cat", "dog", "elk")


def test_checkpoints_have_config_and_class_names(save_tiny, caplog):
    detector = Detector.load(save_tiny())
    assert detector.class_names == NAMES and detector.device.type == "cpu"
    assert (detector.metadata.min_size, detector.metadata.max_size) == (64, 96)
    assert "class names" not in caplog.text
    assert Detector.load(save_tiny(), class_names=["a", "b", "c", "d", "e"]).class_names == tuple("abcde")


def test_output_folders(save_tiny, tmp_path, caplog):
    path = save_tiny()
    content = read_checkpoint(path)
    text, folder = content.pop("config"), tmp_path / "output"
    folder.mkdir()
    (folder / "config.yaml").write_text(text)
    torch.save({"state_dict": content["model"], "class_names": list(NAMES)}, folder / "model_0000009.ckpt")
    (folder / "last_checkpoint").write_text("model_0000009.ckpt")
    caplog.set_level(logging.INFO)
    for name in ("model_0000009.ckpt", "model_final.pth", "model_best.pth"):
        if name.endswith("pth"):
            torch.save(content, folder / name)
        caplog.clear()
        assert Detector.load(folder).class_names == NAMES
        assert f"Loading {folder / name}" in caplog.text


def test_files_without_class_names(save_tiny, caplog):
    detector = Detector.load(save_tiny(class_names=None))
    assert detector.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert "has no class names: 5 are assumed (class 0, class 1, class 2, class 3, and 1 more)" in caplog.text
    caplog.clear()
    assert Detector.load(save_tiny(class_names=None), class_names=NAMES).class_names == NAMES
    assert "class names" not in caplog.text


def test_official_weights(save_tiny, tmp_path, files, caplog):
    """Their 91 logits are COCO's category ids."""
    expected = Detector.load(save_tiny("two_stage", class_names=THINGS, NUM_CLASSES=80, NORM="FrozenBN"))
    official, config = tmp_path / "official.pth", tmp_path / "config.yaml"
    write_official(official, expected.model, THINGS)
    config.write_text(read_checkpoint(tmp_path / "model_final.pth")["config"])
    (tmp_path / "other").mkdir()
    moved = shutil.move(official, tmp_path / "other" / "official.pth")
    with pytest.raises(UserError, match="contains no config, and there is no config.yaml next to it: pass config"):
        Detector.load(moved)
    found = Detector.load(moved, config=config)
    assert found.class_names == THINGS and "80 are assumed (person, bicycle" in caplog.text
    for path in files:
        left, right = found(path, **ALL), expected(path, **ALL)
        torch.testing.assert_close(left.boxes, right.boxes)
        assert left.names == right.names


@pytest.mark.parametrize(
    ("config", "error", "named"),
    [
        ("no_such_recipe", UserError, "config 'no_such_recipe' is unknown: choose one of"),
        ("missing.yaml", UserError, "cannot read missing.yaml"),
        ("quickstart", UserError, "does not match the architecture of the model"),
        (3, ArgumentError, "config must be a file, the name of a recipe or a CfgNode, got int"),
        ({"MODEL": {"MASK_ON": "yes"}}, UserError, "^config: MODEL.MASK_ON must be of type bool, got 'yes'"),
        ({"MODEL": 3}, UserError, "^config: MODEL must be a section, got 3"),
    ],
)
def test_bad_configs(save_tiny, config, error, named):
    with pytest.raises(error, match=named):
        Detector.load(save_tiny(), config=config)


def test_a_config_may_be_any_mapping(save_tiny, tmp_path):
    path = save_tiny()
    content = yaml.safe_load(read_checkpoint(path)["config"])
    content["INPUT"] |= {"MIN_SIZE_TEST": 77, "UNKNOWN": 3}
    content["INPUT"]["MIN_SIZE_TRAIN"] = "(64, 80)"  # a string in YAML
    content["SOLVER"]["BASE_LR"] = 1
    config = MappingProxyType(
        {name: MappingProxyType(value) if value is content["INPUT"] else value for name, value in content.items()}
    )
    assert Detector.load(path, config=config).metadata.min_size == 77


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("MODEL: [", "the config is not valid YAML \\(while parsing"),
        ("MODEL: \x01", "the config is not valid YAML"),
        ("- MODEL", "has no config sections, such as MODEL"),
        ("", "has no config sections, such as MODEL"),
    ],
)
@pytest.mark.parametrize("place", ["model_final.pth", "config.yaml"])
def test_stored_configs_that_are_not_configs(save_tiny, tmp_path, place, text, named):
    path = save_tiny()
    content = read_checkpoint(path)
    del content["config"]
    if place == "config.yaml":
        (tmp_path / place).write_text(text)
    torch.save(content | ({} if place == "config.yaml" else {"config": text}), path)
    with pytest.raises(UserError, match=f"{tmp_path / place}.*{named}"):
        Detector.load(path)


def test_folder_of_hugging_face_with_a_config(save_tiny, tmp_path):
    path = save_tiny("two_stage", NORM="FrozenBN")
    assert main(["convert", str(path), str(tmp_path / "folder"), "--to", "transformers"]) == 0
    (tmp_path / "folder" / "config.yaml").write_text(read_checkpoint(path)["config"])
    assert Detector.load(tmp_path / "folder").class_names == NAMES


def test_kept_logits(save_tiny, tmp_path):
    """Classes of unused logits are kept with MODEL.DETR.KEEP_CLASS_LOGITS."""
    detector = Detector.load(save_tiny("two_stage", class_names=None, NUM_CLASSES=91, NORM="FrozenBN"))
    write_official(tmp_path / "official.pth", detector.model)
    cfg = get_cfg("standalone")
    cfg.merge_from_other_cfg(CfgNode.load_cfg(read_checkpoint(tmp_path / "model_final.pth")["config"]))
    cfg.MODEL.DETR.NUM_CLASSES = 0
    assert Detector.load(tmp_path / "official.pth", config=cfg).class_names == THINGS
    cfg.MODEL.DETR.KEEP_CLASS_LOGITS = True
    names = Detector.load(tmp_path / "official.pth", config=cfg).class_names
    assert names[:3] == ("N/A", "person", "bicycle") and len(names) == 91


@pytest.mark.parametrize("names", ["ant", ["a", "b", "c", "d", 5], ["a", "b", "c", "d", "a"], ["a", "b"]])
def test_bad_class_names(save_tiny, names):
    with pytest.raises(ArgumentError, match="class_names must be "):
        Detector.load(save_tiny(), class_names=names)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (
            "build_deformable_detr_resnet_backbone",
            "build_vit_backbone",
            "build_vit_backbone is a backbone of Detectron2's registry",
        ),
        ("NUM_CLASSES: 5", "NUM_CLASSES: five", "MODEL.DETR.NUM_CLASSES must be of type int, got 'five'"),
        ("  - 123.675\n", "", "MODEL.PIXEL_MEAN must have three values"),
    ],
)
def test_stored_configs_with_invalid_values(save_tiny, old, new, named):
    path = save_tiny()
    content = read_checkpoint(path)
    content["config"] = content["config"].replace(old, new)
    torch.save(content, path)
    with pytest.raises(UserError, match=named):
        Detector.load(path)


def test_configs_of_detectron2_with_other_keys(save_tiny):
    """Keys without effect on detections are not checked, as the training was."""
    path = save_tiny()
    content = read_checkpoint(path)
    content["config"] += "VIS_PERIOD: 10\nDATASETS: {TRAIN: [gone], TEST: [gone]}\n"
    content["config"] = content["config"].replace("DATASETS:\n", "OTHER:\n", 1)
    torch.save(content, path)
    assert Detector.load(path).class_names == NAMES


class _Source:
    """A file in place of a download."""

    def __init__(self, path):
        self.path = path

    def download(self):
        return self.path


@pytest.mark.parametrize("name", ["tiny_detector", "zoo://tiny_detector"])
def test_published_weights(save_tiny, tmp_path, monkeypatch, caplog, name):
    path = save_tiny(class_names=None)
    config = tmp_path / "config.yaml"
    config.write_text(read_checkpoint(path)["config"])
    entry = zoo.Entry(str(config), _Source(path), class_names=NAMES)
    monkeypatch.setitem(zoo.ENTRIES, "tiny_detector", entry)
    assert Detector.load(name).class_names == NAMES
    assert "class names" not in caplog.text
    monkeypatch.setitem(zoo.ENTRIES, "tiny_detector", dataclasses.replace(entry, class_names=NAMES[:3]))
    with pytest.raises(UserError, match="MODEL.DETR.NUM_CLASSES is 5, but there are 3 classes to load from"):
        Detector.load(name)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (
            "deformable_detr_r50_two_stag",
            "no file, folder or published model .* did you mean deformable_detr_r50_two_st",
        ),
        ("missing.pth", "no file, folder or published model 'missing.pth'"),
        ("zoo://nothing", "no published weights 'nothing'"),
        ("resnet50", "must be a detector, got the weights of a backbone"),
    ],
)
def test_unknown_sources(source, named):
    with pytest.raises(UserError, match=named):
        Detector.load(source)
