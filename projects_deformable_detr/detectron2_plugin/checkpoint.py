"""Checkpoints in Detectron2: the project's loader in its own checkpointer and, by a patch, in Detectron2's."""

import argparse
import itertools
import os
from collections.abc import Callable
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
        return load_file(filename, super()._load_file)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        is_matched_by_name = checkpoint.get("matching_heuristics", False)
        convert_checkpoint(self.model, checkpoint, self.options)
        keys = super()._load_model(checkpoint)
        if is_matched_by_name and not self.options.allow_partial:
            self._check_backbone(keys)
        return keys

    def _check_backbone(self, keys: Any) -> None:
        """Checks the weights that Detectron2 has matched by name; the classifiers in these files are unused."""
        if self.options.for_evaluation and any(not key.startswith(_BACKBONE) for key in keys.missing_keys):
            raise CheckpointError("MODEL.WEIGHTS contains only a backbone: evaluation needs a trained detector")
        problems = shorten([key for key in keys.missing_keys if key.startswith(_BACKBONE)])
        problems += shorten([f"{key} with another shape" for key, *_ in keys.incorrect_shapes])
        if problems:
            raise CheckpointError(
                f"the checkpoint lacks weights of the backbone: {', '.join(problems)}. Choose the config of its "
                "network, or set MODEL.DETR.ALLOW_PARTIAL_WEIGHTS True to load what fits"
            )

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
    """Registers ``torchvision://`` paths."""
    PathManager.register_handler(_TorchvisionHandler(), allow_override=True)


def load_file(filename: str, read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Reads a checkpoint with Detectron2's function ``read``, but pickles without running code."""
    if not filename.endswith(".pkl"):
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments in the official files, no code
            return read(filename)
    read_weights(filename)  # raises a CheckpointError for damaged files
    content = read_pickle(filename)
    if "model" in content and "__author__" in content:
        return dict(content)
    return {"model": content.get("blobs", content), "__author__": "Caffe2", "matching_heuristics": True}


def convert_checkpoint(model: Any, checkpoint: dict[str, Any], options: LoadOptions) -> None:
    """Converts the weights of any known format, and their class heads, for a model of the project, in place.

    Weights that Detectron2 matches by name are left unchanged.

    Raises:
        CheckpointError: for weights that do not fit (see `load_weights`), and for weights of another architecture, such
            as Faster R-CNN, of which Detectron2 would load nothing.
    """
    state = checkpoint["model"]
    if checkpoint.get("matching_heuristics", False) or not state:
        return
    ours = {key: value for key, value in state.items() if key.removeprefix("module.").startswith(_DETECTOR)}
    if detect(ours or state) is None:
        if not state.keys() & model.state_dict().keys():
            raise CheckpointError(
                f"the checkpoint has no weights of this model: its keys are {', '.join(shorten(sorted(state)))}. "
                "Start from a backbone (torchvision://resnet50), or from a detector of this architecture"
            )
        return
    names = checkpoint.get(CLASS_NAMES)
    weights = Weights(ours or dict(state), tuple(map(str, names)) if names else None)
    fitting = fit(model.detector, weights, "the checkpoint", options)[0]
    others = {key: value for key, value in state.items() if ours and key not in ours}  # of a subclass
    checkpoint["model"] = {f"{_DETECTOR}{key}": value for key, value in fitting.items()} | others


@torch.no_grad()
def _broadcast(model: nn.Module) -> None:
    """Broadcasts parameters and buffers of the first process to all others."""
    if comm.get_world_size() > 1:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            distributed.broadcast(tensor, 0)
