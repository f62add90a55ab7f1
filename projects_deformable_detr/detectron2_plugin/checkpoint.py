"""Checkpointer for Detectron2 that loads files of all supported formats and maps classes by name.

``DetectionCheckpointer`` creates it for the project's models, including in ``DefaultPredictor`` and ``DefaultTrainer``
(see `patches`).
"""

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
    CheckpointError,
    LoadOptions,
    Weights,
    fit,
    import_state,
    load_weights,
    read_checkpoint,
    read_weights,
    write_atomically,
)
from ..checkpoint.classes import shorten
from ..config.checkpoint import LOADING_KEYS
from ..config.reading import naming_keys
from ..training.last_checkpoint import find_last_checkpoint, remove_old_checkpoints, write_last_checkpoint
from ..zoo import TORCHVISION, ZOO, locate

# Parameter names in these files are matched by Detectron2: files of pycls, and files that request it.
_MATCHED_BY_DETECTRON2 = (".pyth", "?matching_heuristics=True")
EMA = "ema"  # key of the `ExponentialMovingAverage` in a checkpoint
_DETECTOR = "detector."
_BACKBONE = "detector.backbone."


class DetectorCheckpointer(DetectionCheckpointer):
    """Resumes and saves like Detectron2, and loads weights of any known format.

    Args:
        model: a meta-architecture with its network in ``detector``, or one wrapped for distributed training.
        save_dir: folder of the checkpoints; a URL of Detectron2's ``PathManager``, such as ``s3://…``, keeps all of
            them.
        options: options for loading. Default: those of the model, for evaluation if the model is in ``eval`` mode.
        keep: number of periodic checkpoints to keep; 0: all.
        checkpointables: as in Detectron2.

    Attributes:
        saved_iteration: iteration of the last checkpoint that this process saved; -1: none.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        options: LoadOptions | None = None,
        keep: int = 0,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.keep = keep
        self.saved_iteration = -1
        self.written: list[Path] = []  # periodic checkpoints of this process
        self._options = options

    @property
    def options(self) -> LoadOptions:
        """Options for loading."""
        return self._options or dataclasses.replace(self.model.load_options, for_evaluation=not self.model.training)

    @property
    def _is_remote(self) -> bool:
        return "://" in self.save_dir

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resumes or loads ``path``, then broadcasts the weights of the first process.

        All processes must call this method. Parameters that the file lacks have different initial values in each
        process.
        """
        rest: dict[str, Any] = super().resume_or_load(path, resume=resume)
        _broadcast(self.model)
        return rest

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads a checkpoint or, if ``checkpointables`` is empty, weights of any known format.

        Raises:
            CheckpointError: if the file cannot be read or does not match; see `load_weights`.
        """
        with naming_keys(LOADING_KEYS):
            if self.checkpointables if checkpointables is None else checkpointables:
                rest = super().load(path, checkpointables)
                if EMA in rest and not self.options.for_evaluation:
                    raise CheckpointError(
                        f"{path} contains averaged weights: set SOLVER.EMA.ENABLED True to resume, or start from them "
                        "with `weights` and another OUTPUT_DIR"
                    )
                return rest
            if path and not path.startswith(TORCHVISION) and not path.endswith(_MATCHED_BY_DETECTRON2):
                path = self.path_manager.get_local_path(path)
            if self._is_matched_by_detectron2(path):
                return super().load(path, [])
            if path and not path.startswith(TORCHVISION):
                self._load_weights(read_weights(path), path)
            else:
                load_weights(self.model.detector, path, self.options)
            return {}

    def _is_matched_by_detectron2(self, path: str) -> bool:
        """Returns whether Detectron2 loads a path: pickles of networks other than ResNets, and an empty path."""
        if path.endswith(".pkl") and import_state(read_weights(path).state)[0] is None:
            return True
        is_required = self._options is not None and self._options.for_evaluation
        return path.endswith(_MATCHED_BY_DETECTRON2) or not (path or is_required)

    def _load_weights(self, weights: Weights, source: str) -> None:
        """Loads weights into the detector, and those of a subclass's other modules by their names."""
        own = self.model.state_dict()
        others = {key: value for key, value in weights.state.items() if key in own and not key.startswith(_DETECTOR)}
        state = {key: value for key, value in weights.state.items() if key not in others}
        fitting, _ = fit(self.model.detector, Weights(state, weights.class_names), source, self.options)
        self.model.load_state_dict(
            {f"{_DETECTOR}{key}": value for key, value in fitting.items()} | others, strict=False
        )

    def _torch_load(self, filename: str) -> dict[str, Any]:
        content: dict[str, Any] = read_checkpoint(Path(filename))
        return content

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Reads pickles without running code, unlike Detectron2's reader."""
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        content = read_checkpoint(Path(filename))
        if "model" in content and "__author__" in content:
            return content
        return {"model": content, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if not checkpoint.get("matching_heuristics", False):
            self._load_weights(Weights(checkpoint.pop("model"), checkpoint.get(CLASS_NAMES)), "the checkpoint")
            return None
        keys = super()._load_model(checkpoint)
        missing = [key for key in keys.missing_keys if key.startswith(_BACKBONE)]
        if self.options.for_evaluation and len(missing) < len(keys.missing_keys):
            raise CheckpointError("`weights` contains only a backbone: evaluation needs a trained detector")
        # Classifiers in these files are not used.
        shapes = [f"{key}: {found} in the file, {wanted} in the model" for key, found, wanted in keys.incorrect_shapes]
        problems = shorten([f"missing in the file: {key}" for key in missing]) + shorten(shapes)
        if problems and not self.options.allow_partial:
            raise CheckpointError(
                "the checkpoint does not match the model: use the config of its training, or set `allow_partial=True` "
                "to load the weights that match:\n  " + "\n  ".join(problems)
            )
        return keys

    def save(self, name: str, **kwargs: Any) -> None:
        """Atomically writes ``<name>.pth``, with averaged weights as ``model`` if ``SOLVER.EMA`` is enabled.

        Args:
            name: name of the file without suffix.
            kwargs: additional content.
        """
        self.saved_iteration = kwargs.get("iteration", -1)
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        class_names = self.options.class_names
        names = {CLASS_NAMES: list(class_names)} if class_names else {}
        ema = self.checkpointables.get(EMA)
        model = self.model if ema is None else ema.averaged
        content = {"model": model.state_dict(), **parts, **names, **kwargs}
        if self._is_remote:
            with self.path_manager.open(path, "wb") as file:
                torch.save(content, file)
        else:
            write_atomically(path, content)
        self.tag_last_checkpoint(os.path.basename(path))
        if self.keep and not self._is_remote:
            remove_old_checkpoints(Path(path), self.written, self.keep)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Atomically writes the name of a file to ``last_checkpoint``."""
        if self._is_remote:
            super().tag_last_checkpoint(last_filename_basename)
            return
        write_last_checkpoint(Path(self.save_dir, last_filename_basename))

    def get_checkpoint_file(self) -> str:
        """Returns the checkpoint from which ``--resume`` continues; raises `CheckpointError` if it is unusable."""
        if self._is_remote:
            return str(super().get_checkpoint_file())
        options = self.options
        last = find_last_checkpoint(
            Path(self.save_dir), "detectron2", options.class_names, for_evaluation=options.for_evaluation
        )
        return str(last or "")


class _PublishedWeights(PathHandler):
    """Resolves ``torchvision://resnet50`` and ``zoo://detr_r50`` to downloaded files."""

    def _get_supported_prefixes(self) -> list[str]:
        return [TORCHVISION, ZOO]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(locate(path))


def register() -> None:
    """Registers paths of published weights."""
    PathManager.register_handler(_PublishedWeights(), allow_override=True)


@torch.no_grad()
def _broadcast(model: nn.Module) -> None:
    """Broadcasts parameters and buffers of the first process to all others."""
    if comm.get_world_size() > 1:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            distributed.broadcast(tensor, 0)
