"""What happens beside the training step: checkpoints that survive a kill, and progress that one can read."""

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
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed
from tqdm import tqdm

from ..checkpoint import write_atomically
from ..errors import UserError
from .monitors import NetworkWriter, stopped_early

logger = logging.getLogger(__name__)

_POINTER = "last_checkpoint"  # Detectron2's name for it, too
PERIOD = 20  # iterations between two lines, as in Detectron2
_WINDOW = 20  # iterations whose median is reported
_OF_OTHER_LAYERS = re.compile(r"_(\d+|enc)$")  # loss_ce_0 and so on: for the loggers, not for the eye


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames: Lightning's own writes to /tmp, and a move from there is not atomic."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves, then points ``last_checkpoint`` to the file."""
        write_atomically(path, checkpoint)
        pointer = Path(path).with_name(_POINTER)
        fresh = pointer.with_name(f".{_POINTER}")
        fresh.write_text(Path(path).name)
        fresh.replace(pointer)


def find_last_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint that ``--resume`` goes on from, or None.

    Raises:
        UserError: if it is gone, or is of the Detectron2 engine.
    """
    pointer = output_dir / _POINTER
    if not pointer.is_file():
        return None
    path = output_dir / pointer.read_text().strip()
    if path.suffix != ".ckpt":
        raise UserError(
            f"{pointer} names {path.name}, a checkpoint of the Detectron2 engine: resume with --engine detectron2, or "
            f"start from its weights with MODEL.WEIGHTS {path} and another OUTPUT_DIR"
        )
    if not path.is_file():
        raise UserError(f"{pointer} names {path.name}, which is not there: put it back, or remove {pointer}")
    return path


def forget_last_checkpoint(output_dir: Path) -> None:
    """For a run that starts anew: an older run's checkpoints stay, but are no longer what ``--resume`` finds."""
    (output_dir / _POINTER).unlink(missing_ok=True)


class SameBeginning(L.Callback):
    """Every machine has looked for the last checkpoint in its own OUTPUT_DIR: all must have found the same.

    Args:
        last: the checkpoint that this process begins with; None: at the start.
    """

    def __init__(self, last: Path | None) -> None:
        self.name = last.name if last else "none"

    def setup(self, *_: Any, **__: Any) -> None:
        """Compares.

        Raises:
            UserError: on every rank, so that none waits for another.
        """
        if not distributed.is_initialized():
            return
        names = [""] * distributed.get_world_size()
        distributed.all_gather_object(names, self.name)
        if len(set(names)) > 1:
            raise UserError(
                f"the machines found different last checkpoints ({', '.join(sorted(set(names)))}): give --resume to "
                "all of them or to none, and an OUTPUT_DIR that they share"
            )


