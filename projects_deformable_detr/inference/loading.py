"""Opens models for `Detector`: checkpoints, output folders, published weights and exported models."""

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import zoo
from ..checkpoint import read_weights
from ..checkpoint.classes import shorten
from ..checkpoint.files import checkpoint_in
from ..config.inference import ConfigSource, ModelMetadata, read_config, read_model
from ..errors import ArgumentError, UserError, did_you_mean
from ..modeling import Detector
from .exported import ExportedModel, is_exported
from .model import Runner

_logger = logging.getLogger(__name__)


def open_model(
    source: str | os.PathLike[str],
    config: ConfigSource | None,
    class_names: Sequence[str] | None,
    device: str | torch.device,
) -> tuple[Runner, ModelMetadata]:
    """Opens a model; see `Detector.load` for arguments and errors."""
    is_sequence = isinstance(class_names, Sequence) and not isinstance(class_names, str)
    if class_names is not None and not (is_sequence and all(isinstance(name, str) for name in class_names)):
        raise ArgumentError("class_names", f"must be a sequence of names, got {class_names!r}")
    if duplicates := [name for name, count in Counter(class_names).items() if count > 1]:
        raise ArgumentError("class_names", f"must be different names, got {duplicates[0]!r} more than once")
    path, entry = find_model(source)
    runner: Runner
    if is_exported(path):
        if config is not None:
            raise ArgumentError("config", "must be None for an exported model, which contains its own")
        runner = ExportedModel(path, device)
        metadata = runner.metadata
    else:
        runner, metadata = _open_checkpoint(path, entry, config, assume_names=class_names is None)
    if class_names is None:
        return runner, metadata
    if len(class_names) != len(metadata.class_names):
        raise ArgumentError(
            "class_names", f"must be {len(metadata.class_names)} names for the model's classes, got {len(class_names)}"
        )
    return runner, dataclasses.replace(metadata, class_names=tuple(class_names))


def find_model(source: str | os.PathLike[str]) -> tuple[Path, zoo.Entry | None]:
    """Returns the file of a model, which is downloaded if it is published, and the entry of published weights.

    Raises:
        UserError: if there is no such file, folder or published detector, or it cannot be downloaded.
    """
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise ArgumentError("source", f"must be a path or the name of published weights, got {source!r}")
    path, name = Path(source), os.fspath(source).removeprefix(zoo.ZOO)
    if name == os.fspath(source) and path.exists():
        found = checkpoint_in(path)
        if found != path:
            _logger.info("Loading %s", found)
        return found, None
    if name not in zoo.ENTRIES and name == os.fspath(source):
        near = [key for key, entry in zoo.ENTRIES.items() if entry.config == name]
        hint = f"; did you mean {near[0]}?" if near else did_you_mean(name, zoo.ENTRIES)
        hint = hint or "; names of published weights are in docs/models.md"
        raise UserError(f"there is no file, folder or published model {name!r}{hint}")
    entry = zoo.get(name)
    if entry.is_backbone:
        raise UserError(f"{source}: must be a detector, got the weights of a backbone")
    return zoo.download(name), entry


def _open_checkpoint(
    path: Path, entry: zoo.Entry | None, config: ConfigSource | None, *, assume_names: bool
) -> tuple[Detector, ModelMetadata]:
    """Builds the detector of a checkpoint and loads its weights."""
    weights = read_weights(path)
    cfg = read_config(path, weights.config, config or (entry.config if entry else None))
    model = read_model(cfg, weights, str(path), entry.class_names if entry else None)
    evaluation, names = model.metadata.evaluation, model.metadata.class_names
    if evaluation.is_panoptic and not evaluation.thing_classes:
        raise UserError("MODEL.DETR.PANOPTIC.NUM_THING_CLASSES is 0: set it to the number of things of the model")
    detector = model.load(weights, str(path))
    if assume_names and not (weights.class_names or entry):
        _logger.warning(
            "%s has no class names: %d are assumed (%s). Pass class_names to Detector.load to set them.",
            path, len(names), ", ".join(shorten(names, 4)),
        )  # fmt: skip
    return detector, model.metadata
