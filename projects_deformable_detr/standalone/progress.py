"""Training progress: a progress bar or log lines, and scalars for the loggers."""

import datetime
import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from fvcore.common.history_buffer import HistoryBuffer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from ..training.progress import RemainingTime

logger = logging.getLogger(__name__)

PERIOD = 20  # iterations between reports and window of their medians, as in Detectron2
_LAYER_SUFFIX = re.compile(r"_(\d+|enc)$")  # losses of other layers, such as loss_ce_0, are not shown


class _Bar(tqdm):  # type: ignore[type-arg]
    """Progress bar with a given remaining time."""

    remaining = "?"

    @property
    def format_dict(self) -> dict[str, Any]:
        """Values of ``bar_format``."""
        return {**super().format_dict, "eta": self.remaining}


class Progress(L.Callback):
    """Shows a progress bar in a terminal, or logs a line every 20 iterations, and passes scalars to the loggers.

    Lightning's ``TQDMProgressBar`` counts the batches of an epoch, which never ends here, instead of iterations.
    """

    def __init__(self) -> None:
        self.history: dict[str, HistoryBuffer] = {}
        self.bar: _Bar | None = None
        self._clock = 0.0  # end of the last iteration, evaluation or report
        self._data_time = self._lr = 0.0
        self._evaluation_start = self._evaluation_report = 0.0

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """Opens the bar."""
        self.remaining_time = RemainingTime(trainer.max_steps, int(trainer.val_check_interval))
        # Some terminals report no columns.
        if trainer.is_global_zero and sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).columns > 0:
            self.bar = _Bar(
                total=trainer.max_steps,
                initial=trainer.global_step,
                dynamic_ncols=True,
                file=sys.stdout,
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{eta}, {rate_fmt}{postfix}]",
            )
        self._clock = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Measures the time spent waiting for data."""
        self._data_time = time.perf_counter() - self._clock
        # Read here because the scheduler steps before the end of the iteration.
        self._lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """Records every iteration; reports every 20th and the last one."""
        now = time.perf_counter()
        for name, value in {**module.last_losses, "time": now - self._clock, "data_time": self._data_time}.items():
            self.history.setdefault(name, HistoryBuffer(1000)).update(value)
        self._clock = now
        self.remaining_time.end_iteration()
        step = trainer.global_step
        if self.bar is not None:
            self.bar.remaining = tqdm.format_interval(self.remaining_time.seconds(step))
            self.bar.update()
            self.bar.set_postfix_str(_losses_text(module.last_losses), refresh=False)
        if trainer.is_global_zero and (step % PERIOD == 0 or step == trainer.max_steps):
            self._report(trainer, module, step)
            self._clock = time.perf_counter()

    def _report(self, trainer: L.Trainer, module: Any, step: int) -> None:
        scalars = {name: float(values.median(PERIOD)) for name, values in self.history.items()}
        scalars["lr"] = self._lr
        scalars["eta_seconds"] = self.remaining_time.seconds(step)
        if module.grad_norm is not None:
            scalars["grad_norm"] = float(module.grad_norm)
        for scalar_logger in trainer.loggers:
            scalar_logger.log_metrics(scalars, step)
        if self.bar is not None:
            return
        eta = datetime.timedelta(seconds=int(scalars["eta_seconds"]))
        times = f"time: {scalars['time']:.4f}  data_time: {scalars['data_time']:.4f}  lr: {self._lr:.4g}"
        if torch.cuda.is_available():
            times += f"  max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M"
        logger.info("eta: %s  iter: %d/%d  %s  %s", eta, step, trainer.max_steps, _losses_text(scalars), times)

    def on_validation_start(self, *_: Any) -> None:
        """Starts timing the evaluation."""
        self._evaluation_start = self._evaluation_report = time.perf_counter()

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Logs a line every ten seconds."""
        now = time.perf_counter()
        if now - self._evaluation_report > 10:
            self._evaluation_report = now
            total = trainer.num_val_batches[dataloader_idx]
            seconds = (now - self._evaluation_start) / (batch_idx + 1) * (total - batch_idx - 1)
            eta = datetime.timedelta(seconds=int(seconds))
            logger.info("Evaluating: batch %d of %d, eta: %s", batch_idx + 1, total, eta)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        """Excludes the evaluation from the next iteration's time."""
        self._clock = time.perf_counter()
        if trainer.state.fn == TrainerFn.FITTING:
            self.remaining_time.end_evaluation()

    def on_train_end(self, *_: Any) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()


def _losses_text(scalars: dict[str, float]) -> str:
    losses = [name for name in scalars if "loss" in name and not _LAYER_SUFFIX.search(name)]
    return "  ".join(f"{name}: {scalars[name]:.4g}" for name in losses)


class JsonLogger(Logger):
    """Appends scalars to ``metrics.json`` in Detectron2's format, one JSON object per line."""

    name, version = "json", 0

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Does nothing; ``config.yaml`` contains the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a line; ``iteration`` counts from 0 and ``step`` from 1."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        with self.path.open("a") as file:
            file.write(json.dumps({**values, "iteration": (step or 0) - 1}, sort_keys=True) + "\n")


class EventLogger(TensorBoardLogger):
    """Writes TensorBoard events only; Lightning's logger also writes an empty ``hparams.yaml``."""

    @rank_zero_only
    def save(self) -> None:
        """Writes buffered events."""
        self.experiment.flush()
