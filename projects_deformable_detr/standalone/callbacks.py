"""Training callbacks: checkpoints, exponential moving average, best checkpoint and early stopping."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import distributed, nn

from .. import training
from ..checkpoint import CLASS_NAMES, write_atomically
from ..config.reading import naming_keys
from ..config.run import PROCESS_KEYS, Run
from ..config.training import BEST_CHECKPOINT_KEYS, EARLY_STOPPING_KEYS
from ..errors import Interrupted, UserError
from ..explain.entropy import EntropyMeter
from ..training.callbacks import DetectorWriter, logger, select_metric
from ..training.ema import averaging_options
from ..training.interruption import StopSignal, log_stop
from ..training.last_checkpoint import find_last_checkpoint, remove_old_checkpoints, write_last_checkpoint
from ..training.output_dir import start_run
from .sharding import by_type, is_sharded, release_parameters, shard


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically; Lightning moves them from a temporary folder on another file system."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves a checkpoint and makes it the one to resume from."""
        write_atomically(path, checkpoint)
        write_last_checkpoint(Path(path))


class ResumeCheck(L.Callback):
    """Checks that all machines resume from the same checkpoint, because each searches its own OUTPUT_DIR.

    Args:
        last: the checkpoint that this process resumes from, or None.
    """

    def __init__(self, last: Path | None) -> None:
        self.name = last.name if last else "none"

    def setup(self, *_: Any, **__: Any) -> None:
        """Raises `UserError` on every rank if the checkpoints differ, so that none waits for another."""
        if not distributed.is_initialized():
            return
        names = [""] * distributed.get_world_size()
        distributed.all_gather_object(names, self.name)
        if len(set(names)) > 1:
            raise UserError(
                f"the machines found different last checkpoints ({', '.join(sorted(set(names)))}): use --resume on all "
                "of them or on none, and an OUTPUT_DIR that they share"
            )


class RunStart(L.Callback):
    """Prepares the output folder after all checks have passed."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """Prepares the folder on rank 0."""
        if trainer.is_global_zero:
            with naming_keys(PROCESS_KEYS):
                start_run(self.run.output_dir, self.run.cfg_text, resume=self.run.resume, overwrite=self.run.overwrite)


class Signals(L.Callback):
    """Replaces Lightning's signal handlers during training and evaluation."""

    def __init__(self) -> None:
        self.stop = StopSignal()

    def on_train_start(self, *_: Any) -> None:
        """Installs the handlers."""
        self.stop.__enter__()

    def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
        """Installs the handlers, unless the evaluation is part of training."""
        if trainer.state.fn != TrainerFn.FITTING:
            self.stop.__enter__()

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        """Restores the previous handlers, unless the evaluation is part of training."""
        if trainer.state.fn != TrainerFn.FITTING:
            self.stop.__exit__()

    def on_train_end(self, *_: Any) -> None:
        """Restores the previous handlers."""
        self.stop.__exit__()

    def on_exception(self, *_: Any) -> None:
        """Restores the previous handlers."""
        self.stop.__exit__()


class EMA(WeightAveraging):
    """Exponential moving average of the weights (``SOLVER.EMA``), which replaces them in evaluations.

    In checkpoints, ``state_dict`` contains the average, and ``current_model_state`` contains the trained weights.

    Args:
        config: the configuration.
        device: device of the average; by default Lightning would use the CPU, where the module is during setup.
    """

    state_key = "Average"  # key in checkpoints

    def __init__(self, config: training.EmaConfig, device: str) -> None:
        kind, _, index = device.partition(":")
        local = kind if kind == "cpu" else f"{kind}:{index or os.environ.get('LOCAL_RANK', 0)}"
        super().__init__(device=local, **averaging_options(config))
        self._is_swapped = False

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        """Shards the average like the model, so that each process averages its own shards."""
        if is_sharded(module):
            average: Any = self._average_model
            shard(average.module.detector)
            average.multi_avg_fn = by_type(average.multi_avg_fn)

    def on_validation_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        """Swaps the averaged weights into the model."""
        super().on_validation_epoch_start(trainer, module)
        self._is_swapped = True

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        """Swaps the trained weights back."""
        release_parameters(module.detector)
        super().on_validation_epoch_end(trainer, module)
        self._is_swapped = False

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        """Swaps the trained weights back after an interrupted evaluation, before a checkpoint is saved."""
        if self._is_swapped:
            self.on_validation_epoch_end(trainer, module)


