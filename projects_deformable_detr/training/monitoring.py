"""What is watched while a model trains, for both engines: the keys' checks, and a metric by its name."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from ..errors import UserError

_logger = logging.getLogger(__name__)
BEST_NAME = "model_best"  # Detectron2's name for it, without the ending
_OF_A_CLASS = "/AP-"


def check_keys(cfg: Any) -> None:
    """Checks ``SOLVER.EMA``, ``TEST.BEST_CHECKPOINT`` and ``TEST.EARLY_STOPPING`` before a training.

    Raises:
        UserError: naming the key, for a value out of its range, or a metric that would never be measured.
    """
    ema, best, stopping = cfg.SOLVER.EMA, cfg.TEST.BEST_CHECKPOINT, cfg.TEST.EARLY_STOPPING
    if ema.ENABLED and not 0 < ema.DECAY < 1:
        raise UserError(f"SOLVER.EMA.DECAY is {ema.DECAY}: it must lie between 0 and 1, such as 0.999")
    if best.ENABLED and best.MODE not in ("max", "min"):
        raise UserError(f"TEST.BEST_CHECKPOINT.MODE is {best.MODE!r}: choose max or min")
    if stopping.ENABLED and stopping.PATIENCE < 1:
        raise UserError(f"TEST.EARLY_STOPPING.PATIENCE is {stopping.PATIENCE}: it must be at least 1 evaluation")
    if stopping.ENABLED and not 0 <= stopping.MIN_DELTA < math.inf:
        raise UserError(f"TEST.EARLY_STOPPING.MIN_DELTA is {stopping.MIN_DELTA}: it must be 0 or more")
    for key, node in (("TEST.BEST_CHECKPOINT", best), ("TEST.EARLY_STOPPING", stopping)):
        if node.ENABLED and not cfg.DATASETS.TEST:
            raise UserError(f"{key}.ENABLED is True, but DATASETS.TEST names no data set to measure {node.METRIC} on")
        if node.ENABLED and cfg.TEST.EVAL_PERIOD < 1:
            raise UserError(
                f"{key}.ENABLED is True, but TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}, so nothing is measured before "
                "the end: set it to a number of iterations"
            )


def metric(metrics: Mapping[str, float], key: str, name: str) -> float:
    """The metric called ``name`` among those of an evaluation; NaN where there was nothing to measure.

    Args:
        metrics: by the names that they have in logs, such as ``bbox/AP``.
        key: the config key that names it, for the message.
        name: which one.

    Raises:
        UserError: if no evaluator gives it; the message lists those that are there.
    """
    if name not in metrics:
        plain = [known for known in metrics if _OF_A_CLASS not in known]
        classes = ", and AP-CLASS of each class" if len(plain) < len(metrics) else ""
        raise UserError(f"{key} {name!r} is no metric of this run: choose one of {', '.join(plain)}{classes}")
    return float(metrics[name])


def is_better(value: float, best: float | None, mode: str) -> bool:
    """Whether ``value`` is a number, and better than the best so far, if there is one; ``mode``: max or min."""
    if not math.isfinite(value):
        return False
    return best is None or (value > best if mode == "max" else value < best)


class Best:
    """The best evaluation so far, which a resumed run remembers; NaN and infinite values are never the best.

    Args:
        name: the metric.
        mode: max or min.
    """

    def __init__(self, name: str, mode: str) -> None:
        self.name = name
        self.mode = mode
        self.value: float | None = None
        self.iteration = -1

    def is_raised_by(self, value: float, iteration: int) -> bool:
        """Whether an evaluation after ``iteration``, counted from 0, is the best so far; says so in the log."""
        if is_better(value, self.value, self.mode):
            self.value, self.iteration = value, iteration
            _logger.info("%s is %.4f, the best so far", self.name, value)
            return True
        if self.value is None:
            _logger.warning("%s is %s: there is no %s.pth of this run yet", self.name, value, BEST_NAME)
        else:
            _logger.info("%s is %.4f; the best is %.4f, of iteration %d", self.name, value, self.value, self.iteration)
        return False

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self.value, "iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.value, self.iteration = state["best"], state["iteration"]
