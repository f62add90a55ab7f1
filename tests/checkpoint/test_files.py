"""Writing and reading of checkpoint files, and errors for invalid ones."""

import argparse
import os
import pickle
import uuid

import numpy as np
import pytest
import torch

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import CheckpointError, load_weights, read_weights, save_detector


@pytest.fixture
def detector(make_cfg):
    return build_detector(make_cfg())


@pytest.fixture
def allowed():
    """NumPy types that a program has allowed in torch.load."""
    before = torch.serialization.get_safe_globals()
    multiarray = np._core.multiarray
    allowed = [multiarray.scalar, multiarray._reconstruct, np.dtype, np.ndarray, type(np.dtype("f8"))]
    torch.serialization.add_safe_globals(allowed)
    yield set(allowed)
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def states_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_round_trip(make_cfg, detector, tmp_path):
    path = tmp_path / "new" / "model_final.pth"  # the folder is created
    save_detector(path, detector, iteration=41, cfg_text="MODEL: {}")
    other = build_detector(make_cfg())
    assert not states_equal(other.state_dict(), detector.state_dict())
    report = load_weights(other, path)
    assert states_equal(other.state_dict(), detector.state_dict())
    assert (report.format, report.missing, report.unexpected, report.mismatched) == ("native", (), (), ())
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"model", "iteration", "config", "format"}
    assert (content["iteration"], content["config"], content["format"]) == (41, "MODEL: {}", 1)
    assert all(key.startswith("detector.") for key in content["model"])
    assert list(path.parent.iterdir()) == [path]


def test_output_folders(detector, tmp_path):
    for name in ("last.ckpt", "model_final.pth", "model_best.pth"):
        save_detector(tmp_path / name, detector, iteration=0, cfg_text="", class_names=[name])
        (tmp_path / "last_checkpoint").write_text("last.ckpt")
        assert read_weights(tmp_path).class_names == (name,)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["torch.save", "pathlib.Path.replace"])
def test_an_incomplete_write_leaves_the_old_file(detector, tmp_path, monkeypatch, step, error):
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")

    def fail(content, target):
        if step == "torch.save":
            target.write(b"half of it")
            try:
                raise error
            finally:  # as torch does
                if isinstance(error, OSError):
                    raise RuntimeError("[enforce fail at inline_container.cc:664]")
        raise error

    monkeypatch.setattr(step, fail)
    message = r"model\.pth could not be written \(.*No space left on device\): existing files are unchanged"
    is_full = isinstance(error, OSError)
    with pytest.raises(CheckpointError if is_full else KeyboardInterrupt, match=message if is_full else None):
        save_detector(path, detector, iteration=2, cfg_text="")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_created_is_an_error(detector, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/model\.pth could not be written \(.*exists"):
        save_detector(tmp_path / "file" / "model.pth", detector, iteration=2, cfg_text="")


class RunsCode:
    """Pickles as a function call."""

    def __reduce__(self):
        return os.mkdir, ("made_by_a_checkpoint",)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_a_file_with_code_is_rejected_and_not_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    write({"model": {"weight": RunsCode()}}, path)
    with pytest.raises(CheckpointError, match=r"model\.pth: .*without running code"):
        read_weights(path)
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
def test_error_contains_the_path_of_a_damaged_file(tmp_path, write, name):
    path = tmp_path / name
    write(path)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        read_weights(path)
    assert len(str(caught.value).splitlines()) == 1 and "weights_only" not in str(caught.value)


def test_error_contains_the_path_of_a_missing_file_or_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth: checkpoint file does not exist"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(
        CheckpointError, match=r"folder contains no checkpoint \(.*model\.safetensors, pytorch_model\.bin"
    ):
        read_weights(tmp_path)


@pytest.mark.parametrize("content", [{"iteration": 3}, [1, 2], {"model": {}}, torch.zeros(2)])
def test_error_contains_the_path_of_a_file_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: no weights found"):
        read_weights(tmp_path / "odd.pth")


def test_arguments_next_to_the_weights_are_allowed(detector, tmp_path):
    """The official repositories store an argparse.Namespace."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": detector.state_dict(), "args": argparse.Namespace(lr=2e-4, backbone="resnet50")}, path)
    assert states_equal(read_weights(path).state, detector.state_dict())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "(empty)"),
        (b"import os\nmodel = dict()\n", "(text that starts with 'import os')"),
        (b"PK\x03\x04 and no more", "(PytorchStreamReader failed reading zip archive: not a ZIP archive)"),
        ({"model": {"a": np.zeros(2, dtype=object)}}, "(array of 'O8', not of numbers)"),
        ({"model": {"a": np.array(["text"])}}, "(array of 'U4', not of numbers)"),
        ({"model": {"a": RunsCode()}}, f"{os.mkdir.__module__}.mkdir"),
        ({"model": {}, "extra": uuid.UUID(int=1)}, "Unsupported global: GLOBAL uuid.UUID"),
    ],
)
def test_errors_give_the_reason_without_torchs_advice(tmp_path, content, reason):
    """torch recommends weights_only=False, which would run the file's code."""
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    text = str(caught.value)
    assert reason in text and "weights_only" not in text and "succeed" not in text and "\n" not in text


def test_substitutes_replace_types_of_the_program(tmp_path, allowed, monkeypatch):
    """They have the same names, and torch would choose one of the two by the order of a set."""
    path = tmp_path / "x.pth"
    torch.save({"model": {"a": torch.ones(2), "b": np.arange(3)}, "extra": uuid.UUID(int=1)}, path)
    seen, load = [], torch.load

    def spy(*args, **kwargs):
        names = [
            item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}"
            for item in torch.serialization.get_safe_globals()
        ]
        seen.append(names)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", spy)
    with pytest.raises(CheckpointError, match=r"uuid\.UUID"):
        read_weights(path)
    assert [len(names) == len(set(names)) for names in seen] == [True]
    assert allowed <= set(torch.serialization.get_safe_globals())


def test_numpy_arrays_are_weights(tmp_path):
    state = {"a": np.arange(3.0), "b": torch.zeros(2), "c": np.ones((2, 2), ">f4"), "steps": 3}
    for name, content in {"below.pth": {"model": state}, "alone.pth": state}.items():
        torch.save(content, tmp_path / name)
        found = read_weights(tmp_path / name).state
        assert found.keys() == {"a", "b", "c"}
        assert found["a"].tolist() == [0, 1, 2] and torch.equal(found["c"], torch.ones(2, 2))


def test_numpy_arrays_are_weights_if_the_program_has_allowed_them(tmp_path, allowed):
    torch.save({"model": {"a": np.arange(3.0)}, "best": np.float64(0.5)}, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth").state["a"].tolist() == [0, 1, 2]
    torch.serialization.add_safe_globals([type(np.dtype("O"))])
    torch.save({"model": {"odd": np.zeros(3, object)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="array of 'O8', not of numbers"):
        read_weights(tmp_path / "x.pth")
