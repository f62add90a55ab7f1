"""The command deformable-detr convert."""

import json
import os
import re

import pytest
import torch

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import load_weights, read_weights, write_official
from projects_deformable_detr.cli.main import main
from projects_deformable_detr.zoo.coco_classes import THINGS
from projects_deformable_detr.zoo.files import UrlFile


@pytest.fixture
def run(capsys):
    """Runs a command and returns its exit status and output."""

    def call(*words):
        status = main(["convert", *map(str, words)])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


@pytest.fixture
def make_files(make_cfg, shake, tmp_path, monkeypatch):
    """Makes an official file with a number of classes, its detector, and a config file without NUM_CLASSES."""
    monkeypatch.chdir(tmp_path)

    def make(classes, datasets=()):
        detector = shake(build_detector(make_cfg("two_stage", NUM_CLASSES=classes)))
        write_official("official.pth", detector)
        cfg = make_cfg("two_stage", NUM_CLASSES=0)
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = datasets
        (tmp_path / "config.yaml").write_text(cfg.dump())
        return detector, "official.pth", "config.yaml"

    return make


def classes_in(path):
    return len(read_weights(path).state["detector.decoder.class_heads.0.bias"])


def test_convert_maps_onto_the_data_set_of_the_config(make_files, run, caplog):
    detector, source, config = make_files(91, ("coco_2017_val",))
    with caplog.at_level("INFO"):
        status, output = run(source, "converted.pth", "--config-file", config)
    assert status == 0 and "converted.pth: weights of this project with 80 classes, from official.pth" in output
    assert "80 of 80 classes are loaded from the 91 logits of the file, matched by name" in caplog.text
    assert classes_in("converted.pth") == 80
    assert read_weights("converted.pth").class_names == THINGS
    bias = read_weights("converted.pth").state["detector.decoder.class_heads.0.bias"]
    assert torch.equal(bias[0], detector.decoder.class_heads[0].bias[1])


def test_convert_maps_onto_a_registered_data_set(make_files, run, tmp_path):
    detector, source, config = make_files(91, ("pets",))
    content = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "dog"}, {"id": 7, "name": "cat"}]}
    (tmp_path / "pets.json").write_text(json.dumps(content))
    register = ("--register", "pets", tmp_path / "pets.json", ".")
    assert run(source, "converted.pth", "--config-file", config, *register)[0] == 0
    assert read_weights("converted.pth").class_names == ("dog", "cat")
    bias = read_weights("converted.pth").state["detector.decoder.class_heads.1.bias"]
    assert torch.equal(bias, detector.decoder.class_heads[1].bias[[18, 17]])


@pytest.mark.parametrize("names", [None, ("ant", "person")])
def test_convert_assumes_coco_classes_only_for_files_that_have_them(make_files, run, names):
    _, source, config = make_files(2, ("coco_2017_val",))
    content = torch.load(source, weights_only=True)
    torch.save(content | ({"class_names": list(names)} if names else {}), source)
    assert run(source, "folder", "--config-file", config, "--to", "transformers")[0] == 0
    status, output = run("folder", "again.pth", "--config-file", config)
    assert status == 0 and "with 2 classes" in output
    assert read_weights("again.pth").class_names == names


@pytest.mark.parametrize("flag", [("--keep-logits",), ()])
def test_convert_keeps_the_logits_on_request_or_without_a_data_set(make_files, run, check_same, make_cfg, flag, caplog):
    caplog.set_level("INFO")
    detector, source, config = make_files(91, ("coco_2017_val",) if flag else ())
    status, output = run(source, "converted.pth", "--config-file", config, *flag)
    assert status == 0 and "with 91 classes" in output
    assert "tensors are loaded" in caplog.text and "  \n" not in f"{caplog.text}\n"
    names = read_weights("converted.pth").class_names
    assert names[:3] == ("N/A", "person", "bicycle") and len(names) == 91
    target = build_detector(make_cfg("two_stage", NUM_CLASSES=91))
    load_weights(target, "converted.pth")
    check_same(target, detector)


def test_a_round_trip_through_files_is_exact(make_files, run):
    _, source, config = make_files(5)
    assert run(source, "converted.pth", "--config-file", config)[0] == 0
    output = run("--to", "official", "converted.pth", "back.pth", "--config-file", config)[1]
    assert "back.pth: weights in the official format with 5 classes, from converted.pth" in output
    assert run("--to", "transformers", "converted.pth", "folder", "--config-file", config)[0] == 0
    assert run("--to", "official", "folder", "again.pth", "--config-file", config)[0] == 0
    expected = read_weights(source).state
    for name in ("back.pth", "again.pth"):
        found = read_weights(name).state
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, found[key]) for key, value in expected.items()), name


def test_the_config_is_that_of_the_checkpoint_or_of_its_folder(make_files, run, tmp_path):
    _, source, config = make_files(5)
    assert run(source, "run/converted.pth", "--config-file", config)[0] == 0
    assert run("run/converted.pth", "back.pth", "--to", "official")[0] == 0
    state = read_weights(source).state
    assert all(torch.equal(value, state[key]) for key, value in read_weights("back.pth").state.items())
    status, output = run("back.pth", "converted.pth", "--config-file", "")
    assert status == 0  # config.yaml is in the same folder
    (tmp_path / "run" / "converted.pth").rename(tmp_path / "run" / "model_final.pth")
    assert run("run", "again.pth", "--to", "official")[0] == 0  # an output folder
    assert read_weights("again.pth").state.keys() == state.keys()
    (tmp_path / config).unlink()
    status, output = run("back.pth", "converted.pth")
    assert status == 2 and "back.pth contains no config, and there is no config.yaml next to it" in output


