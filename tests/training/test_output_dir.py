"""Checks of the output folder; runs of both engines are tested in tests/standalone and tests/detectron2."""

import logging
import os
from pathlib import Path

import pytest

from projects_deformable_detr.errors import UserError
from projects_deformable_detr.training.output_dir import check_output_dir, log_unless_error


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
        (["metrics.json"], False, r"files of an earlier run \(metrics.json\)"),
    ],
)
def test_folders_that_do_not_fit_the_run(tmp_path: Path, files: list[str], resume: bool, message: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=message):
        check_output_dir(tmp_path, resume=resume, overwrite=False)


def test_folders_for_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("of an evaluation")
    (tmp_path / "metrics.json").write_text("")
    check_output_dir(tmp_path, resume=False, overwrite=False)
    check_output_dir(tmp_path / "new" / "below", resume=False, overwrite=False)
    assert not (tmp_path / "new").exists()


def test_messages_reach_the_log_unless_there_is_an_error(tmp_path: Path) -> None:
    logger = logging.getLogger("projects_deformable_detr.data")
    with pytest.raises(UserError), log_unless_error(tmp_path / "run"):
        logger.info("first")
        raise UserError("wrong")
    assert not (tmp_path / "run").exists()
    with log_unless_error(tmp_path / "run"):
        logger.warning("second")
    assert (tmp_path / "run" / "log.txt").read_text().endswith("second\n")
