"""Exponential moving average (EMA) of a model's weights."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import Range, check_ranges


@dataclass(frozen=True)
class EmaConfig:
    """Configuration of the exponential moving average.

    Attributes:
        decay: weight of the previous average in an update, in (0, 1).
    """

    decay: Annotated[float, Range(above=0, below=1)] = 0.999

    def __post_init__(self) -> None:
        check_ranges(EmaConfig, vars(self))


def averaging_options(config: EmaConfig) -> dict[str, Any]:
    """Returns the keyword arguments of torch's ``AveragedModel``; buffers (batch-norm statistics) are averaged too."""
    # The function uses lerp, which keeps frozen weights bitwise unchanged.
    return {"multi_avg_fn": get_ema_multi_avg_fn(config.decay), "use_buffers": True}


class ExponentialMovingAverage:
    """Average of a model's parameters and buffers, which can be swapped with the model's own.

    Checkpoints store the averaged weights as the weights of the model, so that other programs can load them;
    `state_dict` adds the trained weights.

    Args:
        model: model without a distributed wrapper. Every process computes the average; parameters are equal on all
            processes, buffers are those of the process.
        config: configuration.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.model = model
        self.average = AveragedModel(model, **averaging_options(config))
        self._is_swapped = False  # the model has the averaged weights, and ``average`` the trained ones

    @property
    def has_average(self) -> bool:
        """Whether the average has been updated at least once."""
        return bool(self.average.n_averaged > 0)

    @property
    def averaged(self) -> nn.Module:
        """Model with the averaged weights; the trained model before the first update."""
        return self.average.module if self.has_average and not self._is_swapped else self.model

    def update(self) -> None:
        """Adds the model's weights to the average."""
        self.average.update_parameters(self.model)

    def apply(self) -> None:
        """Swaps the averaged weights into the model. Idempotent; has no effect before the first update."""
        if not self._is_swapped and self.has_average:
            self._swap()

    def restore(self) -> None:
        """Swaps the trained weights back into the model. Idempotent."""
        if self._is_swapped:
            self._swap()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager in which the model has the averaged weights."""
        was_swapped = self._is_swapped
        self.apply()
        try:
            yield
        finally:
            if not was_swapped:
                self.restore()

    @torch.no_grad()
    def _swap(self) -> None:
        for averaged, trained in zip(_tensors(self.average.module), _tensors(self.model), strict=True):
            kept = averaged.clone()
            averaged.copy_(trained)
            trained.copy_(kept)
        self._is_swapped = not self._is_swapped

    def state_dict(self) -> dict[str, Any]:
        """Returns the trained weights and the number of updates."""
        trained = self.average.module if self._is_swapped else self.model
        return {"model": trained.state_dict(), "n_averaged": self.average.n_averaged.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the trained weights; the model must already contain the averaged weights of the checkpoint."""
        self.average.module.load_state_dict(self.model.state_dict())
        self.average.n_averaged.copy_(state["n_averaged"])
        self.model.load_state_dict(state["model"])
        self._is_swapped = False


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    return itertools.chain(model.parameters(), model.buffers())
