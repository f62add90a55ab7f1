"""Mapping of class heads by class names."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import (
    CheckpointError,
    LoadOptions,
    load_weights,
    save_detector,
    write_official,
)
from projects_deformable_detr.checkpoint.classes import class_names_of, match_names
from projects_deformable_detr.checkpoint.formats.hugging_face import HUGGING_FACE
from projects_deformable_detr.zoo.coco_classes import CATEGORIES, THINGS, THINGS_AND_STUFF

PERSON, BICYCLE, CAR, TOOTHBRUSH = 1, 2, 3, 90
ALL_HEADS = ("decoder.class_heads.", "queries.class_head.")


@pytest.fixture
def make_file(make_cfg, shake, tmp_path):
    """Makes an official file, its detector, and a function that builds detectors to load it into."""

    def make(variant, classes):
        source = shake(build_detector(make_cfg(variant, NUM_CLASSES=classes)))
        write_official(tmp_path / "official.pth", source)
        return tmp_path / "official.pth", source, lambda count: build_detector(make_cfg(variant, NUM_CLASSES=count))

    return make


def head(detector, name="decoder.class_heads.0"):
    return detector.get_submodule(name)


def test_category_ids_are_those_of_coco():
    assert (len(THINGS), len(THINGS_AND_STUFF), len(CATEGORIES)) == (80, 133, 133)
    expected = {1: "person", 18: "dog", 44: "bottle", 90: "toothbrush", 200: "rug-merged"}
    assert expected.items() <= CATEGORIES.items()
    assert not {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91} & CATEGORIES.keys()
    assert list(CATEGORIES) == sorted(CATEGORIES)
    categories = pytest.importorskip("torchvision").models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta
    for index, name in enumerate(categories["categories"]):
        assert CATEGORIES.get(index, "N/A") == ("N/A" if name == "__background__" else name)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("variant", ["multi_scale", "box_refine", "two_stage", "detr"])
def test_91_logits_become_the_80_classes_of_coco(make_file, caplog, variant, named):
    path, source, make = make_file(variant, 91)
    target = make(80)
    with caplog.at_level(logging.INFO):
        report = load_weights(target, path, LoadOptions(class_names=THINGS if named else None, for_evaluation=True))
    assert (report.classes.action, report.classes.new) == ("mapped", ())
    logits = 92 if variant == "detr" else 91
    assert f"80 of 80 classes are loaded from the {logits}" in caplog.text
    rows = [index for index in CATEGORIES if index < 91]
    no_object = [91] if variant == "detr" else []
    for index, expected in enumerate(source.decoder.class_heads):
        found = head(target, f"decoder.class_heads.{index}")
        assert torch.equal(found.weight, expected.weight[rows + no_object])
        assert torch.equal(found.bias, expected.bias[rows + no_object])
    if variant == "two_stage":  # objectness stays the first logit
        assert torch.equal(target.queries.class_head.weight, source.queries.class_head.weight[:80])


SHORT = tuple(name.replace("-other", "").replace("-merged", "") for name in THINGS_AND_STUFF)


@pytest.mark.parametrize("names", [THINGS_AND_STUFF, SHORT], ids=["panoptic", "separated"])
def test_panoptic_ids_become_133_classes(make_file, names):
    """The separated panoptic format has short names."""
    assert len(set(names)) == 133 and ("sky" in names) == (names is SHORT)
    path, source, make = make_file("detr", 250)
    target = make(133)
    report = load_weights(target, path, LoadOptions(class_names=names, for_evaluation=True))
    assert (report.classes.action, report.classes.new) == ("mapped", ())
    assert torch.equal(head(target).weight, head(source).weight[[*CATEGORIES, 250]])


def test_short_names_match_only_if_unique():
    listed = ("car", "car-other", "sky-other-merged", "wall-merged", "wall-other", "other")
    rows = match_names(("sky", "car", "wall", "other", "roof", "car other"), listed)
    assert rows == {0: 2, 1: 0, 3: 5, 5: 1}


def test_some_classes_of_coco_in_another_order(make_file):
    """Names are compared without case and separators."""
    path, source, make = make_file("multi_scale", 91)
    target = make(4)
    names = ("Car", "toothbrush", "PERSON", "hair-drier")
    load_weights(target, path, LoadOptions(class_names=names, for_evaluation=True))
    assert torch.equal(head(target).weight, head(source).weight[[CAR, TOOTHBRUSH, PERSON, 89]])


@pytest.mark.parametrize("variant", ["multi_scale", "detr"])
def test_classes_that_the_file_lacks_keep_their_initial_weights(make_file, caplog, variant):
    path, source, make = make_file(variant, 91)
    target = make(3)
    before = head(target).weight.clone()
    names = ("person", "white blood cell", "bicycle")
    with caplog.at_level(logging.WARNING):
        report = load_weights(target, path, LoadOptions(class_names=names))
    assert (report.classes.action, report.classes.new) == ("mapped", ("white blood cell",))
    assert "The other classes keep their initial weights: white blood cell" in caplog.text
    found = head(target).weight
    assert torch.equal(found[[0, 2]], head(source).weight[[PERSON, BICYCLE]])
    assert torch.equal(found[1], before[1])
    with pytest.raises(CheckpointError, match="lacks some of the model's classes.*white blood cell"):
        load_weights(make(3), path, LoadOptions(class_names=names, for_evaluation=True))


@pytest.mark.parametrize("names", [("ellipse", "star", "ring", "cross"), None])
@pytest.mark.parametrize("variant", ["two_stage", "detr"])
def test_other_classes_start_with_a_new_head(make_file, caplog, variant, names):
    path, source, make = make_file(variant, 91)
    target = make(4)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        report = load_weights(target, path, LoadOptions(class_names=names))
    assert report.classes.action == "new"
    assert "The class head of 4 classes" in caplog.text and "keeps its initial weights" in caplog.text
    assert names is None or "ellipse, star, ring, cross" in caplog.text
    for key, value in target.state_dict().items():
        if key.startswith("decoder.class_heads."):
            assert torch.equal(value, before[key]), key
        elif not key.startswith("queries.class_head."):
            assert torch.equal(value, source.state_dict()[key]), key
    if variant == "two_stage":  # proposals are of all classes
        assert torch.equal(target.queries.class_head.weight, source.queries.class_head.weight[:4])
    with pytest.raises(CheckpointError, match="lacks some of the model's classes"):
        load_weights(make(4), path, LoadOptions(class_names=names, for_evaluation=True))


def test_logits_are_kept_on_request(make_file, check_same):
    path, source, make = make_file("multi_scale", 91)
    target = make(91)
    options = LoadOptions(class_names=THINGS + tuple("abcdefghijk"), keep_logits=True, for_evaluation=True)
    assert load_weights(target, path, options).classes.action == "kept"
    check_same(target, source)
    with pytest.raises(
        CheckpointError, match=r"class_heads\.0\.weight: \(91, 64\) in the file, \(80, 64\) in the model"
    ):
        load_weights(make(80), path, LoadOptions(keep_logits=True))


def test_unknown_classes_of_the_same_number_are_kept(make_file, check_same, caplog):
    path, source, make = make_file("multi_scale", 6)
    target = make(6)
    with caplog.at_level(logging.INFO):
        load_weights(target, path, LoadOptions(class_names=tuple("abcdef"), for_evaluation=True))
    check_same(target, source)
    assert "6 logits of the class head are loaded unchanged" in caplog.text


def test_softmax_and_sigmoid_heads_do_not_replace_each_other(make_file, make_cfg, caplog):
    path, source, _ = make_file("detr", 80)
    target = build_detector(make_cfg("detr", NUM_CLASSES=80, CLASS_LOSS="focal"))
    before = head(target).weight.clone()
    with caplog.at_level(logging.WARNING):
        assert load_weights(target, path).classes.action == "new"
    assert "unlike the model, the file uses softmax with a logit for no object" in caplog.text
    assert torch.equal(head(target).weight, before)
    assert torch.equal(target.decoder.norm.weight, source.decoder.norm.weight)


def test_class_names_in_files_of_the_project(make_cfg, shake, tmp_path, caplog):
    source = shake(build_detector(make_cfg(NUM_CLASSES=3)))
    save_detector(tmp_path / "model.pth", source, iteration=0, cfg_text="", class_names=["ant", "bee", "cat"])
    target = build_detector(make_cfg(NUM_CLASSES=3))
    load_weights(target, tmp_path / "model.pth", LoadOptions(class_names=("cat", "ant", "bee"), for_evaluation=True))
    assert torch.equal(head(target).weight, head(source).weight[[2, 0, 1]])
    with caplog.at_level(logging.WARNING):
        report = load_weights(target, tmp_path / "model.pth", LoadOptions(class_names=("dog", "eel", "fox")))
    assert report.classes.action == "new" and "the file has none of these classes, only ant, bee, cat" in caplog.text


def test_class_names_in_the_config_of_hugging_face(make_cfg, shake, tmp_path):
    source = shake(build_detector(make_cfg(NUM_CLASSES=2)))
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "ant", "1": "bee"}}))
    target = build_detector(make_cfg(NUM_CLASSES=2))
    load_weights(target, tmp_path, LoadOptions(class_names=("bee", "ant")))
    assert torch.equal(head(target).weight, head(source).weight[[1, 0]])


def test_generic_labels_are_ignored():
    unnamed = [f"LABEL_{index}" for index in range(250)]
    assert class_names_of(HUGGING_FACE, 250, unnamed)[200] == "rug-merged"
    assert class_names_of(HUGGING_FACE, 250, ["N/A", "person", *unnamed[2:]])[200] == "rug-merged"
    assert class_names_of(HUGGING_FACE, 7, unnamed[:7]) is None
    assert class_names_of(HUGGING_FACE, 3, ["N/A", "ant", "bee"]) == (None, "ant", "bee")


def test_export_with_coco_category_ids(make_cfg, shake, tmp_path):
    """Exports 80 classes at their category ids, with objectness as the first logit and unused logits in between."""
    source = shake(build_detector(make_cfg("two_stage", NUM_CLASSES=80)))
    write_official(tmp_path / "official.pth", source, THINGS)
    state = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    assert state["class_embed.0.weight"].shape == (91, 64)
    assert torch.equal(state["class_embed.0.bias"][TOOTHBRUSH], source.decoder.class_heads[0].bias[79])
    assert state["class_embed.0.bias"][12].sigmoid() == 0
    assert torch.equal(state["class_embed.3.bias"][0], source.queries.class_head.bias[0])
    target = build_detector(make_cfg("two_stage", NUM_CLASSES=80))
    load_weights(target, tmp_path / "official.pth", LoadOptions(class_names=THINGS))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key
    with pytest.raises(CheckpointError, match="category ids require the 80"):
        write_official(tmp_path / "official.pth", source, ["ant"] * 80)
