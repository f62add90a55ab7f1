"""Checkpoints in Detectron2: a checkpointer that raises an error for files that fit only in part.

Detectron2's own ``DetectionCheckpointer``, and with it ``DefaultPredictor`` and ``DefaultTrainer``, can also read files
of other projects: `read_foreign_weights` converts the weights when the model loads them.
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
    detect,
    download,
    fit,
    load_weights,
    read_pickle,
    read_weights,
    write_atomically,
)
from ..checkpoint.classes import shorten
from ..training.last_checkpoint import find_last_checkpoint, write_last_checkpoint

# Detectron2 matches the names in these files: pycls's, and those that request it.
_MATCHED_BY_DETECTRON2 = (".pyth", "?matching_heuristics=True")
EMA = "ema"  # key of the `ExponentialMovingAverage` in a checkpoint
_DETECTOR = "detector."
_BACKBONE = "detector.backbone."


class DetectorCheckpointer(DetectionCheckpointer):
    """Resumes and saves like Detectron2, and loads initial weights of any known format.

    Args:
        model: a meta-architecture with its network in ``detector``, or one wrapped for distributed training.
        save_dir: folder of the checkpoints.
        options: options for loading.
        checkpointables: as in Detectron2.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", options: LoadOptions | None = None, **checkpointables: Any
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.options = options or LoadOptions()

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads a checkpoint, or with ``checkpointables=[]`` initial weights of any known format.

        Initial weights are broadcast from the first process, since a download can fail in one of them.

        Raises:
            CheckpointError: listing missing and unexpected keys, and keys of different shapes.
        """
        if checkpointables != []:
            rest = super().load(path, checkpointables)
            if EMA in rest and not self.options.for_evaluation:
                raise CheckpointError(
                    f"{path} contains averaged weights: set SOLVER.EMA.ENABLED True to resume, or start from them with "
                    "MODEL.WEIGHTS and another OUTPUT_DIR"
                )
            return rest
        rest = {}
        if path and not path.startswith(TORCHVISION) and not path.endswith(_MATCHED_BY_DETECTRON2):
            path = self.path_manager.get_local_path(path)
        if self._is_matched_by_detectron2(path):
            rest = super().load(path, checkpointables)
        else:
            load_weights(self.model.detector, path, self.options)
        _broadcast(self.model)
        return rest

    def _is_matched_by_detectron2(self, path: str) -> bool:
        """Returns whether Detectron2 loads a path: pickles of networks other than ResNets, and an empty path."""
        if path.endswith(".pkl") and detect(read_weights(path).state) is None:
            return True
        return path.endswith(_MATCHED_BY_DETECTRON2) or not (path or self.options.for_evaluation)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Reads pickles without running code, unlike Detectron2's reader."""
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        read_weights(filename)  # raises a CheckpointError for damaged files
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
                raise CheckpointError("MODEL.WEIGHTS contains only a backbone: evaluation needs a trained detector")
            # The classifiers in these files are unused.
            missing, unexpected = [key for key in missing if key.startswith(_BACKBONE)], []
        shapes = [f"{key}: {found} in the file, {wanted} in the model" for key, found, wanted in keys.incorrect_shapes]
        problems = shorten([f"missing in the file: {key}" for key in missing])
        problems += shorten([f"unexpected in the file: {key}" for key in unexpected])
        problems += shorten(shapes)
        if problems and not self.options.allow_partial:
            raise CheckpointError(
                "the checkpoint does not fit the model; choose the config that it was trained with, or set "
                "MODEL.DETR.ALLOW_PARTIAL_WEIGHTS True to load what fits:\n  " + "\n  ".join(problems)
            )
        return keys

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Atomically writes ``<name>.pth``, with averaged weights as ``model`` if ``SOLVER.EMA`` is enabled.

        Args:
            name: name of the file without suffix.
            tag: make it the checkpoint from which ``--resume`` continues.
            kwargs: additional content.
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
        """Atomically writes the name of a file to ``last_checkpoint``."""
        write_last_checkpoint(Path(self.save_dir, last_filename_basename))

    def get_checkpoint_file(self) -> str:
        """Returns the checkpoint from which ``--resume`` continues; `CheckpointError` if it cannot be used."""
        return str(find_last_checkpoint(Path(self.save_dir), "detectron2") or "")


class _TorchvisionHandler(PathHandler):
    """Resolves ``torchvision://resnet50`` to the file of ImageNet weights."""

    def _get_supported_prefixes(self) -> list[str]:
        return [TORCHVISION]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(download(path))


def register() -> None:
    """Registers ``torchvision://`` paths, and allows the type of the arguments in the official files."""
    PathManager.register_handler(_TorchvisionHandler(), allow_override=True)
    # A Namespace contains values, no code.
    torch.serialization.add_safe_globals([argparse.Namespace])


def read_foreign_weights(model: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A pre-hook of ``load_state_dict`` that converts weights of another project in place.

    Weights with the model's keys are left unchanged; Detectron2 warns about missing ones. In evaluation mode, as in
    ``DefaultPredictor``, the weights must have all classes of the model.

    Raises:
        CheckpointError: for weights that do not fit (see `load_weights`), and for weights of another architecture, such
            as Faster R-CNN, of which Detectron2 would load nothing.
    """
    if prefix or not state or any(key.startswith(_DETECTOR) for key in state):
        return
    if detect(state) is None:
        if not state.keys() & model.state_dict().keys():
            raise CheckpointError(
                f"the checkpoint has no weights of this model: its keys are {', '.join(shorten(sorted(state)))}. "
                "Start from a backbone (torchvision://resnet50), or from a detector of this architecture"
            )
        return
    options = dataclasses.replace(model.load_options, for_evaluation=not model.training)
    fitting = fit(model.detector, Weights(dict(state)), "the checkpoint", options)[0]
    state.clear()
    state.update({f"{_DETECTOR}{key}": value for key, value in fitting.items()})


@torch.no_grad()
def _broadcast(model: nn.Module) -> None:
    """Broadcasts parameters and buffers of the first process to all others."""
    if comm.get_world_size() > 1:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            distributed.broadcast(tensor, 0)
