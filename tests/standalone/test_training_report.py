"""train --report, and the gradient norm in metrics.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projects_deformable_detr.cli import report, train
from projects_deformable_detr.errors import UserError

pytest.importorskip("hotcoco", reason="reports need hotcoco")


@pytest.fixture(autouse=True)
def _catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projects_deformable_detr.data.catalog._registered", {})


def test_a_training_writes_its_report(make_args: Callable[..., Any], tmp_path: Path) -> None:
    args = make_args(tmp_path, "--engine", "standalone", "--report")
    train.run(args)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    norms = {line["iteration"]: line["grad_norm"] for line in lines if "total_loss" in line}
    assert norms.keys() == {19, 23} and min(norms.values()) > 0.1  # larger than after clipping
    (ap,) = [line["bbox/AP"] for line in lines if "bbox/AP" in line and line["iteration"] == 23]
    text = (tmp_path / "report.html").read_text()
    assert f"{ap:.2f} after 24 iterations" in text and "saved by the evaluation after 24 iterations" in text
    assert 'aria-label="gradient norm before clipping"' in text and "finished, 24 of 24 iterations" in text


def test_a_failed_report_does_not_fail_the_training(
    make_args: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UserError("no space left")

    monkeypatch.setattr("projects_deformable_detr.report.write_report", fail)
    options = ["SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", 0, "DATASETS.TEST", "()"]
    train.run(make_args(tmp_path, "--engine", "standalone", "--report", *options))
    assert (tmp_path / "model_final.pth").is_file()
    out = capsys.readouterr().err
    assert "The training is complete, but its report failed (no space left)" in out
    assert out.splitlines()[-1] == f"deformable-detr report {tmp_path}"


def test_missing_packages_are_an_error_before_the_training(
    make_args: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projects_deformable_detr.engine.is_installed", lambda name: name != "hotcoco")
    with pytest.raises(UserError, match=r"a report requires the package hotcoco.*projects-deformable-detr\[report\]"):
        report.check_can_report()
    with pytest.raises(UserError, match="requires the package hotcoco"):
        train.run(make_args(tmp_path / "out", "--engine", "standalone", "--report"))
    assert not (tmp_path / "out").exists()
