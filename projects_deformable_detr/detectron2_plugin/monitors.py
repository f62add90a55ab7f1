"""Hooks that look at evaluations: the best checkpoint and early stopping, by the standalone engine's keys."""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from ..checkpoint import save_detector
from ..errors import UserError
from ..training.monitoring import BEST_NAME, Best, check_keys, is_better, metric
from .data import known_class_names
from .ema import Average, Averaging

_logger = logging.getLogger(__name__)


class BestCheckpoint(HookBase):
    """``TEST.BEST_CHECKPOINT``: ``model_best.pth``, the network of the best evaluation so far.

    Detectron2's ``BestCheckpointer`` would write a whole training state, make it what ``--resume`` goes on from, and
    forget the best on resuming.
    """

    def __init__(self, cfg: CfgNode, average: Average | None) -> None:
        best = cfg.TEST.BEST_CHECKPOINT
        self.cfg, self.average = cfg, average
        self.best = Best(best.METRIC, best.MODE)
        self._compared = -1  # the iteration

    def after_step(self) -> None:
        """After an evaluation."""
        if _is_evaluated(self.trainer, self.cfg.TEST.EVAL_PERIOD):
            self._compare(self.trainer.iter)

    def after_train(self) -> None:
        """After the evaluation at the end, if it was another one."""
        if _is_done(self.trainer) and self._compared != self.trainer.iter - 1:
            self._compare(self.trainer.iter - 1)

    def _compare(self, iteration: int) -> None:
        self._compared = iteration
        value = _latest(self.trainer, "TEST.BEST_CHECKPOINT.METRIC", self.best.name)
        if self.best.is_raised_by(value, iteration) and comm.is_main_process():
            model: Any = self.trainer.checkpointer.model if self.average is None else self.average.averaged
            path, names = os.path.join(self.cfg.OUTPUT_DIR, f"{BEST_NAME}.pth"), known_class_names(self.cfg)
            save_detector(path, model.detector, iteration=iteration, cfg_text=self.cfg.dump(), class_names=names)
            _logger.info("Saved %s%s", path, "" if self.average is None else " (averaged weights: SOLVER.EMA)")

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self.best.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.best.load_state_dict(state)


class EarlyStopping(HookBase):
    """``TEST.EARLY_STOPPING``: ends the loop, with what Detectron2 does at its end: final weights, final evaluation.

    NaN counts as no improvement. A run that had stopped and is resumed goes on only with a higher patience.
    """

    def __init__(self, cfg: CfgNode, evaluations: Sequence[hooks.EvalHook]) -> None:
        self.period, self.keys, self.evaluations = cfg.TEST.EVAL_PERIOD, cfg.TEST.EARLY_STOPPING, evaluations
        self.best: float | None = None
        self.count = 0

    def before_train(self) -> None:
        """Ends a run that had stopped before."""
        if self.count >= self.keys.PATIENCE:
            _logger.info(
                "This run stopped early at iteration %d: it is evaluated and ends. Raise TEST.EARLY_STOPPING.PATIENCE "
                "above %d, or switch it off, to go on", self.trainer.start_iter - 1, self.count,
            )  # fmt: skip
            self.trainer.max_iter = self.trainer.start_iter
            raise StopTraining

    def after_step(self) -> None:
        """After an evaluation."""
        if not _is_evaluated(self.trainer, self.period):
            return
        value = _latest(self.trainer, "TEST.EARLY_STOPPING.METRIC", self.keys.METRIC)
        improved = is_better(value, None if self.best is None else self.best + self.keys.MIN_DELTA, "max")
        self.best, self.count = (value, 0) if improved else (self.best, self.count + 1)
        if self.count >= self.keys.PATIENCE:
            _logger.info(
                "Stopping early at iteration %d: %s has not risen above %s by more than %g in %d evaluations",
                self.trainer.iter, self.keys.METRIC, self.best, self.keys.MIN_DELTA, self.count,
            )  # fmt: skip
            self.trainer.checkpointer.save("model_final", iteration=self.trainer.iter)
            for evaluation in self.evaluations:  # these weights have just been evaluated
                evaluation._eval_after_train &= not _is_evaluated(self.trainer, evaluation._period)
            self.trainer.iter = self.trainer.max_iter = self.trainer.iter + 1
            raise StopTraining

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self.best, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.best, self.count = state["best"], state["count"]


