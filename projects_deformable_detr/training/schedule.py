"""Learning-rate schedules of Detectron2: warm-up, then steps or a cosine."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Annotated

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import (
    ArgumentError,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Range,
    check_choice,
    check_ranges,
)

SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR")


@dataclass(frozen=True)
class ScheduleConfig:
    """Configuration of a learning-rate schedule.

    Attributes:
        name: ``"WarmupMultiStepLR"`` or ``"WarmupCosineLR"``.
        max_iter: number of iterations.
        base_lr, base_lr_end: initial and final learning rate of the cosine.
        steps: iterations at which the learning rate is multiplied by ``gamma``.
        gamma: factor at each of ``steps``.
        warmup_factor: warm-up factor at iteration 0.
        warmup_iters: number of warm-up iterations.
        warmup_method: ``"linear"`` or ``"constant"``.
        rescale_interval: whether to start the decay after the warm-up instead of at iteration 0.
    """

    name: str
    max_iter: PositiveInt
    base_lr: Positive
    base_lr_end: NonNegative = 0.0
    steps: Annotated[tuple[int, ...], Range(1)] = ()
    gamma: Annotated[float, Range(above=0, high=1)] = 0.1
    warmup_factor: Fraction = 0.001
    warmup_iters: NonNegativeInt = 0
    warmup_method: str = "linear"
    rescale_interval: bool = False

    def __post_init__(self) -> None:
        check_ranges(ScheduleConfig, vars(self))
        check_choice("name", self.name, SCHEDULES)
        check_choice("warmup_method", self.warmup_method, ("linear", "constant"))
        if list(self.steps) != sorted(set(self.steps)):
            raise ArgumentError("steps", f"must be increasing, got {self.steps}")
        if self.name == "WarmupCosineLR" and not 0 <= self.base_lr_end <= self.base_lr:
            raise ArgumentError("base_lr_end", f"must be in [0, {self.base_lr}], got {self.base_lr_end}")

    def factor(self, iteration: int) -> float:
        """Returns the learning-rate factor at an iteration, counted from 0."""
        progress = min(iteration, self.max_iter - 1) / self.max_iter
        warmup = min(self.warmup_iters / self.max_iter, 1.0)
        if progress >= warmup:
            return self._decay((progress - warmup) / (1 - warmup) if self.rescale_interval else progress)
        start = self.warmup_factor * self._decay(0.0)
        if self.warmup_method == "constant":
            return start
        end = self._decay(0.0 if self.rescale_interval else warmup)
        return start + (end - start) * progress / warmup

    def _decay(self, progress: float) -> float:
        """Returns the factor without warm-up at a progress in [0, 1]."""
        if self.name == "WarmupCosineLR":
            end = self.base_lr_end / self.base_lr
            return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))
        # The epsilon compensates for rounding in the division by max_iter.
        return self.gamma ** bisect_right(self.steps, int((progress + 1e-6) * self.max_iter))


def build_scheduler(optimizer: Optimizer, config: ScheduleConfig) -> LambdaLR:
    """Builds the scheduler for all parameter groups; call ``step()`` after each iteration."""
    return LambdaLR(optimizer, lambda iteration: config.factor(iteration))
