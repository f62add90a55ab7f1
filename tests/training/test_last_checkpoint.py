"""The checkpoint to resume from, deletion of old checkpoints and of temporary files."""

from pathlib import Path

import pytest
import torch

from projects_deformable_detr.checkpoint import CLASS_NAMES, CheckpointError
from projects_deformable_detr.training.last_checkpoint import (
    check_state,
    find_last_checkpoint,
    is_finished,
    remove_old_checkpoints,
    remove_temporary_files,
    write_finished,
    write_last_checkpoint,
)

NAMES = [f"model_{iteration:07d}.pth" for iteration in (9, 19, 29)]


@pytest.fixture
def folder(tmp_path):
    """Output folder with three checkpoints, the newest of which is the last, and others to ignore."""
    for name in (*NAMES, "model_0000099.pth", "model_best.pth", "model_0000024.ckpt"):
        torch.save({"model": {"weight": torch.zeros(1000)}, CLASS_NAMES: ["ant", "bee"]}, tmp_path / name)
    write_last_checkpoint(tmp_path / NAMES[-1])
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-500])


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(folder, caplog):
    assert find_last_checkpoint(folder, "detectron2") == folder / NAMES[2] and not caplog.text
    truncate(folder / NAMES[2])
    assert find_last_checkpoint(folder, "detectron2") == folder / NAMES[1]
    (folder / NAMES[1]).write_bytes(b"")
    assert find_last_checkpoint(folder, "detectron2") == folder / NAMES[0]
    assert f"{NAMES[2]}: corrupt" in caplog.text and f"{NAMES[1]}: corrupt" in caplog.text
    assert f"resuming from the one before it, {folder / NAMES[0]}" in caplog.text
    assert find_last_checkpoint(folder, "detectron2") == folder / NAMES[0]
    assert caplog.text.count(f"{NAMES[2]}: corrupt") == 1  # an engine looks for it several times
    truncate(folder / NAMES[0])
    with pytest.raises(CheckpointError, match=rf"{NAMES[2]}: corrupt.*has no earlier checkpoint"):
        find_last_checkpoint(folder, "detectron2")


def test_a_damaged_final_checkpoint_is_replaced_by_the_newest(folder):
    torch.save({"model": {}}, folder / "model_final.pth")
    write_last_checkpoint(folder / "model_final.pth")
    truncate(folder / "model_final.pth")
    assert find_last_checkpoint(folder, "detectron2") == folder / "model_0000099.pth"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("bee", "ant"), r"2 classes \(ant, bee\), the data sets have 2 \(bee, ant\)"),
        (("ant", "bee", "cat"), r"2 classes \(ant, bee\), the data sets have 3 \(ant, bee, cat\)"),
    ],
)
def test_other_classes_are_rejected(folder, classes, message):
    with pytest.raises(CheckpointError, match=message):
        find_last_checkpoint(folder, "detectron2", classes)
    for known, for_evaluation in ((classes, True), (("ant", "bee"), False), (None, False)):
        assert find_last_checkpoint(folder, "detectron2", known, for_evaluation=for_evaluation)


@pytest.mark.parametrize(
    ("engine", "pointer", "message"),
    [
        ("detectron2", "", r"last_checkpoint is empty: .* checkpoint in the folder \(model_0000009"),
        ("detectron2", "model_0000024.ckpt", r"last_checkpoint names model_0000024\.ckpt.*--engine standalone"),
        ("standalone", "model_0000009.pth", r"last_checkpoint names model_0000009\.pth.*--engine detectron2"),
        ("detectron2", "gone.pth", r"last_checkpoint names gone\.pth, which does not exist"),
    ],
)
def test_an_unusable_pointer_is_an_error(folder, engine, pointer, message):
    (folder / "last_checkpoint").write_text(pointer)
    with pytest.raises(CheckpointError, match=message):
        find_last_checkpoint(folder, engine)


def test_weights_that_are_not_finite_are_not_resumed():
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"has NaN or infinite values in 1 of 2 tensors \(weight\)"):
        check_state(torch.nn.Linear(2, 1), model.state_dict())


def test_a_run_is_finished_until_the_next_checkpoint(folder):
    def finished(name, max_iter=30):
        return is_finished(folder / name, 30, max_iter, evaluates=True)

    (folder / "metrics.json").write_text('{"iteration": 29, "bbox/AP": 5.0}\n')  # no proof of the last files
    assert not finished(NAMES[2]) and is_finished(folder / NAMES[2], 30, 30, evaluates=False)
    write_finished(folder)
    assert finished(NAMES[2]) and not finished(NAMES[2], max_iter=31) and not finished(NAMES[1])
    write_last_checkpoint(folder / NAMES[2])
    assert not finished(NAMES[2])


@pytest.mark.parametrize(("keep", "left"), [(1, NAMES[2:]), (2, NAMES[1:]), (3, NAMES), (9, NAMES)])
def test_old_checkpoints_are_removed(folder, keep, left):
    written: list[Path] = []
    for name in (*NAMES, "model_best.pth", NAMES[-1]):
        remove_old_checkpoints(folder / name, written, keep)
    others = ["last_checkpoint", "model_0000024.ckpt", "model_0000099.pth", "model_best.pth"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*left, *others])


def test_checkpoints_of_an_earlier_process_are_kept(folder):
    before = sorted(folder.iterdir())
    remove_old_checkpoints(folder / NAMES[-1], [], 1)
    assert sorted(folder.iterdir()) == before


def test_temporary_files_are_removed(folder):
    before = sorted(folder.iterdir())
    for name in (
        ".model_final.pth.abcd_123",
        ".model_0000039.ckpt.x1y2z3w4",
        ".last_checkpoint.abcdefgh",
        ".finished.abcdefgh",
        ".failed_step_0000003_rank0.pth.abcdefgh",
    ):
        (folder / name).write_bytes(b"half")
    (folder / ".gitignore").write_text("*")
    remove_temporary_files(folder)
    assert sorted(folder.iterdir()) == [folder / ".gitignore", *before]