class PeriodicCheckpoint(L.Callback):
    """Saves the whole state every ``period`` iterations and at the end, and the network as ``model_final.pth``.

    Args:
        output_dir: where to.
        period: iterations.
        writer: of the network.
        again: save once more after an evaluation of the same iteration, also after the one at the end, for what
            callbacks have learnt from it. Before it, too: an evaluation may be what kills a run.
    """

    def __init__(self, output_dir: Path, period: int, writer: NetworkWriter, again: bool = False) -> None:
        self.output_dir = output_dir
        self.period = period
        self.writer = writer
        self.again = again
        self._saved_at = -1

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """An older run's checkpoint is not this one's; not before everything else has proved sound."""
        if trainer.is_global_zero and trainer.global_step == 0:
            forget_last_checkpoint(self.output_dir)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """At its period, and after the last iteration."""
        step = trainer.global_step
        if step % self.period == 0 or step == trainer.max_steps:
            self._save(trainer)
        if step == trainer.max_steps:
            self._write_final(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        """After a training that ends early; and again, if that is wanted."""
        if stopped_early(trainer):
            self._save(trainer)
            self._write_final(trainer, module)
        elif self.again and trainer.state.fn != TrainerFn.FITTING:
            self._amend(trainer)
        elif self.again and self._saved_at == trainer.global_step:
            self._save(trainer)

    def _path(self, trainer: L.Trainer) -> Path:
        """Counts iterations as Detectron2 names its files: from 0, the one just done."""
        return self.output_dir / f"model_{trainer.global_step - 1:07d}.ckpt"

    def _amend(self, trainer: Any) -> None:
        """Only the callbacks' states: after a training Lightning no longer has what was trained, if it is averaged."""
        path = self._path(trainer)
        if not trainer.is_global_zero or find_last_checkpoint(self.output_dir) != path:
            return
        content = torch.load(path, map_location="cpu", weights_only=True)
        states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}
        content["callbacks"] |= {key: state for key, state in states.items() if state}
        write_atomically(path, content)

    def _save(self, trainer: L.Trainer) -> None:
        path = self._path(trainer)
        trainer.save_checkpoint(path)
        self._saved_at = trainer.global_step
        logger.info("Saved %s", path)

    def _write_final(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            self.writer.write("model_final", module, trainer.global_step - 1)


class Progress(L.Callback):
    """Losses, times and ETA: a bar on a terminal, else a line every 20 iterations; all of it to the loggers."""

    def __init__(self) -> None:
        self.history: dict[str, HistoryBuffer] = {}
        self.bar: tqdm[Any] | None = None
        self._clock = 0.0
        self._waited = self._rate = 0.0
        self._eval_begin = self._eval_said = 0.0

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """Opens the bar at the iteration that the run begins with."""
        if trainer.is_global_zero and _has_width():
            self.bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, dynamic_ncols=True, file=sys.stdout)
        self._clock = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """What has passed since the last iteration was spent on waiting for data."""
        self._waited = time.perf_counter() - self._clock
        # Read here, because the schedule moves on before the iteration ends.
        self._rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """Records every iteration, reports every 20th and the last."""
        now = time.perf_counter()
        self._record({**module.last_losses, "time": now - self._clock, "data_time": self._waited})
        self._clock = now
        step = trainer.global_step
        if self.bar is not None:
            self.bar.update()
            self.bar.set_postfix_str(_losses_text(module.last_losses), refresh=False)
        if trainer.is_global_zero and (step % PERIOD == 0 or step == trainer.max_steps):
            self._report(trainer, step)
            self._clock = time.perf_counter()

    def _record(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.history.setdefault(name, HistoryBuffer(1000)).update(value)

    def _report(self, trainer: L.Trainer, step: int) -> None:
        scalars = {name: float(values.median(_WINDOW)) for name, values in self.history.items()}
        scalars["lr"] = self._rate
        scalars["eta_seconds"] = float(self.history["time"].median(1000)) * (trainer.max_steps - step)
        for sink in trainer.loggers:
            sink.log_metrics(scalars, step)
        if self.bar is not None:
            return
        eta = datetime.timedelta(seconds=int(scalars["eta_seconds"]))
        times = f"time: {scalars['time']:.4f}  data_time: {scalars['data_time']:.4f}  lr: {self._rate:.4g}{_memory()}"
        logger.info("eta: %s  iter: %d/%d  %s  %s", eta, step, trainer.max_steps, _losses_text(scalars), times)

    def on_validation_start(self, *_: Any) -> None:
        """Starts the clock of the evaluation."""
        self._eval_begin = self._eval_said = time.perf_counter()

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A line every ten seconds."""
        now = time.perf_counter()
        if now - self._eval_said > 10:
            self._eval_said = now
            total = trainer.num_val_batches[dataloader_idx]
            seconds = (now - self._eval_begin) / (batch_idx + 1) * (total - batch_idx - 1)
            eta = datetime.timedelta(seconds=int(seconds))
            logger.info("Evaluating: batch %d of %d, eta: %s", batch_idx + 1, total, eta)

    def on_validation_end(self, *_: Any) -> None:
        """The evaluation's time is not an iteration's."""
        self._clock = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()


def _has_width() -> bool:
    """Whether stdout is a terminal that a bar fits on; some that only pretend to be one have no columns."""
    return sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).columns > 0


def _losses_text(scalars: dict[str, float]) -> str:
    losses = [name for name in scalars if "loss" in name and not _OF_OTHER_LAYERS.search(name)]
    return "  ".join(f"{name}: {scalars[name]:.4g}" for name in losses)


def _memory() -> str:
    return f"  max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if torch.cuda.is_available() else ""


class JsonLogger(Logger):
    """``metrics.json`` as Detectron2 writes it: one JSON object a line, appended."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        """Lightning's name for the logger."""
        return "json"

    @property
    def version(self) -> int:
        """There is one only."""
        return 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """They are in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a line; ``iteration`` counts from 0, as Detectron2's does, while ``step`` iterations are done."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        with self.path.open("a") as file:
            file.write(json.dumps({**values, "iteration": (step or 0) - 1}, sort_keys=True) + "\n")
