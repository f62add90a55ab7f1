"""EMA, best checkpoint and early stopping in complete and in resumed runs."""

import json
import logging
import math
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from projects_deformable_detr.checkpoint import CheckpointError, read_weights
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.evaluation import Evaluator
from projects_deformable_detr.standalone import main
from projects_deformable_detr.standalone.callbacks import EarlyStopping
from projects_deformable_detr.standalone.module import DetectionModule
from projects_deformable_detr.training import EarlyStoppingConfig
from projects_deformable_detr.training.callbacks import DetectorWriter

Make = Callable[..., Namespace]
EMA = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.8)
BEST = ("TEST.BEST_CHECKPOINT.ENABLED", True, "TEST.EVAL_PERIOD", 4)
STOP = ("TEST.EARLY_STOPPING.ENABLED", True, "TEST.EARLY_STOPPING.PATIENCE", 2, "TEST.EVAL_PERIOD", 4)


def network(path: Path) -> dict[str, torch.Tensor]:
    return {key: value for key, value in read_weights(path).state.items() if key.startswith("detector.")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows(folder: Path) -> dict[int, float]:
    """Returns the logged AP by iteration."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert len({line["iteration"] for line in lines if "bbox/AP" in line}) == sum("bbox/AP" in line for line in lines)
    return {line["iteration"]: line["bbox/AP"] for line in lines if "bbox/AP" in line}


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int, run: Callable[[], Any]) -> None:
    original = DetectionModule.training_step

    def killed(self: DetectionModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == step:
            raise RuntimeError("killed")
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionModule, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run()
    torch.manual_seed(1234)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """``scores([3.0, 5.0])`` sets the AP of the next evaluations, independently of the model."""

    def set_scores(values: list[float]) -> None:
        left = iter(values)
        monkeypatch.setattr(Evaluator, "evaluate", lambda *_: {"bbox": {"AP": next(left), "AP50": 7.0, "AP-red": 1.0}})

    return set_scores


@pytest.fixture(scope="module")
def averaged(make_args: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("averaged")
    # Batch norms that update their statistics, and a frozen stem.
    norms = ("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 1)
    return folder, main(make_args(folder, *EMA, *norms, "SOLVER.CHECKPOINT_PERIOD", 1))


def test_average_matches_recomputation(averaged: tuple[Path, dict[str, Any]]) -> None:
    """The average is recomputed from the trained weights, which every checkpoint also contains."""
    folder, _ = averaged
    expected: dict[str, torch.Tensor] = {}
    for iteration in range(24):
        content = torch.load(folder / f"model_{iteration:07d}.ckpt", weights_only=True)
        for key, value in content["current_model_state"].items():
            if value.is_floating_point():
                expected[key] = 0.8 * expected[key] + 0.2 * value if iteration else value.clone()
        assert all(torch.allclose(content["state_dict"][key], value, atol=1e-6) for key, value in expected.items())
    trained = {key: value for key, value in content["current_model_state"].items() if key in expected}
    assert any("running_mean" in key for key in expected)
    assert not same(expected, trained)
    frozen = [key for key in trained if "backbone.conv1" in key]
    assert frozen and all(torch.equal(content["state_dict"][key], trained[key]) for key in frozen)


def test_evaluations_and_files_use_the_average(
    averaged: tuple[Path, dict[str, Any]], make_args: Make, tmp_path: Path
) -> None:
    folder, metrics = averaged
    final = network(folder / "model_final.pth")
    last = torch.load(folder / "model_0000023.ckpt", weights_only=True)
    assert same(final, network(folder / "model_0000023.ckpt"))
    assert not torch.equal(final["detector.decoder.class_heads.0.weight"],
                           last["current_model_state"]["detector.decoder.class_heads.0.weight"])  # fmt: skip
    assert "averaged weights" in (folder / "log.txt").read_text()
    for name in ("model_final.pth", "model_0000023.ckpt"):
        options = make_args(tmp_path, "--eval-only", "MODEL.RESNETS.NORM", "BN", "MODEL.WEIGHTS", folder / name)
        assert main(options)["bbox"] == pytest.approx(metrics["bbox"], abs=0.1, nan_ok=True)
        found, expected = (
            json.loads((run / "inference" / "coco_instances_results.json").read_text()) for run in (tmp_path, folder)
        )
        assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-4)


def test_interrupted_run_resumes_with_its_average(
    make_args: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    main(make_args(whole, *EMA, *BEST))
    kill_at(monkeypatch, 18, lambda: main(make_args(part, *EMA, *BEST)))
    assert (part / "last_checkpoint").read_text() == "model_0000015.ckpt"  # an evaluation's iteration
    main(make_args(part, "--resume", *EMA, *BEST))
    assert same(network(whole / "model_final.pth"), network(part / "model_final.pth"))
    ends = [torch.load(run / "model_0000023.ckpt", weights_only=True) for run in (whole, part)]
    assert same(ends[0]["current_model_state"], ends[1]["current_model_state"])
    assert ends[0]["callbacks"]["BestCheckpoint"] == ends[1]["callbacks"]["BestCheckpoint"]
    assert rows(whole) == pytest.approx(rows(part), nan_ok=True)


def test_resuming_without_ema_is_rejected(averaged: tuple[Path, dict[str, Any]], make_args: Make) -> None:
    norms = ("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 1)
    with pytest.raises(UserError, match="set SOLVER.EMA.ENABLED True"):
        main(make_args(averaged[0], "--resume", *norms, "SOLVER.MAX_ITER", 25))


def test_final_evaluation_updates_the_best_metric(
    make_args: Make, tmp_path: Path, scores: Callable[[list[float]], None]
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    scores([5.0, 3.0, 4.0])
    main(make_args(whole, *BEST, *EMA, "SOLVER.MAX_ITER", 12, "SOLVER.STEPS", "()"))

    scores([3.0, 9.0])
    main(make_args(part, *BEST, *EMA, "SOLVER.MAX_ITER", 6, "SOLVER.STEPS", "()"))
    best = torch.load(part / "model_best.pth", weights_only=True)
    assert best["iteration"] == 5
    assert same(best["model"], network(part / "model_final.pth"))
    assert (part / "last_checkpoint").read_text() == "model_0000005.ckpt"

    scores([5.0, 4.0])  # between the metrics of the first run
    main(make_args(part, "--resume", *BEST, *EMA, "SOLVER.MAX_ITER", 12, "SOLVER.STEPS", "()"))
    assert torch.load(part / "model_best.pth", weights_only=True)["iteration"] == 5
    # The rest of the checkpoint is unchanged: the run continues as if it had not ended.
    assert same(network(whole / "model_final.pth"), network(part / "model_final.pth"))
    ends = [torch.load(run / "model_0000011.ckpt", weights_only=True) for run in (whole, part)]
    assert same(ends[0]["current_model_state"], ends[1]["current_model_state"])


@pytest.mark.parametrize(("period", "failing"), [(9, "model_best"), (4, "model_best"), (9, "model_final")])
def test_resuming_writes_a_model_that_could_not_be_written(
    make_args: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, period: int, failing: str
) -> None:
    options = (*BEST, "TEST.EVAL_PERIOD", period, "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", "()")
    options += ("SOLVER.CHECKPOINT_PERIOD", 2)
    write = DetectorWriter.write

    def fail(self: DetectorWriter, name: str, *arguments: Any, **options: Any) -> None:
        if name == failing:
            raise CheckpointError("the disk is full")
        write(self, name, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="disk is full"):
        patch.setattr(DetectorWriter, "write", fail)
        main(make_args(tmp_path, *options))
    assert not (tmp_path / f"{failing}.pth").exists() and not (tmp_path / "finished").exists()
    assert "AP" in main(make_args(tmp_path, "--resume", *options))["bbox"]
    assert (tmp_path / "model_best.pth").is_file() and (tmp_path / "model_final.pth").is_file()
    assert main(make_args(tmp_path, "--resume", *options)) == {}


def test_early_stopping(
    make_args: Make, tmp_path: Path, scores: Callable[[list[float]], None], caplog: pytest.LogCaptureFixture
) -> None:
    scores([4.0, 4.5, math.nan])  # a fourth evaluation would be an error
    with caplog.at_level(logging.INFO, "projects_deformable_detr"):
        metrics = main(make_args(tmp_path, *STOP, *EMA, "TEST.EARLY_STOPPING.MIN_DELTA", 1.0))
    assert math.isnan(metrics["bbox"]["AP"])
    assert "Stopping early at iteration 11: bbox/AP has not risen above 4.0000 by more than 1 in 2" in caplog.text
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 11
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000011.ckpt"
    last = torch.load(tmp_path / "model_0000011.ckpt", weights_only=True)
    assert same(network(tmp_path / "model_final.pth"), network(tmp_path / "model_0000011.ckpt"))
    assert not same(last["state_dict"], last["current_model_state"])  # the trained weights are kept

    # A resumed run ends immediately; with more patience or without early stopping, it continues.
    scores([])
    assert main(make_args(tmp_path, "--resume", *STOP, *EMA)) == {}
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000011.ckpt"
    other = Path(shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}_other")))
    for folder, more in ((tmp_path, ("PATIENCE", 3)), (other, ("ENABLED", False))):
        scores([5.0, 8.0, 8.0])
        main(make_args(folder, "--resume", *STOP, *EMA, f"TEST.EARLY_STOPPING.{more[0]}", more[1]))
        assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == 23
    assert same(network(tmp_path / "model_final.pth"), network(other / "model_final.pth"))


def test_early_stopping_loads_the_state_of_lightnings_callback() -> None:
    """Checkpoints of earlier versions have this state."""
    stopping = EarlyStopping(EarlyStoppingConfig(patience=3))
    stopping.load_state_dict({"wait_count": 2, "best_score": torch.tensor(4.0), "patience": 5})
    assert (stopping.count, stopping.best, stopping.config.patience) == (2, 4.0, 3)


def test_entropy_of_attention_is_logged(make_args: Make, tmp_path: Path) -> None:
    """With EMA, of the averaged weights; a final evaluation is included."""
    keys = (*EMA, "SOLVER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 2, "TEST.ATTENTION_ENTROPY", 3)
    main(make_args(tmp_path, *keys))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    found = {line["iteration"]: line for line in lines if "attention/negative_entropy_0" in line}
    assert list(found) == [1, 2]
    # Two levels with four points each, whose weights are almost equal at the start.
    for line in found.values():
        assert -math.log(8) - 1e-5 <= line["attention/negative_entropy_1"] < -0.9 * math.log(8)
    with pytest.raises(UserError, match="TEST.ATTENTION_ENTROPY must be 0"):
        main(make_args(tmp_path / "other", *keys, "MODEL.DETR.DEC_LAYERS", 0))


@pytest.mark.usefixtures("forkserver")
def test_two_processes_stop_together(make_args: Make, tmp_path: Path) -> None:
    """AP does not rise by 90 within four iterations."""
    options = ("TEST.EARLY_STOPPING.MIN_DELTA", 90.0, "TEST.EARLY_STOPPING.PATIENCE", 1, "SOLVER.CHECKPOINT_PERIOD", 99)
    main(make_args(tmp_path, "--num-gpus", 2, *STOP, *EMA, *BEST, *options, "SOLVER.BASE_LR", 1e-12))
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] in (3, 7)
    assert same(final["model"], network(tmp_path / f"model_{final['iteration']:07d}.ckpt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*BEST, "TEST.BEST_CHECKPOINT.METRIC", "AP"), "TEST.BEST_CHECKPOINT.METRIC must be one of bbox/AP.*got 'AP'"),
        ((*STOP, "TEST.EARLY_STOPPING.METRIC", "loss"), "TEST.EARLY_STOPPING.METRIC must be .*got 'loss'"),
    ],
)
def test_invalid_values_name_their_key(
    make_args: Make, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        main(make_args(tmp_path, *options))
