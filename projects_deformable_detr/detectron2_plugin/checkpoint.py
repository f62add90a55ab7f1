"""Detectron2's checkpointer, which refuses a file that fits only in part and knows the project's other formats."""

import itertools
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import distributed, nn

from ..checkpoint import CheckpointError, load_weights, write_atomically

# Detectron2 matches the names of these formats itself: Caffe2's and its own model zoo's, and pycls's.
_MATCHED_BY_DETECTRON2 = (".pkl", ".pyth", "?matching_heuristics=True")
_POINTER = "last_checkpoint"  # fvcore's name for it
_BACKBONE = "detector.backbone."
_SHOWN = 8  # keys of a kind in a message


class DetectorCheckpointer(DetectionCheckpointer):
    """Resumes and saves as Detectron2 does, and loads initial weights with nothing left out in silence.

    Initial weights may be a checkpoint of either engine, a torchvision ResNet's, or a backbone of Detectron2's own
    model zoo.

    Args:
        model: a meta-architecture with its weights in ``detector``, or one wrapped for distributed training.
        save_dir: where checkpoints are written and looked for.
        allow_partial: load what fits, and leave the rest as it is (``MODEL.DETR.ALLOW_PARTIAL_WEIGHTS``).
        for_evaluation: refuse no weights at all, and weights of a backbone alone.
        checkpointables: as in Detectron2.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        allow_partial: bool = False,
        for_evaluation: bool = False,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.allow_partial = allow_partial
        self.for_evaluation = for_evaluation

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads a checkpoint; with ``checkpointables=[]``, which means initial weights, in any format known.

        Initial weights are those of the first process in all of them: each loads for itself, and a download can fail.

        Raises:
            CheckpointError: listing what is missing and unexpected, or shaped otherwise.
        """
        if checkpointables != []:
            return super().load(path, checkpointables)
        if path.endswith(_MATCHED_BY_DETECTRON2) or not (path or self.for_evaluation):
            rest = super().load(path, checkpointables)
        else:
            source = path if path.startswith("torchvision://") or not path else self.path_manager.get_local_path(path)
            options = {"allow_partial": self.allow_partial, "for_evaluation": self.for_evaluation}
            load_weights(self.model.detector, source, **options)
            rest = {}
        _broadcast(self.model)
        return rest

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        is_backbone_only = checkpoint.get("matching_heuristics", False)
        keys = super()._load_model(checkpoint)
        missing, unexpected = list(keys.missing_keys), list(keys.unexpected_keys)
        if is_backbone_only:
            if self.for_evaluation and any(not key.startswith(_BACKBONE) for key in missing):
                raise CheckpointError("MODEL.WEIGHTS has a backbone only: evaluation needs a whole, trained detector")
            # These files have a classifier that is left over and no transformer; the backbone must be whole.
            missing, unexpected = [key for key in missing if key.startswith(_BACKBONE)], []
        shapes = [f"{key}: {found} in the file, {wanted} in the model" for key, found, wanted in keys.incorrect_shapes]
        problems = _listed([f"missing in the file: {key}" for key in missing])
        problems += _listed([f"unexpected in the file: {key}" for key in unexpected])
        problems += _listed(shapes)
        if problems and not self.allow_partial:
            raise CheckpointError(
                "the checkpoint does not fit the model; choose the config that it was trained with, or set "
                "MODEL.DETR.ALLOW_PARTIAL_WEIGHTS True to load what fits:\n  " + "\n  ".join(problems)
            )
        return keys

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``<name>.pth`` so that a run killed meanwhile leaves the file whole or does not leave it at all."""
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(path, {"model": self.model.state_dict(), **parts, **kwargs})
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Points ``last_checkpoint`` to a file; a run killed meanwhile leaves it as it was."""
        pointer = Path(self.save_dir, _POINTER)
        fresh = pointer.with_name(f".{_POINTER}")
        fresh.write_text(last_filename_basename)
        fresh.replace(pointer)

    def get_checkpoint_file(self) -> str:
        """The checkpoint that ``--resume`` goes on from.

        Raises:
            CheckpointError: if it is gone, or is of the standalone engine.
        """
        path = Path(super().get_checkpoint_file())
        pointer = Path(self.save_dir, _POINTER)
        if path == pointer.parent:
            raise CheckpointError(f"{pointer} is empty: write the name of a checkpoint into it, or remove it")
        if path.suffix == ".ckpt":
            raise CheckpointError(
                f"{pointer} names {path.name}, a checkpoint of the standalone engine: resume with --engine standalone, "
                f"or start from its weights with MODEL.WEIGHTS {path} and another OUTPUT_DIR"
            )
        if not path.is_file():
            raise CheckpointError(f"{pointer} names {path.name}, which is not there: put it back, or remove {pointer}")
        return str(path)


def _listed(lines: list[str]) -> list[str]:
    return lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])


@torch.no_grad()
def _broadcast(model: nn.Module) -> None:
    """Gives every process the parameters and buffers of the first."""
    if comm.get_world_size() > 1:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            distributed.broadcast(tensor, 0)
