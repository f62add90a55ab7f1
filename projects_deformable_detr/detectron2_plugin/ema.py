"""The average of the weights that are trained (``SOLVER.EMA``), and the hook that keeps it."""

import contextlib
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
        self._is_applied = False  # then ``average`` holds what is trained

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights meanwhile; nothing changes where it has them already."""
        if self._is_applied:
            yield
            return
        self.apply()
        try:
            yield
        finally:
            self.withdraw()

    def apply(self) -> None:
        """Gives the model the averaged weights; nothing before the first step: there is no average yet."""
        if not self._is_applied and self.average.n_averaged > 0:
            self._exchange()

    def withdraw(self) -> None:
        """Gives the model back what is trained."""
        if self._is_applied:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for averaged, trained in zip(_tensors(self.average.module), _tensors(self.model), strict=True):
            kept = averaged.clone()
            averaged.copy_(trained)
            trained.copy_(kept)
        self._is_applied = not self._is_applied

    @property
    def averaged(self) -> nn.Module:
        """What has the averaged weights at present; what is trained where there is no average yet."""
        return self.model if self._is_applied or self.average.n_averaged == 0 else self.average.module

    def averaged_state(self) -> dict[str, Any]:
        """What takes the place of the model's weights in files."""
        return self.averaged.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint's ``model`` does not tell."""
        trained = self.average.module if self._is_applied else self.model
        return {"model": trained.state_dict(), "n_averaged": self.average.n_averaged.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the model's weights, which have just been read, for the average's."""
        self.average.module.load_state_dict(self.model.state_dict())
        self.average.n_averaged.copy_(state["n_averaged"])
        self.model.load_state_dict(state["model"])
        self._is_applied = False


class Averaging(HookBase):
    """Brings the average up to date, before any other hook looks at the model."""

    def __init__(self, average: Average) -> None:
        self.of = average

    def before_train(self) -> None:
        """Says which weights the files have, and where an average begins late."""
        self.of.withdraw()  # of a training before
        _logger.info("Evaluations, model_final.pth and model_best.pth have the averaged weights (SOLVER.EMA)")
        if self.trainer.start_iter > 0 and self.of.average.n_averaged == 0:
            _logger.warning("The checkpoint has no averaged weights (SOLVER.EMA): the average begins with its weights")

    def after_step(self) -> None:
        """Takes the step's weights in."""
        self.of.average.update_parameters(self.of.model)

    def after_train(self) -> None:
        """What is evaluated at the end, and is left in the trainer, is the average."""
        self.of.apply()

    def state_dict(self) -> dict[str, Any]:
        """Not empty: Detectron2's own trainers warn, on resuming, of the state of a hook that they do not have."""
        return {"is_averaged": True}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The checkpoint's own key has what counts."""


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    return itertools.chain(model.parameters(), model.buffers())
