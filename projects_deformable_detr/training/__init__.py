"""Optimizer, learning-rate schedule, augmentation policy, EMA, best checkpoint and early stopping for both engines."""

from dataclasses import dataclass

from .augmentation import AugmentationPolicy
from .callbacks import BestCheckpointConfig, EarlyStoppingConfig
from .ema import EmaConfig
from .optimizer import GradientClip, OptimizerConfig, build_optimizer
from .schedule import ScheduleConfig, build_scheduler

__all__ = [
    "AugmentationPolicy",
    "BestCheckpointConfig",
    "EarlyStoppingConfig",
    "EmaConfig",
    "GradientClip",
    "OptimizerConfig",
    "ScheduleConfig",
    "TrainingConfig",
    "build_optimizer",
    "build_scheduler",
]


@dataclass(frozen=True)
class TrainingConfig:
    """Configuration of a training run, without its data and its learning-rate schedule.

    Attributes:
        optimizer: optimizer and gradient clipping.
        ema: exponential moving average of the weights, or None.
        best_checkpoint: best checkpoint, or None.
        early_stopping: early stopping, or None.
        max_iter: number of iterations.
        eval_period: iterations between evaluations; 0 evaluates after the last iteration only.
        checkpoint_period: iterations between checkpoints.
    """

    optimizer: OptimizerConfig
    ema: EmaConfig | None
    best_checkpoint: BestCheckpointConfig | None
    early_stopping: EarlyStoppingConfig | None
    max_iter: int
    eval_period: int
    checkpoint_period: int
