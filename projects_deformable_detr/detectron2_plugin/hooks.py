"""Trainer hooks: exponential moving average, best checkpoint, early stopping and remaining time."""

import datetime
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage

from .. import training
from ..config import leaves
from ..config.data import data_config
from ..config.evaluation import evaluation_config
from ..config.keys import check_other_ranges
from ..config.reading import naming_keys
from ..config.training import BEST_CHECKPOINT_KEYS, EARLY_STOPPING_KEYS, callbacks_config, schedule_config
from ..errors import Interrupted, UserError
from ..explain.entropy import EntropyMeter
from ..training.callbacks import DetectorWriter, logger, select_metric
from ..training.ema import ExponentialMovingAverage
from ..training.interruption import StopSignal
from ..training.progress import RemainingTime
from ..training.schedule import SCHEDULES

_REPORT_PERIOD = 20  # iterations; the period of Detectron2's default writers
# Keys that only this project's trainer supports, with the value that disables them.
_UNSUPPORTED = {
    "SOLVER.EMA.ENABLED": False,
    "SOLVER.ACCUMULATION_STEPS": 1,
    "SOLVER.STRATEGY": "ddp",
    "TEST.BEST_CHECKPOINT.ENABLED": False,
    "TEST.EARLY_STOPPING.ENABLED": False,
    "TEST.ATTENTION_ENTROPY": 0,
}


class StopTraining(BaseException):  # Detectron2's loop logs every Exception as a failure
    """Raised by a hook to end the training loop."""


