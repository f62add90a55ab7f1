"""Configuration and logic of EMA, best checkpoint and early stopping, without training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from projects_deformable_detr import get_cfg
from projects_deformable_detr.config.training import callbacks_config
from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.training import BestCheckpointConfig, EarlyStoppingConfig, EmaConfig
from projects_deformable_detr.training.callbacks import BestCheckpoint, DetectorWriter, EarlyStopping, select_metric
from projects_deformable_detr.training.ema import ExponentialMovingAverage

EMA, BEST, STOP = "SOLVER.EMA", "TEST.BEST_CHECKPOINT", "TEST.EARLY_STOPPING"


def configured(*options: Any) -> Any:
    cfg = get_cfg("standalone")
    cfg.merge_from_list(["DATASETS.TEST", "('val',)", "TEST.EVAL_PERIOD", "4", *map(str, options)])
    return cfg


def test_configuration() -> None:
    config = callbacks_config(configured())
    assert config.ema is config.best_checkpoint is config.early_stopping is None
    enabled = [word for section in (EMA, BEST, STOP) for word in (f"{section}.ENABLED", True)]
    config = callbacks_config(configured(*enabled, f"{STOP}.PATIENCE", 3, f"{BEST}.MODE", "min", f"{EMA}.DECAY", 0.9))
    assert config.ema == EmaConfig(0.9) and config.early_stopping == EarlyStoppingConfig("bbox/AP", 3, 0.0)
    assert config.best_checkpoint is not None and config.best_checkpoint.mode == "min"


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        (BEST, ("TEST.EVAL_PERIOD", 0), "BEST_CHECKPOINT.ENABLED True requires .*TEST.EVAL_PERIOD must be .* got 0"),
        (STOP, ("TEST.EVAL_PERIOD", 0), "EARLY_STOPPING.ENABLED True requires .*TEST.EVAL_PERIOD must be .* got 0"),
        (BEST, ("DATASETS.TEST", "()"), "requires a data set to compute bbox/AP: set DATASETS.TEST"),
        (BEST, (f"{BEST}.MODE", "most"), "TEST.BEST_CHECKPOINT.MODE must be one of 'max', 'min', got 'most'"),
        (STOP, (f"{STOP}.PATIENCE", 0), "TEST.EARLY_STOPPING.PATIENCE must be at least 1, got 0"),
        (STOP, (f"{STOP}.MIN_DELTA", -1.0), "TEST.EARLY_STOPPING.MIN_DELTA must be at least 0, got -1.0"),
        (EMA, (f"{EMA}.DECAY", 1.0), r"SOLVER.EMA.DECAY must be in \(0, 1\), got 1.0"),
    ],
)
def test_invalid_values(section: str, options: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        callbacks_config(configured(f"{section}.ENABLED", True, *options))
    callbacks_config(configured(*options))  # unused


def test_an_unknown_metric_is_named() -> None:
    metrics = {"bbox/AP": 1.0, "bbox/AP50": 2.0, "bbox/AP-red": 3.0}
    assert select_metric(metrics, "bbox/AP-red") == 3.0
    with pytest.raises(ArgumentError, match="metric must be one of bbox/AP, bbox/AP50, or AP-CLASS of .* got 'AP'"):
        select_metric(metrics, "AP")


@pytest.mark.parametrize(("mode", "written"), [("max", [(0, 2.0), (3, 3.0)]), ("min", [(0, 2.0), (2, 1.0)])])
def test_the_best_evaluation_is_written(mode: str, written: list[tuple[int, float]], tmp_path: Path) -> None:
    best = BestCheckpoint(BestCheckpointConfig(mode=mode), DetectorWriter(tmp_path, ""))
    found = []
    for iteration, value in enumerate((2.0, 2.0, 1.0, 3.0, math.nan, math.inf)):
        best.update(value, iteration, nn.Linear(1, 1), is_main_process=True)
        path = tmp_path / "model_best.pth"
        found.append((torch.load(path, weights_only=True)["iteration"], best.best))
    assert list(dict.fromkeys(found)) == written
    other = BestCheckpoint(BestCheckpointConfig(mode=mode), DetectorWriter(tmp_path, ""))
    other.load_state_dict(best.state_dict())
    assert (other.iteration, other.best) == written[-1]


def test_early_stopping_counts_evaluations_without_an_improvement() -> None:
    stopping = EarlyStopping(EarlyStoppingConfig(patience=2, min_delta=1.0))
    counts = []
    for value in (math.nan, -5.0, -4.0, -3.0, math.inf, -2.5):
        stopping.update(value)
        counts.append(stopping.count)
    assert counts == [1, 0, 1, 0, 1, 2] and stopping.should_stop
    other = EarlyStopping(EarlyStoppingConfig(patience=3, min_delta=1.0))
    other.load_state_dict(stopping.state_dict())
    assert (other.best, other.count, other.should_stop) == (-3.0, 2, False)
    other.load_state_dict({"best": None, "count": 0})  # state written by earlier versions
    other.update(-100.0)
    assert other.best == -100.0


def test_averaged_and_trained_weights_are_swapped() -> None:
    model = nn.BatchNorm1d(1)
    ema = ExponentialMovingAverage(model, EmaConfig(0.75))

    def weights() -> tuple[float, float]:
        return model.weight.item(), model.running_mean.item()  # type: ignore[union-attr]

    ema.apply()  # without effect before the first update
    assert not ema.has_average and ema.averaged is model
    for value in (0.0, 4.0):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(value)  # type: ignore[union-attr]
        ema.update()
    with ema.applied():
        assert weights() == (1.0, 1.0) and ema.averaged is model
        with ema.applied():
            pass
        assert weights() == (1.0, 1.0)
        assert ema.state_dict()["model"]["weight"] == 4.0
    assert weights() == (4.0, 4.0) and ema.averaged.weight == 1.0
    ema.apply()
    state = {key: value.clone() for key, value in model.state_dict().items()}, ema.state_dict()
    other = nn.BatchNorm1d(1)
    resumed = ExponentialMovingAverage(other, EmaConfig(0.75))
    other.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    assert other.weight == 4.0 and resumed.averaged.weight == 1.0 and resumed.average.n_averaged == 2
