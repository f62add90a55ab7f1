"""Optimizer, learning-rate schedule, augmentation policy, EMA, best checkpoint and early stopping for both engines."""

from dataclasses import dataclass

from .augmentation import AugmentationPolicy, EmptyMasks
from .callbacks import BestCheckpointConfig, CallbacksConfig, EarlyStoppingConfig
from .ema import EmaConfig
from .optimizer import GradientClip, OptimizerConfig, build_optimizer
from .schedule import ScheduleConfig, build_scheduler

__all__ = [
    "AugmentationPolicy",
    "BestCheckpointConfig",
    "CallbacksConfig",
    "EarlyStoppingConfig",
    "EmaConfig",
    "EmptyMasks",
    "GradientClip",
    "OptimizerConfig",
    "ScheduleConfig",
    "TrainingConfig",
    "build_optimizer",
    "build_scheduler",
]


@dataclass(frozen=True)
class TrainingConfig:
    """Configuration of a training run, without its data.

    Attributes:
        optimizer: optimizer and gradient clipping.
        schedule: number of iterations and learning rates.
        callbacks: EMA, best checkpoint, early stopping and periods.
    """

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    callbacks: CallbacksConfig