class Averaging(HookBase):
    """Updates the exponential moving average before any other hook reads the model.

    Hooks are stored in checkpoints under the names of their classes.
    """

    def __init__(self, ema: ExponentialMovingAverage) -> None:
        self.ema = ema

    def before_train(self) -> None:
        """Logs which weights are saved, and warns if the average starts late."""
        self.ema.restore()  # after an earlier training of this trainer
        logger.info("Evaluations, model_final.pth and model_best.pth have the averaged weights (SOLVER.EMA)")
        if self.trainer.start_iter > 0 and not self.ema.has_average:
            logger.warning("The checkpoint has no averaged weights (SOLVER.EMA): the average starts with its weights")

    def after_step(self) -> None:
        """Updates the average."""
        self.ema.update()

    def after_train(self) -> None:
        """Applies the averaged weights for the final evaluation and for the caller."""
        self.ema.apply()

    def state_dict(self) -> dict[str, Any]:
        """Returns a non-empty state, so that Detectron2's trainers, which lack this hook, warn on resuming."""
        return {"is_averaged": True}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignores the state; the checkpointer loads the average."""


class BestCheckpoint(training.callbacks.BestCheckpoint, HookBase):
    """Writes ``model_best.pth`` (``TEST.BEST_CHECKPOINT``).

    Unlike Detectron2's ``BestCheckpointer``, it writes the detector alone, does not make it the checkpoint to resume
    from, and restores the best metric on resuming.
    """

    def __init__(
        self, config: training.BestCheckpointConfig, writer: DetectorWriter, period: int, ema: Any = None
    ) -> None:
        super().__init__(config, writer)
        self.period, self.ema = period, ema
        self._compared = -1  # iteration of the last comparison

    def after_step(self) -> None:
        """Checks the metric after an evaluation."""
        if _is_evaluated(self.trainer, self.period):
            self._compare(self.trainer.iter)

    def after_train(self) -> None:
        """Checks the metric after the final evaluation, unless it was skipped."""
        last = _last_iteration(self.trainer)
        if _is_finished(self.trainer) and self._compared != last:
            self._compare(last)

    def _compare(self, iteration: int) -> None:
        self._compared = iteration
        value = _latest_metric(self.trainer, self.config.metric, BEST_CHECKPOINT_KEYS)
        model: Any = self.trainer.checkpointer.model if self.ema is None else self.ema.averaged
        self.update(value, iteration, model.detector, is_main_process=comm.is_main_process())


class EarlyStopping(training.callbacks.EarlyStopping, HookBase):
    """Ends the training loop early (``TEST.EARLY_STOPPING``); final weights and evaluation follow as usual."""

    def __init__(
        self, config: training.EarlyStoppingConfig, period: int, evaluations: Sequence[hooks.EvalHook]
    ) -> None:
        super().__init__(config)
        self.period, self.evaluations = period, evaluations

    def after_step(self) -> None:
        """Checks the metric after an evaluation."""
        trainer = self.trainer
        if not _is_evaluated(trainer, self.period):
            return
        self.update(_latest_metric(trainer, self.config.metric, EARLY_STOPPING_KEYS))
        if self.should_stop:
            self.log_stop(trainer.iter)
            trainer.checkpointer.save("model_final", iteration=trainer.iter)
            for evaluation in self.evaluations:  # these weights have just been evaluated
                evaluation._eval_after_train &= not _is_evaluated(trainer, evaluation._period)
            trainer.iter = trainer.max_iter = trainer.remaining_time.iterations = trainer.iter + 1
            raise StopTraining


class SaveAfterEvaluation(HookBase):
    """Saves a checkpoint again after the evaluation of the same iteration, to include the updated state of the hooks.

    Detectron2 saves before the evaluation, because the evaluation may end the process.
    """

    def __init__(self, eval_period: int, checkpoint_period: int) -> None:
        self.eval_period, self.checkpoint_period = eval_period, checkpoint_period

    def after_step(self) -> None:
        """Saves at iterations with an evaluation and a checkpoint."""
        iteration = self.trainer.iter
        if _is_evaluated(self.trainer, self.eval_period) and (iteration + 1) % self.checkpoint_period == 0:
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)

    def after_train(self) -> None:
        """Saves after the final evaluation."""
        if _is_finished(self.trainer):
            end, last = self.trainer.iter, _last_iteration(self.trainer)
            self.trainer.iter = last  # a resumed run starts after the iteration in the trainer's state
            self.trainer.checkpointer.save("model_final", iteration=last)
            self.trainer.iter = end


class GradientNorm(HookBase):
    """Records the norm of the gradients before clipping as ``grad_norm``, in the iterations of the reports."""

    def after_step(self) -> None:
        """Copies the norm to the host."""
        norm = getattr(self.trainer._trainer.optimizer, "grad_norm", None)
        done = self.trainer.iter + 1
        if norm is not None and (done % _REPORT_PERIOD == 0 or done == self.trainer.max_iter):
            self.trainer.storage.put_scalar("grad_norm", float(norm), smoothing_hint=False)


class EvaluationTimer(HookBase):
    """Measures evaluations for the remaining time."""

    def __init__(self, remaining_time: RemainingTime, period: int) -> None:
        self.remaining_time, self.period = remaining_time, period

    def after_step(self) -> None:
        """Ends the measurement of the evaluation after this step."""
        if _is_evaluated(self.trainer, self.period):
            self.remaining_time.end_evaluation()


class MetricPrinter(CommonMetricPrinter):
    """Detectron2's printer with the remaining time of both engines.

    Detectron2 multiplies the median of 1,000 iterations, which does not follow changes of the load, and leaves out
    evaluations.
    """

    def __init__(self, max_iter: int, remaining_time: RemainingTime) -> None:
        super().__init__(max_iter)
        self.remaining_time = remaining_time

    def _get_eta(self, storage: EventStorage) -> str | None:
        done, total = storage.iter + 1, self.remaining_time.iterations
        if not self.remaining_time.count or done > total:  # the first iteration failed, or training ended early
            return None
        seconds = self.remaining_time.seconds(done, is_evaluated=done < total)  # the final evaluation follows
        storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        return str(datetime.timedelta(seconds=int(seconds)))


class StopOnSignal(HookBase):
    """Ends the training after an iteration in which a process received a signal.

    The training loop restores the previous signal handlers, after it has saved a checkpoint.
    """

    def __init__(self) -> None:
        self.stop = StopSignal()

    def before_train(self) -> None:
        """Installs the signal handlers."""
        self.stop.__enter__()

    def after_step(self) -> None:
        """Raises `Interrupted` on all processes after a signal to one of them."""
        if signum := self.stop.reduce():
            raise Interrupted(signum)


def add_hooks(
    config: training.CallbacksConfig,
    writer: DetectorWriter,
    given: list[HookBase],
    ema: ExponentialMovingAverage | None,
    remaining_time: RemainingTime,
) -> list[HookBase]:
    """Adds the configured hooks to Detectron2's: the average first, the others after the evaluation."""
    evaluations = [hook for hook in given if isinstance(hook, hooks.EvalHook)]
    if ema is not None:
        for hook in evaluations:
            hook._func = ema.applied()(hook._func)
    if config.attention_entropy:
        for hook in evaluations:
            hook._func = _logging_entropy(hook, EntropyMeter(config.attention_entropy))
    own: list[HookBase] = []
    if config.best_checkpoint:
        own.append(BestCheckpoint(config.best_checkpoint, writer, config.eval_period, ema))
    if config.early_stopping:
        own.append(EarlyStopping(config.early_stopping, config.eval_period, evaluations))
    if own:
        own.append(SaveAfterEvaluation(config.eval_period, config.checkpoint_period))
    own.append(EvaluationTimer(remaining_time, config.eval_period))
    place = given.index(evaluations[-1]) + 1 if evaluations else len(given)
    first = [*([Averaging(ema)] if ema is not None else []), GradientNorm()]
    return [*first, *given[:place], *own, *given[place:], StopOnSignal()]