@pytest.mark.parametrize("name", ["detr_r50", "zoo://detr_r50"])
def test_published_weights_are_converted_with_their_config(run, tmp_path, monkeypatch, make_cfg, name):
    monkeypatch.chdir(tmp_path)
    cfg = make_cfg("two_stage", NUM_CLASSES=91)
    write_official("official.pth", build_detector(cfg))
    monkeypatch.setattr(UrlFile, "download", lambda file: tmp_path / "official.pth")
    status, output = run(name, "converted.pth")
    assert status == 2 and f"{name} (official weights) does not match the architecture of the model" in output


def test_coco_ids_round_trip(make_files, run):
    _, source, config = make_files(91, ("coco_2017_val",))
    assert run(source, "converted.pth", "--config-file", config)[0] == 0
    assert run("--to", "official", "converted.pth", "back.pth", "--config-file", config, "--coco-ids")[0] == 0
    found, expected = read_weights("back.pth").state, read_weights(source).state
    assert found["class_embed.0.bias"].shape == (91,)
    assert torch.equal(found["class_embed.0.bias"][[1, 90]], expected["class_embed.0.bias"][[1, 90]])


@pytest.mark.parametrize(
    ("options", "output"),
    [
        (("MODEL.DETR.DEC_LAYERS", "2"), "set MODEL.DETR.ALLOW_PARTIAL_WEIGHTS True to load the weights that match"),
        (("MODEL.DETR.NUM_CLASSES", "7"), "set MODEL.DETR.KEEP_CLASS_LOGITS True, and MODEL.DETR.NUM_CLASSES"),
        (("MODEL.DETR.NO_SUCH_KEY", "2"), "NO_SUCH_KEY"),
    ],
)
def test_an_error_for_what_does_not_fit(make_files, run, options, output):
    _, source, config = make_files(5)
    status, text = run(source, "converted.pth", "--config-file", config, "--opts", *options)
    assert status == 2 and output in text and "Traceback" not in text


@pytest.mark.parametrize("spelling", ["official.pth", "x/../official.pth", "link.pth", "hard.pth", "absolute"])
def test_the_source_is_not_written_over(make_files, run, tmp_path, spelling):
    _, source, config = make_files(5)
    (tmp_path / "x").mkdir()
    (tmp_path / "link.pth").symlink_to(tmp_path / source)
    os.link(tmp_path / source, tmp_path / "hard.pth")
    before = (tmp_path / source).read_bytes()
    target = tmp_path / source if spelling == "absolute" else spelling
    for name in ("deformable-detr", "official"):
        status, output = run(source, target, "--config-file", config, "--to", name)
        assert status == 2 and f"{target}: would overwrite the source official.pth" in output
    assert (tmp_path / source).read_bytes() == before
    assert os.path.samefile(tmp_path / source, tmp_path / "hard.pth")


def test_a_folder_is_not_written_over_either(make_files, run, tmp_path):
    _, source, config = make_files(5)
    assert run("--to", "transformers", source, "folder", "--config-file", config)[0] == 0
    before = (tmp_path / "folder" / "model.safetensors").read_bytes()
    for given in ("folder", "folder/model.safetensors"):
        status, output = run("--to", "transformers", given, "./folder/", "--config-file", config)
        assert status == 2 and f"folder: would overwrite the source {given}" in output
        status, output = run(given, "folder/model.safetensors", "--config-file", config)
        assert status == 2 and "would overwrite the source" in output
    assert (tmp_path / "folder" / "model.safetensors").read_bytes() == before


def test_a_target_of_the_other_kind_is_rejected(make_files, run, tmp_path):
    _, source, config = make_files(5)
    (tmp_path / "x").mkdir()
    assert "x: must be a file, got a folder" in run(source, "x", "--config-file", config)[1]
    output = run(source, config, "--to", "transformers", "--config-file", config)[1]
    assert "config.yaml: must be a folder, got a file" in output


def test_a_one_line_error_for_invalid_checkpoints(make_files, run, tmp_path):
    _, _, config = make_files(5)
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("to do\n\nmore")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"embedding.weight": torch.ones(2)}, "other.pth")
    for name, message in (
        ("folder", r"folder: folder contains no checkpoint .*"),
        ("notes.txt", r"notes\.txt: corrupt, or not a checkpoint .* \(text that starts with 'to do'\)"),
        ("empty.pth", r"empty\.pth: corrupt, or not a checkpoint .* \(empty\)"),
        ("none.pth", r"there is no file, folder or published model 'none\.pth'; .*"),
        ("other.pth", r"other\.pth: must contain a detector, got unknown weights"),
    ):
        status, output = run(name, "converted.pth", "--config-file", config)
        assert status == 2 and re.fullmatch(f"deformable-detr convert: {message}\n", output), output


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("deformable_detr_r50_50ep.py", "model = 1", "LazyConfigs are not supported here; use a YAML file"),
        ("x.yaml", "MODEL: [", "config file x.yaml"),
    ],
)
def test_an_error_for_invalid_configs(make_files, run, tmp_path, name, text, message):
    _, source, _ = make_files(5)
    (tmp_path / name).write_text(text)
    status, output = run(source, "converted.pth", "--config-file", name)
    assert status == 2 and message in output and "Traceback" not in output
