"""Checkpoint files: what is written, and what is refused."""

import argparse
import os
import pickle
import uuid

import pytest
import torch
from safetensors.torch import save_file

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import CheckpointError, load_weights, read_state, save_detector
from projects_deformable_detr.checkpoint import files as files_module


@pytest.fixture
def detector(make_cfg):
    return build_detector(make_cfg())


def states_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_round_trip(make_cfg, detector, tmp_path):
    path = tmp_path / "new" / "model_final.pth"  # the folder is made
    save_detector(path, detector, iteration=41, cfg_text="MODEL: {}")
    other = build_detector(make_cfg())
    assert not states_equal(other.state_dict(), detector.state_dict())
    report = load_weights(other, path)
    assert states_equal(other.state_dict(), detector.state_dict())
    assert (report.kind, report.missing, report.unexpected, report.mismatched) == ("ours", (), (), ())
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"model", "iteration", "config", "format"}
    assert (content["iteration"], content["config"], content["format"]) == (41, "MODEL: {}", 1)
    assert all(key.startswith("detector.") for key in content["model"])
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_while_writing_leaves_the_old_file(detector, tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    save_detector(path, detector, iteration=1, cfg_text="")
    old = path.read_bytes()

    def full_disk(content, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(files_module.torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_detector(path, detector, iteration=2, cfg_text="")
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_before_the_rename_leaves_the_old_file(detector, tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_detector(path, detector, iteration=2, cfg_text="")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class RunsCode:
    """A pickle that calls a function when it is read."""

    def __reduce__(self):
        return os.mkdir, ("made_by_a_checkpoint",)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_a_file_with_code_is_refused_and_not_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    write({"model": {"weight": RunsCode()}}, path)
    with pytest.raises(CheckpointError, match=r"model\.pth: .*without running code"):
        read_state(path)
    assert not (tmp_path / "made_by_a_checkpoint").exists()


def cut(path):
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    "write",
    [
        cut,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<!DOCTYPE html>"),
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    ],
    ids=["cut", "empty", "web_page", "large_file_pointer"],
)
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_damaged_file_is_named(tmp_path, write, name):
    path = tmp_path / name
    write(path)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_state(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth: there is no such checkpoint file"):
        read_state(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"a folder with neither of model\.safetensors and pytorch_model\.bin"):
        read_state(tmp_path)


@pytest.mark.parametrize("content", [{"iteration": 3}, [1, 2], {"model": {}}, torch.zeros(2)])
def test_a_file_without_weights_is_named(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: holds no weights"):
        read_state(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"model": state}, lambda state: {"state_dict": state}]
)
def test_weights_are_found_alone_or_below_a_key(tmp_path, wrap):
    state = {"conv1.weight": torch.randn(2, 3), "bias": torch.randn(1)}
    torch.save(wrap(state), tmp_path / "some.pth")
    assert states_equal(read_state(tmp_path / "some.pth"), state)


def test_safetensors(tmp_path):
    state = {"conv1.weight": torch.randn(2, 3)}
    save_file(state, tmp_path / "some.safetensors")
    assert states_equal(read_state(tmp_path / "some.safetensors"), state)


def test_the_official_repositories_files_are_read(detector, tmp_path):
    """They keep their command line, an argparse.Namespace, beside the weights."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": detector.state_dict(), "args": argparse.Namespace(lr=2e-4, backbone="resnet50")}, path)
    assert states_equal(read_state(path), detector.state_dict())


def test_a_refused_type_is_named(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {}, "extra": uuid.UUID(int=1)}, path)
    with pytest.raises(CheckpointError, match=r"Unsupported global: GLOBAL uuid.UUID"):
        read_state(path)


def test_what_was_allowed_before_a_read_stays_allowed(detector, tmp_path):
    """Detectron2's own reader needs the type too: the plugin allows it once."""
    torch.save({"model": detector.state_dict(), "args": argparse.Namespace()}, tmp_path / "checkpoint.pth")
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        read_state(tmp_path / "checkpoint.pth")
        assert argparse.Namespace in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