def _logging_entropy(hook: Any, meter: EntropyMeter) -> Callable[[], Any]:
    """Returns the evaluation of a hook that also logs the entropy of attention (``TEST.ATTENTION_ENTROPY``)."""
    evaluate = hook._func

    def evaluate_and_log() -> Any:
        with meter.measuring(hook.trainer.checkpointer.model.detector):
            results = evaluate()
        hook.trainer.storage.put_scalars(**meter.scalars(), smoothing_hint=False)
        return results

    return evaluate_and_log


def check_supported_keys(cfg: CfgNode) -> None:
    """Raises `UserError` for keys that Detectron2's own trainers would ignore, or values out of range."""
    values = dict(leaves(cfg))
    for key, default in _UNSUPPORTED.items():
        if (value := values.get(key, default)) != default:
            raise UserError(
                f"{key} {value} is not supported by Detectron2's own trainers: train with this project's train_net.py "
                f"or projects_deformable_detr.detectron2_plugin.Trainer, or set it to {default}"
            )
    check_other_ranges(cfg)
    for read in (data_config, evaluation_config, callbacks_config):
        read(cfg)
    if cfg.SOLVER.LR_SCHEDULER_NAME in SCHEDULES:
        schedule_config(cfg)


def _is_evaluated(trainer: Any, period: int) -> bool:
    """Returns whether ``EvalHook`` has evaluated after this step; the last iteration is evaluated after the loop."""
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


def _is_finished(trainer: Any) -> bool:
    """Returns whether ``after_train`` follows a completed training instead of an error."""
    return trainer.iter >= trainer.max_iter


def _last_iteration(trainer: Any) -> int:
    """Returns the last iteration of a completed training; ``trainer.iter`` is too large if only the evaluation ran."""
    return int(max(trainer.start_iter, trainer.max_iter)) - 1


def _latest_metric(trainer: Any, metric: str, keys: dict[str, str]) -> float:
    """Returns a metric of the last evaluation on all processes; only the main process has the results."""
    results = flatten_results_dict(trainer._last_eval_results) if comm.is_main_process() else {}
    with naming_keys(keys):  # errors are raised in all processes, so that none waits for another
        return select_metric(comm.all_gather(results)[0], metric)
