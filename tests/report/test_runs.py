"""Reading of output folders."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from projects_deformable_detr.errors import UserError
from projects_deformable_detr.report.runs import read_runs


def test_scalars_and_losses_by_layer(make_run: Callable[..., Path]) -> None:
    (run,) = read_runs([make_run()])
    assert run.scalars["total_loss"] == {19: 4.0, 59: 2.0}
    assert run.losses == {
        "loss_ce": {"": {19: 0.5, 59: 0.5}, "0": {19: 0.7, 59: 0.7}, "enc": {19: 0.9, 59: 0.9}},
        "loss_bbox": {"": {19: 1.5, 59: 1.5}, "0": {19: 1.75, 59: 1.75}},
    }
    assert (run.iterations, run.state) == (60, "finished, 60 of 60 iterations")
    assert (run.seconds_per_iteration, run.images_per_second) == (0.5, 8.0)
    (metrics,) = run.metrics
    assert (metrics.data, metrics.kind) == ("", "bbox") and math.isnan(metrics.values["APl"][59])
    assert {part for part, _ in run.missing} == {"Memory", "Environment of the training", "Metrics over time"}


def test_resumed_and_interrupted_runs(make_run: Callable[..., Path]) -> None:
    """The run was resumed from a checkpoint of iteration 39, and killed while it wrote a line."""
    lines = [{"iteration": i, "total_loss": float(i)} for i in (19, 39, 59, 79)]
    lines += [{"iteration": 59, "total_loss": 1.0, "lr": math.inf}, {"iteration": 79, "total_loss": math.nan}]
    (run,) = read_runs([make_run(lines=[*lines, '{"iteration": 99, "total_lo'])])
    assert run.scalars == {"total_loss": {19: 19.0, 39: 39.0, 59: 1.0}}
    assert run.state == "finished, 60 of 60 iterations"
    missing = dict(run.missing)
    assert missing["1 lines of metrics.json"].startswith("they are not JSON")
    assert missing["2 values of curves"] == "NaN or infinite values of total_loss, lr"
    assert "no evaluation ended" in missing["Metrics over time"] and "Losses by decoder layer" in missing
    (run,) = read_runs([make_run("short", lines=[{"iteration": 19, "total_loss": 3.0}])])
    assert run.state == "not finished: 20 of 60 iterations"
    folder = make_run("without", lines=[])
    (folder / "finished").touch()
    assert read_runs([folder])[0].state == "finished"
    lines = [
        {"iteration": 59, "total_loss": 3.0},
        {"iteration": 60, "bbox/AP": 1.0, "attention/negative_entropy_0": -1},
    ]
    (run,) = read_runs([make_run("entropy", lines=lines)])  # Detectron2's final evaluation
    assert (run.completed(39), run.completed(59), run.completed(60)) == (40, 60, 60)
    assert run.state == "finished, 60 of 60 iterations"


def test_plain_detectron2(make_run: Callable[..., Path]) -> None:
    config = "MODEL: {META_ARCHITECTURE: GeneralizedRCNN, BACKBONE: {NAME: build_resnet_fpn_backbone}}\n"
    config += (
        "DATASETS: {TRAIN: [coco_2017_train], TEST: [coco_2017_val]}\nSOLVER: {IMS_PER_BATCH: 16, MAX_ITER: 100}\n"
    )
    lines = [
        {"iteration": 19, "loss_box_reg": 0.1, "loss_rpn_cls": 0.2, "total_loss": 0.3, "time": 0.25, "data_time": 0.0},
        {"iteration": 99, "a/bbox/AP": 30.0, "a/segm/AP-x/y": 20.0, "b/bbox/AP": 10.0, "bbox_TTA/AP": 31.0},
    ]
    folder = make_run(config=config, lines=lines)
    rule = "-" * 10 + "  " + "-" * 20
    rows = f"Environment info:\n{rule}\nsys.platform  linux\nPyTorch       2.14.1 @/x\n{rule}\nother\n"
    (folder / "log.txt").write_text(f"[11/29] d2: {rows}\n iter: 19  max_mem: 1234M\n iter: 39  max_mem: 5678M\n")
    (run,) = read_runs([folder])
    assert run.losses == {"loss_box_reg": {"": {19: 0.1}}, "loss_rpn_cls": {"": {19: 0.2}}}
    assert [(item.data, item.kind, dict(item.values)) for item in run.metrics] == [
        ("a", "bbox", {"AP": {99: 30.0}}),
        ("a", "segm", {"AP-x/y": {99: 20.0}}),
        ("b", "bbox", {"AP": {99: 10.0}}),
        ("", "bbox_TTA", {"AP": {99: 31.0}}),
    ]
    assert run.images_per_second == 64 and run.memory == 5678
    assert run.environment == [("sys.platform", "linux"), ("PyTorch", "2.14.1 @/x")]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "config.yaml does not exist"),
        ("a: [", "cannot be interpreted"),
        ("model: !!python/object:x.Y {}", "cannot be interpreted"),
        ("- a", "it has no sections"),
        ("SOLVER: {IMS_PER_BATCH: many}", "SOLVER.IMS_PER_BATCH must be of type int"),
    ],
)
def test_configs_that_cannot_be_read(make_run: Callable[..., Path], config: str | None, reason: str) -> None:
    (run,) = read_runs([make_run(config=config)])
    assert run.data is None and any(reason in text for _, text in run.missing)


def test_errors(make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such output folder"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has none of metrics.json, config.yaml and inference/"):
        read_runs([tmp_path / "empty"])
    folder = make_run()
    with pytest.raises(UserError, match="the same folder is given twice"):
        read_runs([folder, folder])
    (tmp_path / "b").mkdir()
    other = folder.rename(tmp_path / "b" / "run")
    assert [run.name for run in read_runs([make_run(), other])] == [str(folder), str(other)]
