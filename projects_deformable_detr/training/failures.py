"""Reports failed training steps: adds the images of the batch to errors and saves a file that reproduces the step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.files import CheckpointError, write_atomically
from ..errors import UserError
from ..modeling import Targets
from ..modeling.structures import image_name

Samples = tuple[Sequence[Tensor], Sequence[Targets]]


class StepRecorder:
    """Keeps the input of the current training step, and writes it to a file if the step fails.

    ``tools/replay_step.py`` repeats the step. The file contains tensors and plain values only.

    Args:
        output_dir: folder for the file ``failed_step_<iteration>_rank<rank>.pth``.
        seed: seed of the run, negative if it has none.
        rank: index of the process.
        num_classes: number of classes of the model.
        accumulation_steps: number of micro-batches of the step.
    """

    def __init__(
        self, output_dir: str | Path, seed: int, rank: int, num_classes: int, accumulation_steps: int = 1
    ) -> None:
        self.output_dir = Path(output_dir)
        self.metadata = {"seed": seed, "rank": rank, "num_classes": num_classes}
        self.metadata["accumulation_steps"] = accumulation_steps
        self._read: Callable[[], Samples] | None = None
        self._random: dict[str, Any] = {}

    def start(self, iteration: int, device: torch.device, read: Callable[[], Samples]) -> None:
        """Records the start of a step. Must be called before the model, once for all micro-batches.

        Args:
            iteration: iteration, counted from 0.
            device: device of the model, whose random state is saved.
            read: function that returns images (3, h, w) in 0–255 and targets; called only if the step fails.
        """
        self._read = read
        self._random = {"iteration": iteration, "rng_state": torch.get_rng_state()}
        if device.type == "cuda":
            self._random["cuda_rng_state"] = torch.cuda.get_rng_state(device)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Adds the images of the batch and the path of the saved step to errors raised in the block."""
        try:
            yield
        except (FloatingPointError, UserError) as error:
            if self._read is None:  # raised by the data loader before the step
                raise
            kind = FloatingPointError if isinstance(error, FloatingPointError) else UserError
            try:
                note = self._save(*self._read())
            except Exception as failure:  # the invalid records that caused the error may not be readable
                note = f"The step was not saved: {type(failure).__name__}: {failure}"
            raise kind(f"{error}\n{note}") from error

    def stop(self) -> None:
        """Releases the input of a completed step."""
        self._read = None

    def _save(self, images: Sequence[Tensor], targets: Sequence[Targets]) -> str:
        names = [image_name(targets, index) for index in range(len(targets))]
        content = {
            "names": names,
            "images": [image.cpu().clone() for image in images],
            "labels": [target.labels.cpu().clone() for target in targets],
            "boxes": [target.boxes.cpu().clone() for target in targets],
            "masks": [None if target.masks is None else target.masks.cpu().clone() for target in targets],
        }
        path = self.output_dir / f"failed_step_{self._random['iteration']:07d}_rank{self.metadata['rank']}.pth"
        message = f"Images of the batch: {', '.join(names)}."
        try:
            write_atomically(path, self.metadata | self._random | content)
        except CheckpointError as error:
            return f"{message} The step was not saved: {error}"
        return f"{message} The step was saved: repeat it with tools/replay_step.py {path}"
