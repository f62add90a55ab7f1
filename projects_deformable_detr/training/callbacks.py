"""Best checkpoint and early stopping, independent of the engine."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint import save_detector
from ..errors import ArgumentError, NonNegative, NonNegativeInt, PositiveInt, check_choice, check_ranges
from .ema import EmaConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BestCheckpointConfig:
    """Configuration of `BestCheckpoint`.

    Attributes:
        metric: name of the metric in logs, such as ``bbox/AP``.
        mode: ``"max"`` or ``"min"``.
    """

    metric: str = "bbox/AP"
    mode: str = "max"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("max", "min"))


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """Configuration of `EarlyStopping`.

    Attributes:
        metric: name of the metric in logs, such as ``bbox/AP``; larger is better.
        patience: number of consecutive evaluations without an improvement after which training ends.
        min_delta: minimum improvement, exclusive.
    """

    metric: str = "bbox/AP"
    patience: PositiveInt = 10
    min_delta: NonNegative = 0.0

    def __post_init__(self) -> None:
        check_ranges(EarlyStoppingConfig, vars(self))


@dataclass(frozen=True)
class CallbacksConfig:
    """Configuration of all training callbacks.

    Attributes:
        ema: exponential moving average of the weights, or None.
        best_checkpoint: best checkpoint, or None.
        early_stopping: early stopping, or None.
        eval_period: iterations between evaluations; 0 evaluates after the last iteration only.
        checkpoint_period: iterations between checkpoints.
        checkpoint_keep: number of these checkpoints to keep; 0: all.
        attention_entropy: number of evaluation images whose attention entropy is logged, see `EntropyMeter`; 0: none.
    """

    ema: EmaConfig | None
    best_checkpoint: BestCheckpointConfig | None
    early_stopping: EarlyStoppingConfig | None
    eval_period: NonNegativeInt
    checkpoint_period: PositiveInt
    checkpoint_keep: NonNegativeInt = 0
    attention_entropy: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_ranges(CallbacksConfig, vars(self))


def select_metric(metrics: Mapping[str, float], metric: str) -> float:
    """Returns a metric of an evaluation by its name in logs.

    Raises:
        ArgumentError: if there is no such metric; the message lists the available ones.
    """
    if metric not in metrics:
        names = [name for name in metrics if "/AP-" not in name]
        classes = ", or AP-CLASS of a class" if len(names) < len(metrics) else ""
        raise ArgumentError("metric", f"must be one of {', '.join(names)}{classes}, got {metric!r}")
    return float(metrics[metric])


@dataclass(frozen=True)
class DetectorWriter:
    """Writes the detector alone, in the format of both engines.

    Attributes:
        output_dir: folder of the files.
        cfg_text: the config as YAML.
        class_names: class names, indexed by class id.
        is_averaged: whether to log that the weights are an exponential moving average.
    """

    output_dir: Path
    cfg_text: str
    class_names: tuple[str, ...] | None = None
    is_averaged: bool = False

    def write(self, name: str, detector: nn.Module, iteration: int, *, is_main_process: bool = True) -> None:
        """Writes ``<name>.pth`` in the main process; must be called in all processes if the detector is sharded.

        ``iteration`` is the last training iteration, counted from 0.
        """
        path, weights = self.output_dir / f"{name}.pth", detector.state_dict()
        if not is_main_process:
            return
        save_detector(path, weights, iteration=iteration, cfg_text=self.cfg_text, class_names=self.class_names)
        logger.info("Saved %s%s", path, " (averaged weights)" if self.is_averaged else "")


class BestCheckpoint:
    """Writes ``model_best.pth`` whenever an evaluation yields the best metric of the run so far.

    NaN and infinite values are ignored. The state is saved in checkpoints, so that a resumed run keeps the best metric.
    """

    def __init__(self, config: BestCheckpointConfig, writer: DetectorWriter) -> None:
        self.config = config
        self.writer = writer
        self.best: float | None = None
        self.iteration = -1

    def update(self, value: float, iteration: int, detector: nn.Module, *, is_main_process: bool) -> None:
        """Updates the best metric after ``iteration``, counted from 0; the main process writes the file."""
        sign = 1 if self.config.mode == "max" else -1
        if math.isfinite(value) and (self.best is None or sign * value > sign * self.best):
            self.best, self.iteration = value, iteration
            logger.info("%s is %.4f, the best so far", self.config.metric, value)
            self.writer.write("model_best", detector, iteration, is_main_process=is_main_process)
        elif self.best is None:
            logger.warning("%s is %s: model_best.pth has not been written yet", self.config.metric, value)
        else:
            best = (self.config.metric, value, self.best, self.iteration)
            logger.info("%s is %.4f; the best is %.4f, from iteration %d", *best)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {"best": self.best, "iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the state of a checkpoint."""
        self.best, self.iteration = state["best"], state["iteration"]


class EarlyStopping:
    """Ends training after ``patience`` consecutive evaluations without an improvement of the metric.

    NaN and infinite values do not count as improvements. Because the state is saved in checkpoints, a stopped run
    continues after resuming only with a larger patience.
    """

    def __init__(self, config: EarlyStoppingConfig) -> None:
        self.config = config
        self.best = -math.inf
        self.count = 0

    @property
    def should_stop(self) -> bool:
        """Whether the patience is exhausted."""
        return self.count >= self.config.patience

    def update(self, value: float) -> None:
        """Counts evaluations without an improvement."""
        if math.isfinite(value) and value > self.best + self.config.min_delta:
            self.best, self.count = value, 0
        else:
            self.count += 1

    def log_stop(self, iteration: int) -> None:
        """Logs that training stops after ``iteration``, counted from 0."""
        logger.info(
            "Stopping early at iteration %d: %s has not risen above %.4f by more than %g in %d evaluations",
            iteration, self.config.metric, self.best, self.config.min_delta, self.count,
        )  # fmt: skip

    def log_stopped_before(self, iteration: int) -> None:
        """Logs that the resumed run had stopped after ``iteration``."""
        logger.info(
            "This run stopped early at iteration %d and is finished; --eval-only --resume evaluates it again. To "
            "continue, set the patience of early stopping above %d or disable early stopping", iteration, self.count,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {"best": self.best, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the state of a checkpoint; earlier versions stored None before the first improvement."""
        self.best, self.count = -math.inf if state["best"] is None else state["best"], state["count"]