class BestCheckpoint(training.callbacks.BestCheckpoint, L.Callback):
    """Writes ``model_best.pth`` (``TEST.BEST_CHECKPOINT``), the detector alone, which both engines read."""

    def __init__(self, config: training.BestCheckpointConfig, writer: DetectorWriter, average: EMA | None) -> None:
        super().__init__(config, writer)
        self.average = average

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        """Updates the callback with the metric, which is the same on all ranks."""
        if module.tta is not None:  # test-time augmentation of the same weights
            return
        with naming_keys(BEST_CHECKPOINT_KEYS):
            value = select_metric(module.scalars, self.config.metric)
        detector = _detector(module, self.average)
        self.update(value, trainer.global_step - 1, detector, is_main_process=trainer.is_global_zero)


class EarlyStopping(training.callbacks.EarlyStopping, L.Callback):
    """Ends the training (``TEST.EARLY_STOPPING``)."""

    @property
    def state_key(self) -> str:
        """Key in checkpoints, under which earlier versions wrote the state of Lightning's ``EarlyStopping``."""
        return "StopEarly" + repr({"monitor": self.config.metric, "mode": "max"})

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        """Updates the callback with the metric, which is the same on all ranks."""
        with naming_keys(EARLY_STOPPING_KEYS):
            value = select_metric(module.scalars, self.config.metric)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.update(value)
        trainer.should_stop |= self.should_stop
        if _is_stopping(trainer):
            self.log_stop(trainer.global_step - 1)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the state of a checkpoint, including that of Lightning's ``EarlyStopping``."""
        if "wait_count" in state:
            state = {"best": float(state["best_score"]), "count": state["wait_count"]}
        super().load_state_dict(state)


class AttentionEntropy(L.Callback):
    """Logs the sparsity of the decoder's attention at each evaluation (``TEST.ATTENTION_ENTROPY``), of rank 0."""

    def __init__(self, num_images: int) -> None:
        self.meter = EntropyMeter(num_images)
        self._measuring = ExitStack()

    def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
        """Starts measuring, except for test-time augmentation."""
        if module.tta is None:
            self._measuring.enter_context(self.meter.measuring(module.detector))

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        """Logs the means."""
        self._measuring.close()
        for scalar_logger in trainer.loggers if module.tta is None else ():
            scalar_logger.log_metrics(self.meter.scalars(), trainer.global_step)

    def on_exception(self, *_: Any) -> None:
        """Removes the hooks after an interrupted evaluation."""
        self._measuring.close()