class SaveAgain(HookBase):
    """Saves what was saved before an evaluation once more, for what the hooks before have learnt from it.

    Before it, too, as Detectron2 does: an evaluation may be what kills a run.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.evaluations, self.checkpoints = cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD

    def after_step(self) -> None:
        """After all that looks at metrics."""
        if _is_evaluated(self.trainer, self.evaluations) and (self.trainer.iter + 1) % self.checkpoints == 0:
            self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)

    def after_train(self) -> None:
        """After the evaluation at the end."""
        if _is_done(self.trainer):
            self.trainer.iter -= 1  # a resumed run begins after the iteration that the trainer counts
            self.trainer.checkpointer.save("model_final", iteration=self.trainer.iter)
            self.trainer.iter += 1


class StopTraining(BaseException):  # Detectron2's loop logs every Exception as a failure
    """Ends the loop from a hook."""


class StoppableLoop(TrainerBase):
    """Detectron2's loop that `StopTraining` ends: a base behind ``DefaultTrainer``, which calls it."""

    def train(self, *iterations: int) -> None:
        """As Detectron2's."""
        with contextlib.suppress(StopTraining):
            super().train(*iterations)


def check(cfg: CfgNode) -> None:
    """`monitoring.check_keys`, and what this engine cannot do together.

    Raises:
        UserError: naming the keys.
    """
    check_keys(cfg)
    if cfg.SOLVER.EMA.ENABLED and cfg.TEST.PRECISE_BN.ENABLED:
        raise UserError(
            "SOLVER.EMA.ENABLED True and TEST.PRECISE_BN.ENABLED True: Detectron2 measures the statistics of the "
            "trained weights, not of the averaged ones. Switch one off; SOLVER.EMA averages statistics, too"
        )


def refuse(cfg: CfgNode) -> None:
    """For trainers of Detectron2 that know nothing of these keys.

    Raises:
        UserError: naming the first that is switched on.
    """
    nodes = {"SOLVER.EMA": cfg.SOLVER, "TEST.BEST_CHECKPOINT": cfg.TEST, "TEST.EARLY_STOPPING": cfg.TEST}
    for key, parent in nodes.items():
        if key.split(".")[1] in parent and parent[key.split(".")[1]].ENABLED:
            raise UserError(
                f"{key}.ENABLED is True, which Detectron2's own trainers do not follow: train with this project's "
                "train_net.py or projects_deformable_detr.detectron2_plugin.Trainer, or set it to False"
            )


def arrange(cfg: CfgNode, given: list[HookBase], average: Average | None) -> list[HookBase]:
    """Detectron2's hooks with those of the keys: the average first, what looks at metrics behind the evaluation."""
    evaluations = [hook for hook in given if isinstance(hook, hooks.EvalHook)]
    if average is not None:
        for hook in evaluations:
            hook._func = _averaged(hook._func, average)
    own: list[HookBase] = [BestCheckpoint(cfg, average)] if cfg.TEST.BEST_CHECKPOINT.ENABLED else []
    own += [EarlyStopping(cfg, evaluations)] if cfg.TEST.EARLY_STOPPING.ENABLED else []
    own += [SaveAgain(cfg)] if own else []
    place = given.index(evaluations[-1]) + 1 if evaluations else len(given)
    return [*([Averaging(average)] if average is not None else []), *given[:place], *own, *given[place:]]


def _averaged(evaluate: Callable[[], Any], average: Average) -> Callable[[], Any]:
    def evaluate_average() -> Any:
        with average.applied():
            return evaluate()

    return evaluate_average


def _is_evaluated(trainer: Any, period: int) -> bool:
    """Whether ``EvalHook`` has just evaluated; the last iteration's evaluation comes after the loop."""
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


def _is_done(trainer: Any) -> bool:
    """Whether a training has come to its end, not to an error; in ``after_train``."""
    return trainer.iter >= trainer.max_iter


def _latest(trainer: Any, key: str, name: str) -> float:
    """The metric, which the main process knows, in all of them.

    Raises:
        UserError: in all of them, so that none waits for another.
    """
    value, problem = math.nan, ""
    if comm.is_main_process():
        try:
            value = metric(flatten_results_dict(trainer._last_eval_results), key, name)
        except UserError as error:
            problem = str(error)
    value, problem = comm.all_gather((value, problem))[0]
    if problem:
        raise UserError(problem)
    return value
