"""Checks of the output folder; runs of both engines are tested in tests/standalone and tests/detectron2."""

import fcntl
import logging
import os
from pathlib import Path

import pytest

from projects_deformable_detr.errors import UserError
from projects_deformable_detr.training import output_dir
from projects_deformable_detr.training.output_dir import check_output_dir, locked, log_unless_error, start_run


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="output_dir=.*file is not a folder"):
            check_output_dir(folder, resume=False, overwrite=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="output_dir=.*no permission to write to"):
        check_output_dir(tmp_path / "new", resume=False, overwrite=False)


@pytest.mark.parametrize(
    ("files", "resume", "message"),
    [
        ([], True, "there is no checkpoint to resume from"),
        (["model_0000003.pth", "model_final.pth"], True, "there is no checkpoint to resume from"),
        (["model_0000003.pth", "model_final.pth"], False, "model_0000003.pth, model_final.pth"),
        (["model_0000003.pth"], False, r"\(model_0000003.pth\): choose another `output_dir`, or remove"),
        (["model_0000003.pth", "last_checkpoint"], False, r": continue it with --resume, choose another"),
    ],
)
def test_folders_that_do_not_fit_the_run(tmp_path: Path, files: list[str], resume: bool, message: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=message):
        check_output_dir(tmp_path, resume=resume, overwrite=False)


def test_folders_for_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("of an evaluation")
    (tmp_path / "metrics.json").write_text("of a run that ended before its first checkpoint")
    (tmp_path / "model_zoo.pth").write_text("of the user")
    check_output_dir(tmp_path, resume=False, overwrite=False)
    check_output_dir(tmp_path / "new" / "below", resume=False, overwrite=False)
    assert not (tmp_path / "new").exists()


def test_only_an_explicit_overwrite_removes_checkpoints(tmp_path: Path) -> None:
    own, others = {"model_0000003.ckpt", "model_final.pth", "last_checkpoint"}, {"model_zoo.pth", "model_1.pth"}
    for name in own | others:
        (tmp_path / name).write_text("{}")
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="has files of an earlier run"):
        start_run(tmp_path, "", resume=False, overwrite=False)
    start_run(tmp_path, "", resume=True, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == own | others | {"metrics.json", "config.yaml"}
    start_run(tmp_path, "é", resume=False, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == others | {"metrics.json", "config.yaml"}
    assert not (tmp_path / "metrics.json").read_text()
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == "é"


def test_metrics_without_checkpoints_are_moved(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    start_run(tmp_path, "", resume=False, overwrite=False)
    assert not (tmp_path / "metrics.json").read_text() and (tmp_path / "metrics.json.old").read_text() == "{}"


def test_initial_weights_are_not_overwritten(tmp_path: Path) -> None:
    for name in ("model_final.pth", "pretrained.pth"):
        (tmp_path / name).write_text("{}")
    for weights in (tmp_path / ".." / tmp_path.name / "model_final.pth", tmp_path):
        with pytest.raises(UserError, match="--overwrite would remove `weights="):
            check_output_dir(tmp_path, resume=False, overwrite=True, weights=str(weights))
    for other in (str(tmp_path / "pretrained.pth"), "torchvision://resnet50", ""):
        check_output_dir(tmp_path, resume=False, overwrite=True, weights=other)


def test_messages_reach_the_log_unless_there_is_an_error(tmp_path: Path) -> None:
    logger = logging.getLogger("projects_deformable_detr.data")
    with pytest.raises(UserError), log_unless_error(tmp_path / "run"):
        logger.info("first")
        raise UserError("wrong")
    assert not (tmp_path / "run").exists()
    with log_unless_error(tmp_path / "run"):
        logger.warning("second")
    assert (tmp_path / "run" / "log.txt").read_text().endswith("] WARNING: second\n")


def test_only_an_explicit_overwrite_removes_event_files_of_earlier_runs(tmp_path: Path) -> None:
    old, new = (
        tmp_path / "events.out.tfevents.1700000000.host.7.0",
        tmp_path / "events.out.tfevents.9900000000.host.7.0",
    )
    for path in (old, new):
        path.write_bytes(b"events")
    start_run(tmp_path, "", resume=False, overwrite=False)
    assert old.exists()
    start_run(tmp_path, "", resume=False, overwrite=True)
    assert not old.exists() and new.exists()


def test_a_folder_has_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_dir, "_LOCK_SECONDS", 0.2)
    folder = tmp_path / "run"
    for _ in range(2):
        with locked(folder):
            with locked(folder, enabled=False):
                pass
            with pytest.raises(UserError, match=r"another run is writing to .*run: .* `output_dir`"), locked(folder):
                raise AssertionError
    assert not list(folder.iterdir())


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", fail)
    with locked(tmp_path), locked(tmp_path):
        pass
