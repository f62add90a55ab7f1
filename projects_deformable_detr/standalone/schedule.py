"""Detectron2's learning-rate schedules, from fvcore's building blocks."""

from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import UserError


def build_scheduler(cfg: Any, optimizer: Optimizer) -> LambdaLR:
    """Multiplies every parameter group's rate, once per iteration, by what ``cfg.SOLVER`` describes.

    Raises:
        UserError: for an unknown schedule or warm-up, or values that contradict each other.
    """
    max_iter = cfg.SOLVER.MAX_ITER
    multiplier = _with_warmup(cfg, _schedule(cfg))
    # The rate after the last iteration is never used; fvcore's constants end before 1.
    return LambdaLR(optimizer, lambda step: multiplier(min(step, max_iter - 1) / max_iter))


def _schedule(cfg: Any) -> ParamScheduler:
    solver = cfg.SOLVER
    if solver.MAX_ITER < 1:
        raise UserError(f"SOLVER.MAX_ITER is {solver.MAX_ITER}: it must be at least 1")
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = list(solver.STEPS)
        if sorted(set(steps)) != steps or any(step < 1 for step in steps):
            raise UserError(f"SOLVER.STEPS {tuple(steps)} must be positive and rising")
        steps = [step for step in steps if step < solver.MAX_ITER]  # later ones never come
        if not steps:
            return LinearParamScheduler(1.0, 1.0)
        values = [solver.GAMMA**count for count in range(len(steps) + 1)]
        return MultiStepParamScheduler(values, num_updates=solver.MAX_ITER, milestones=steps)
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        if not 0 <= end <= 1:
            raise UserError(f"SOLVER.BASE_LR_END {solver.BASE_LR_END} must be between 0 and BASE_LR {solver.BASE_LR}")
        return CosineParamScheduler(1.0, end)
    raise UserError(
        f"SOLVER.LR_SCHEDULER_NAME {solver.LR_SCHEDULER_NAME!r} is not known to this engine: choose "
        "WarmupMultiStepLR or WarmupCosineLR"
    )


def _with_warmup(cfg: Any, schedule: ParamScheduler) -> ParamScheduler:
    """Begins at WARMUP_FACTOR times the schedule's start and joins it at WARMUP_ITERS."""
    solver = cfg.SOLVER
    length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    if length <= 0:
        return schedule
    start = solver.WARMUP_FACTOR * schedule(0.0)
    if solver.WARMUP_METHOD == "linear":
        warmup: ParamScheduler = LinearParamScheduler(start, schedule(0.0 if solver.RESCALE_INTERVAL else length))
    elif solver.WARMUP_METHOD == "constant":
        warmup = ConstantParamScheduler(start)
    else:
        raise UserError(f"SOLVER.WARMUP_METHOD {solver.WARMUP_METHOD!r} is not known: choose linear or constant")
    after = "rescaled" if solver.RESCALE_INTERVAL else "fixed"
    return CompositeParamScheduler([warmup, schedule], [length, 1 - length], ["rescaled", after])