class PeriodicCheckpoint(L.Callback):
    """Saves a checkpoint periodically, at the end and after a signal, and the detector as ``model_final.pth``.

    Lightning's ``ModelCheckpoint`` has neither Detectron2's file names nor the second save after an evaluation.

    Args:
        writer: writes ``model_final.pth``.
        period: number of iterations.
        keep: number of periodic checkpoints to keep; 0: all.
        average: exponential moving average, or None.
        stop: signals to this process.
        save_again: whether to save again after an evaluation of the same iteration, to include the callbacks' new
            state. The first save is before the evaluation, because the evaluation may end the process.
    """

    def __init__(
        self,
        writer: DetectorWriter,
        period: int,
        keep: int,
        stop: StopSignal,
        average: EMA | None = None,
        save_again: bool = False,
    ) -> None:
        self.writer = writer
        self.period = period
        self.keep = keep
        self.stop = stop
        self.average = average
        self.save_again = save_again
        self._saved_at = -1
        self._written: list[Path] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """Saves periodically and after the last iteration; raises `Interrupted` after a signal."""
        step, signum = trainer.global_step, self.stop.reduce()
        if step == trainer.max_steps:  # written first: a run that resumes from the last checkpoint does not write it
            self._write_final(trainer, module)
        if step % self.period == 0 or step == trainer.max_steps:
            self._save(trainer)
        if signum:
            raise Interrupted(signum)

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        """Saves after a signal to a step or an evaluation, unless this iteration has been saved."""
        if isinstance(exception, Interrupted):
            if self._saved_at != trainer.global_step and trainer.state.fn == TrainerFn.FITTING:
                # A resumed run would evaluate the remaining batches only.
                trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()
                self._save(trainer)
            log_stop(trainer.global_step, trainer.max_steps)

    def on_save_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the class names, which a resumed run compares."""
        checkpoint[CLASS_NAMES] = list(self.writer.class_names or ())

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        """Saves when training ends early, and again after other evaluations."""
        if _is_stopping(trainer):
            self._write_final(trainer, module)
            self._save(trainer)
        elif self.save_again and trainer.state.fn != TrainerFn.FITTING:
            self._update_callback_states(trainer)
        elif self.save_again and self._saved_at == trainer.global_step:
            self._save(trainer)

    def _path(self, trainer: L.Trainer) -> Path:
        """Returns the file of the last iteration, counted from 0 as in Detectron2."""
        return self.writer.output_dir / f"model_{trainer.global_step - 1:07d}.ckpt"

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self._path(trainer))
        self._saved_at = trainer.global_step
        logger.info("Saved %s", self._path(trainer))
        if self.keep and trainer.is_global_zero:
            remove_old_checkpoints(self._path(trainer), self._written, self.keep)

    def _write_final(self, trainer: L.Trainer, module: Any) -> None:
        detector = _detector(module, self.average)
        self.writer.write("model_final", detector, trainer.global_step - 1, is_main_process=trainer.is_global_zero)

    def _update_callback_states(self, trainer: Any) -> None:
        """Replaces only the states of the callbacks: with an average, the model no longer has the trained weights."""
        path = self._path(trainer)
        if not trainer.is_global_zero or find_last_checkpoint(path.parent, "standalone") != path:
            return
        content = torch.load(path, map_location="cpu", weights_only=True)
        states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}
        content["callbacks"] |= {key: state for key, state in states.items() if state}
        write_atomically(path, content)


def build_callbacks(
    config: training.CallbacksConfig, writer: DetectorWriter, device: str, stop: StopSignal
) -> list[L.Callback]:
    """Builds the callbacks of a training run in order: average, those that read metrics, checkpoints."""
    average = EMA(config.ema, device) if config.ema else None
    callbacks: list[L.Callback] = []
    if config.best_checkpoint:
        callbacks.append(BestCheckpoint(config.best_checkpoint, writer, average))
    if config.early_stopping:
        callbacks.append(EarlyStopping(config.early_stopping))
    periods = config.checkpoint_period, config.checkpoint_keep
    saving = PeriodicCheckpoint(writer, *periods, stop, average, save_again=bool(callbacks))
    entropy = [AttentionEntropy(config.attention_entropy)] if config.attention_entropy else []
    return [*([average] if average else []), *entropy, *callbacks, saving]


def _detector(module: Any, average: EMA | None) -> nn.Module:
    """Returns the averaged detector, or the module's own without an average or before training."""
    averaged: Any = average and average._average_model
    detector: nn.Module = (averaged.module if averaged else module).detector
    return detector


def _is_stopping(trainer: L.Trainer) -> bool:
    """Returns whether training is about to end before its last iteration."""
    return trainer.should_stop and trainer.state.fn == TrainerFn.FITTING and trainer.global_step < trainer.max_steps
