"""Averaged weights, the best checkpoint and early stopping: Lightning's own callbacks, with this project's files."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..checkpoint import save_detector
from ..training.monitoring import BEST_NAME, Best, metric

logger = logging.getLogger(__name__)


class Average(WeightAveraging):
    """``SOLVER.EMA``: an exponential moving average of parameters and buffers, which is evaluated in their place.

    Lightning keeps it in every checkpoint: ``state_dict`` is the average, ``current_model_state`` what is trained.

    Lightning's own ``EMAWeightAveraging`` computes ``decay * a + (1 - decay) * b``, which moves frozen weights by its
    rounding; torch's ``lerp`` does not, and takes all tensors at once.

    Args:
        decay: the average's share of its next value, in (0, 1).
        device: where the average is kept; Lightning would take the CPU, where the module is when it sets up.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        # Buffers, too: statistics of batch norms must be of the averaged weights.
        super().__init__(device=device, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @staticmethod
    def of(cfg: Any) -> "Average | None":
        """The one that the config asks for, on this process's device."""
        if not cfg.SOLVER.EMA.ENABLED:
            return None
        kind, _, index = cfg.MODEL.DEVICE.partition(":")
        own = torch.device(kind) if kind == "cpu" else torch.device(kind, int(index or os.environ.get("LOCAL_RANK", 0)))
        return Average(cfg.SOLVER.EMA.DECAY, own)

    def detector(self, module: Any) -> Any:
        """The averaged detector; the trained one before there is an average."""
        return (module if self._average_model is None else self._average_model.module).detector


@dataclass(frozen=True)
class NetworkWriter:
    """Writes the network alone, for both engines; with ``SOLVER.EMA`` the averaged one."""

    output_dir: Path
    cfg_text: str
    class_names: tuple[str, ...] = ()
    average: Average | None = None

    def write(self, name: str, module: Any, iteration: int) -> None:
        """``<name>.pth``; ``iteration``: the last one that was trained, counted from 0."""
        path = self.output_dir / f"{name}.pth"
        detector = module.detector if self.average is None else self.average.detector(module)
        save_detector(path, detector, iteration=iteration, cfg_text=self.cfg_text, class_names=self.class_names)
        logger.info("Saved %s%s", path, "" if self.average is None else " (averaged weights: SOLVER.EMA)")


class BestCheckpoint(L.Callback):
    """``TEST.BEST_CHECKPOINT``: ``model_best.pth``, the network of the best evaluation so far.

    Lightning's ``ModelCheckpoint`` would write a whole training state, which only Lightning reads.
    """

    def __init__(self, writer: NetworkWriter, name: str, mode: str) -> None:
        self.writer = writer
        self.best = Best(name, mode)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        """Compares; all ranks have the metrics."""
        if module.tta is not None:  # another evaluation, of the same weights
            return
        value = metric(module.scalars, "TEST.BEST_CHECKPOINT.METRIC", self.best.name)
        step = trainer.global_step - 1
        if self.best.is_raised_by(value, step) and trainer.is_global_zero:
            self.writer.write(BEST_NAME, module, step)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self.best.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.best.load_state_dict(state_dict)


class StopEarly(EarlyStopping):
    """``TEST.EARLY_STOPPING``: Lightning's, with the config's patience on resuming, too.

    NaN counts as no improvement. A run that had stopped and is resumed goes on only with a higher patience.
    """

    def __init__(self, name: str, patience: int, min_delta: float) -> None:
        rules = {"strict": True, "check_finite": False, "check_on_train_epoch_end": False}
        super().__init__(name, min_delta, patience, mode="max", **rules)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint; the patience may have been changed since."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """Ends a run that had stopped before."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True
            logger.info(
                "This run stopped early at iteration %d: it is evaluated and ends. Raise TEST.EARLY_STOPPING.PATIENCE "
                "above %d, or switch it off, to go on",
                trainer.global_step - 1, self.wait_count,
            )  # fmt: skip

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        """Looks at the metric, and says so if the training ends."""
        metric(module.scalars, "TEST.EARLY_STOPPING.METRIC", self.monitor)
        super().on_validation_end(trainer, module)
        if stopped_early(trainer):
            logger.info(
                "Stopping early at iteration %d: %s has not risen above %.4f by more than %g in %d evaluations",
                trainer.global_step - 1, self.monitor, self.best_score, self.min_delta, self.wait_count,
            )  # fmt: skip


def stopped_early(trainer: L.Trainer) -> bool:
    """Whether a training is about to end before its last iteration."""
    return trainer.should_stop and trainer.state.fn == TrainerFn.FITTING and trainer.global_step < trainer.max_steps


def build(cfg: Any, writer: NetworkWriter) -> list[L.Callback]:
    """Callbacks that look at metrics; those of a training run."""
    best, stopping = cfg.TEST.BEST_CHECKPOINT, cfg.TEST.EARLY_STOPPING
    callbacks: list[L.Callback] = []
    if best.ENABLED:
        callbacks.append(BestCheckpoint(writer, best.METRIC, best.MODE))
    if stopping.ENABLED:
        callbacks.append(StopEarly(stopping.METRIC, stopping.PATIENCE, stopping.MIN_DELTA))
    return callbacks
