"""Weights in Detectron2: its checkpointer, which refuses a file that fits only in part, and what plain ones learn here.

Detectron2's own ``DetectionCheckpointer``, and with it ``DefaultPredictor`` and ``DefaultTrainer``, reads other
projects' files too: `read_foreign_weights` renames them as the model loads them, `register` teaches its path manager
``torchvision://NAME`` and PyTorch the one type, beyond tensors, that the official files hold.
"""

import argparse
import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import PathHandler, PathManager
from torch import distributed, nn

from ..checkpoint import (
    CLASS_NAMES,
    TORCHVISION,
    CheckpointError,
    LoadOptions,
    Weights,
    download,
    fit,
    load_weights,
    read_pickle,
    read_weights,
    recognise,
    write_atomically,
)
from ..training.last_checkpoint import find_last_checkpoint, write_last_checkpoint

# Detectron2 matches the names of these formats itself: pycls's, and whatever is said to need it.
_MATCHED_BY_DETECTRON2 = (".pyth", "?matching_heuristics=True")
EMA = "ema"  # key of the `ExponentialMovingAverage` in a checkpoint
_DETECTOR = "detector."
_BACKBONE = "detector.backbone."
_SHOWN = 8  # keys of a kind in a message


class DetectorCheckpointer(DetectionCheckpointer):
    """Resumes and saves as Detectron2 does, and loads initial weights with nothing left out in silence.

    Initial weights may be a checkpoint of either engine, of another project that `checkpoint.recognise` knows, or a
    backbone of torchvision's or of Detectron2's own model zoo.

    Args:
        model: a meta-architecture with its weights in ``detector``, or one wrapped for distributed training.
        save_dir: where checkpoints are written and looked for.
        options: what loading may do.
        checkpointables: as in Detectron2.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", options: LoadOptions | None = None, **checkpointables: Any
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.options = options or LoadOptions()

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads a checkpoint; with ``checkpointables=[]``, which means initial weights, in any format known.

        Initial weights are those of the first process in all of them: each loads for itself, and a download can fail.

        Raises:
            CheckpointError: listing what is missing and unexpected, or shaped otherwise.
        """
        if checkpointables != []:
            left = super().load(path, checkpointables)
            if EMA in left and not self.options.for_evaluation:
                raise CheckpointError(
                    f"{path} holds averaged weights beside the trained ones: set SOLVER.EMA.ENABLED True to resume, or "
                    "start anew from the averaged ones with MODEL.WEIGHTS and another OUTPUT_DIR"
                )
            return left
        rest: dict[str, Any] = {}
        if path and not path.startswith(TORCHVISION) and not path.endswith(_MATCHED_BY_DETECTRON2):
            path = self.path_manager.get_local_path(path)
        if self._is_matched_by_detectron2(path):
            rest = super().load(path, checkpointables)
        else:
            load_weights(self.model.detector, path, self.options)
        _broadcast(self.model)
        return rest

    def _is_matched_by_detectron2(self, path: str) -> bool:
        """Pickles of other networks than ResNets are Detectron2's affair, like no weights at all."""
        if path.endswith(".pkl") and recognise(read_weights(path).state) == "unknown":
            return True
        return path.endswith(_MATCHED_BY_DETECTRON2) or not (path or self.options.for_evaluation)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Pickles are read without running code from them, which Detectron2's own reader would do."""
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        read_weights(filename)  # refuses what is no checkpoint
        content = read_pickle(filename)
        if "model" in content and "__author__" in content:
            return content
        return {"model": content.get("blobs", content), "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        is_backbone_only = checkpoint.get("matching_heuristics", False)
        keys = super()._load_model(checkpoint)
        missing, unexpected = list(keys.missing_keys), list(keys.unexpected_keys)
        if is_backbone_only:
            if self.options.for_evaluation and any(not key.startswith(_BACKBONE) for key in missing):
                raise CheckpointError("MODEL.WEIGHTS has a backbone only: evaluation needs a whole, trained detector")
            # These files have a classifier that is left over and no transformer; the backbone must be whole.
            missing, unexpected = [key for key in missing if key.startswith(_BACKBONE)], []
        shapes = [f"{key}: {found} in the file, {wanted} in the model" for key, found, wanted in keys.incorrect_shapes]
        problems = _listed([f"missing in the file: {key}" for key in missing])
        problems += _listed([f"unexpected in the file: {key}" for key in unexpected])
        problems += _listed(shapes)
        if problems and not self.options.allow_partial:
            raise CheckpointError(
                "the checkpoint does not fit the model; choose the config that it was trained with, or set "
                "MODEL.DETR.ALLOW_PARTIAL_WEIGHTS True to load what fits:\n  " + "\n  ".join(problems)
            )
        return keys

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Writes ``<name>.pth`` so that a run killed meanwhile leaves the file whole or does not leave it at all.

        With ``SOLVER.EMA`` its ``model`` is the average. ``tag``: it is what ``--resume`` goes on from.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        names = {CLASS_NAMES: list(self.options.class_names)} if self.options.class_names else {}
        ema = self.checkpointables.get(EMA)
        model = self.model if ema is None else ema.averaged
        write_atomically(path, {"model": model.state_dict(), **parts, **names, **kwargs})
        if tag:
            self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Points ``last_checkpoint`` to a file. Atomic."""
        write_last_checkpoint(Path(self.save_dir, last_filename_basename))

    def get_checkpoint_file(self) -> str:
        """Returns the checkpoint from which ``--resume`` continues; `CheckpointError` if it cannot be used."""
        return str(find_last_checkpoint(Path(self.save_dir), "detectron2") or "")


class _TorchvisionHandler(PathHandler):
    """``torchvision://resnet50`` as the file of its ImageNet weights."""

    def _get_supported_prefixes(self) -> list[str]:
        return [TORCHVISION]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(download(path))


def register() -> None:
    """Teaches Detectron2's path manager, and PyTorch's safe unpickler, what foreign checkpoints need."""
    PathManager.register_handler(_TorchvisionHandler(), allow_override=True)
    # The official repositories keep their command line beside the weights: a Namespace holds values, no code.
    torch.serialization.add_safe_globals([argparse.Namespace])


def read_foreign_weights(model: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A pre-hook of ``load_state_dict``: renames another project's weights, in place, to the model's.

    Whatever already has the model's names is left alone, and Detectron2 warns of what is missing. A model in
    evaluation mode, such as ``DefaultPredictor``'s, takes only what leaves no class untrained.

    Raises:
        CheckpointError: as `load_weights`, for another project's weights that do not fit; for weights of another
            architecture, such as a Faster R-CNN's, of which Detectron2 would load nothing, with a warning.
    """
    if prefix or not state or any(key.startswith(_DETECTOR) for key in state):
        return
    if recognise(state) == "unknown":
        if not state.keys() & model.state_dict().keys():
            raise CheckpointError(
                f"the checkpoint has nothing of this model: its weights are {', '.join(_listed(sorted(state)))}. Start "
                "from a backbone (torchvision://resnet50), or from a detector of this architecture"
            )
        return
    options = dataclasses.replace(model.load_options, for_evaluation=not model.training)
    fitting = fit(model.detector, Weights(dict(state)), "the checkpoint", options)[0]
    state.clear()
    state.update({f"{_DETECTOR}{key}": value for key, value in fitting.items()})


def _listed(lines: list[str]) -> list[str]:
    return lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])


@torch.no_grad()
def _broadcast(model: nn.Module) -> None:
    """Gives every process the parameters and buffers of the first."""
    if comm.get_world_size() > 1:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            distributed.broadcast(tensor, 0)
