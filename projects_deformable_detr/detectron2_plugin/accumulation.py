"""Training loops that accumulate gradients over the micro-batches of a batch."""

import contextlib
import time
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..modeling import BatchSize

_METRIC = "cardinality_error"  # in the model's outputs, but not a loss


class AccumulatingTrainer(SimpleTrainer):
    """``SimpleTrainer`` that computes each batch in micro-batches, one after the other (``SOLVER.ACCUMULATION_STEPS``).

    Gradients and logged values are those of the whole batch, except that each micro-batch is padded to its own largest
    image. Gradients are always set to zero before the first forward pass.

    Args:
        arguments, options: as for ``SimpleTrainer``.
        accumulation_steps: number of micro-batches, which must divide the number of images of each batch.
    """

    def __init__(self, *arguments: Any, accumulation_steps: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.accumulation_steps = accumulation_steps
        self.batch: list[dict[str, Any]] = []  # the whole batch of the current step

    def run_step(self) -> None:
        """Computes all micro-batches, whose gradients are synchronized between processes with the last; then steps.

        Raises:
            UserError: if ``accumulation_steps`` does not divide the number of images.
        """
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        start = time.perf_counter()
        self.batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        try:
            losses = self._accumulate()
        finally:
            self.batch = []
        self.after_backward()
        if _METRIC in losses:
            get_event_storage().put_scalar(_METRIC, losses.pop(_METRIC))
        if self.async_write_metrics:
            self.concurrent_executor.submit(self._write_metrics, losses, data_time, iter=self.iter)
        else:
            self._write_metrics(losses, data_time)
        self.step()

    def _accumulate(self) -> dict[str, Tensor]:
        """Adds the gradients of all micro-batches; returns the sums of their outputs."""
        length, rest = divmod(len(self.batch), self.accumulation_steps)
        if rest or not length:
            raise UserError(
                f"SOLVER.ACCUMULATION_STEPS {self.accumulation_steps} must divide the number of images in the batch of "
                f"each process, got {len(self.batch)}"
            )
        batch_size = BatchSize(len(self.batch), sum(len(record.get("instances", ())) for record in self.batch))
        self.optimizer.zero_grad()
        outputs: dict[str, Tensor] = {}
        for first in range(0, len(self.batch), length):
            is_last = first + length == len(self.batch)
            is_blocked = not is_last and isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if is_blocked else contextlib.nullcontext():
                found = self.compute_gradients(self.batch[first : first + length], batch_size, visualize=first == 0)
            outputs = {name: outputs.get(name, 0.0) + value.detach() for name, value in found.items()}
        return outputs

    def compute_gradients(
        self, micro_batch: list[dict[str, Any]], batch_size: BatchSize, **options: Any
    ) -> dict[str, Tensor]:
        """Adds the gradients of a micro-batch; returns the model's outputs."""
        outputs: dict[str, Tensor] = self.model(micro_batch, batch_size, **options)
        _total(outputs).backward()
        return outputs

    def step(self) -> None:
        """Steps the optimizer."""
        self.optimizer.step()


class AccumulatingAMPTrainer(AccumulatingTrainer, AMPTrainer):
    """`AccumulatingTrainer` in mixed precision."""

    def run_step(self) -> None:
        """Runs the step of `AccumulatingTrainer` on a GPU."""
        assert torch.cuda.is_available(), f"[{type(self).__name__}] CUDA is required for AMP training!"
        super().run_step()

    def compute_gradients(
        self, micro_batch: list[dict[str, Any]], batch_size: BatchSize, **options: Any
    ) -> dict[str, Tensor]:
        """Adds the scaled gradients of a micro-batch; returns the model's outputs."""
        with torch.autocast("cuda", dtype=self.precision):
            outputs: dict[str, Tensor] = self.model(micro_batch, batch_size, **options)
            total = _total(outputs)
        self.grad_scaler.scale(total).backward()
        return outputs

    def step(self) -> None:
        """Steps the optimizer and updates the scale."""
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def _total(outputs: dict[str, Tensor]) -> Tensor:
    return torch.stack([value for name, value in outputs.items() if name != _METRIC]).sum()
