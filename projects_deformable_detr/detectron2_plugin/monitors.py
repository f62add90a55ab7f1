"""Averaged weights, the best checkpoint and early stopping as hooks of the trainer, by the standalone engine's keys."""

import contextlib
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import UserError
from ..monitoring import BEST_NAME, check_keys, is_better, metric

_logger = logging.getLogger(__name__)
AVERAGE = "ema"  # the key of what is trained, and of the average's count, in a checkpoint


class Average:
    """``SOLVER.EMA``: the average of a model's parameters and buffers.

    In a checkpoint ``model`` is the average, so that whoever reads the file gets it; this object, one of the
    checkpointer's parts, adds what is trained.

    Args:
        model: not its distributed wrapper. All processes compute the same average, each of its own buffers.
        decay: the average's share of its next value, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights meanwhile."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Nothing before the first step: there is no average yet."""
        if self.average.n_averaged == 0:
            return
        for averaged, trained in zip(_tensors(self.average.module), _tensors(self.model), strict=True):
            kept = averaged.clone()
            averaged.copy_(trained)
            trained.copy_(kept)

    def averaged_state(self) -> dict[str, Any]:
        """What takes the place of the model's weights in files."""
        return (self.average.module if self.average.n_averaged > 0 else self.model).state_dict()

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint's ``model`` does not tell."""
        return {"model": self.model.state_dict(), "n_averaged": self.average.n_averaged.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the model's weights, which have just been read, for the average's."""
        self.average.module.load_state_dict(self.model.state_dict())
        self.average.n_averaged.copy_(state["n_averaged"])
        self.model.load_state_dict(state["model"])


class Averaging(HookBase):
    """Brings the average up to date, before any other hook looks at the model."""

    def __init__(self, average: Average) -> None:
        self.of = average

    def before_train(self) -> None:
        """Says where an average begins late."""
        if self.trainer.start_iter > 0 and self.of.average.n_averaged == 0:
            _logger.warning("The checkpoint has no averaged weights (SOLVER.EMA): the average begins with its weights")

    def after_step(self) -> None:
        """Takes the step's weights in."""
        self.of.average.update_parameters(self.of.model)

    def after_train(self) -> None:
        """What is evaluated at the end, and is left in the trainer, is the average."""
        self.of.model.load_state_dict(self.of.averaged_state())


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


class BestCheckpoint(hooks.BestCheckpointer):
    """``TEST.BEST_CHECKPOINT``: Detectron2's, which here remembers the best on resuming, and knows its metric's name.

    ``last_checkpoint``, which Detectron2's would point to the best one, stays what ``--resume`` goes on from. The main
    process, which has the metrics, does the work.
    """

    def __init__(self, cfg: CfgNode, checkpointer: Any) -> None:
        best = cfg.TEST.BEST_CHECKPOINT
        super().__init__(
            cfg.TEST.EVAL_PERIOD, _Untagged(checkpointer, cfg.SOLVER.MAX_ITER), best.METRIC, best.MODE, BEST_NAME
        )
        self.name = best.METRIC

    def after_step(self) -> None:
        """After an evaluation."""
        if _is_evaluated(self.trainer, self._period) and comm.is_main_process():
            _latest(self.trainer, "TEST.BEST_CHECKPOINT.METRIC", self.name)
            super().after_step()

    def after_train(self) -> None:
        """After the evaluation at the end."""
        if self.trainer.iter + 1 >= self.trainer.max_iter and comm.is_main_process():
            _latest(self.trainer, "TEST.BEST_CHECKPOINT.METRIC", self.name)
            super().after_train()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self.best_metric, "iteration": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.best_metric, self.best_iter = state["best"], state["iteration"]


class _Untagged:
    """A checkpointer whose files are not what ``--resume`` goes on from."""

    def __init__(self, checkpointer: Any, max_iter: int) -> None:
        self.checkpointer = checkpointer
        self.max_iter = max_iter

    def save(self, name: str, *, iteration: int) -> None:
        # At the end Detectron2 counts the evaluation to an iteration that there is not.
        self.checkpointer.save(name, tag=False, iteration=min(iteration, self.max_iter - 1))


class EarlyStopping(HookBase):
    """``TEST.EARLY_STOPPING``: ends the loop, with what Detectron2 does at its end: final weights, final evaluation.

    NaN counts as no improvement. A run that had stopped and is resumed goes on only with a higher patience.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.period, self.keys = cfg.TEST.EVAL_PERIOD, cfg.TEST.EARLY_STOPPING
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
        """After an evaluation; all processes follow the main one, which knows the metrics."""
        if not _is_evaluated(self.trainer, self.period):
            return
        if comm.is_main_process():
            value = _latest(self.trainer, "TEST.EARLY_STOPPING.METRIC", self.keys.METRIC)
            improved = is_better(value, None if self.best is None else self.best + self.keys.MIN_DELTA, "max")
            self.best, self.count = (value, 0) if improved else (self.best, self.count + 1)
        self.count = comm.all_gather(self.count)[0]
        if self.count >= self.keys.PATIENCE:
            _logger.info(
                "Stopping early at iteration %d: %s has not risen above %s by more than %g in %d evaluations",
                self.trainer.iter, self.keys.METRIC, self.best, self.keys.MIN_DELTA, self.count,
            )  # fmt: skip
            self.trainer.checkpointer.save("model_final", iteration=self.trainer.iter)
            self.trainer.max_iter = self.trainer.iter + 1
            raise StopTraining

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self.best, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.best, self.count = state["best"], state["count"]


class SaveAgain(HookBase):
    """Saves a checkpoint of an evaluation's iteration once more, for what the hooks before have learnt from it."""

    def __init__(self, cfg: CfgNode) -> None:
        self.evaluations, self.checkpoints = cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD

    def after_step(self) -> None:
        """After all that looks at metrics."""
        if _is_evaluated(self.trainer, self.evaluations) and (self.trainer.iter + 1) % self.checkpoints == 0:
            self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)


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


def arrange(cfg: CfgNode, checkpointer: Any, given: list[HookBase], average: Average | None) -> list[HookBase]:
    """Detectron2's hooks with those of the keys: the average first, what looks at metrics behind the evaluation."""
    own: list[HookBase] = [BestCheckpoint(cfg, checkpointer)] if cfg.TEST.BEST_CHECKPOINT.ENABLED else []
    own += [EarlyStopping(cfg)] if cfg.TEST.EARLY_STOPPING.ENABLED else []
    own += [SaveAgain(cfg)] if own else []
    place = next(index for index, hook in enumerate(given) if isinstance(hook, hooks.EvalHook)) + 1
    return [*([Averaging(average)] if average else []), *given[:place], *own, *given[place:]]


def _is_evaluated(trainer: Any, period: int) -> bool:
    """Whether ``EvalHook`` has just evaluated; the last iteration's evaluation comes after the loop."""
    done = trainer.iter + 1
    return done % period == 0 and done != trainer.max_iter


def _latest(trainer: Any, key: str, name: str) -> float:
    return metric(flatten_results_dict(trainer._last_eval_results), key, name)
