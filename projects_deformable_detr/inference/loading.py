"""Opens models for `Detector`: checkpoints, output folders, published weights and exported models."""

import dataclasses
import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from ..checkpoint import CheckpointError, Weights, fit, read_weights, zoo
from ..checkpoint.classes import shorten
from ..checkpoint.coco_classes import THINGS, THINGS_AND_STUFF
from ..checkpoint.load import file_classes
from ..config import build_detector, get_cfg, leaves, merge, set_thing_classes, thing_classes
from ..config.checkpoint import LOADING_KEYS, load_options
from ..config.data import image_reader
from ..config.evaluation import evaluation_config, tta_config
from ..config.loading import stored_cfg
from ..config.model import BACKBONES, criterion_config
from ..config.reading import naming_keys
from ..config.recipes import find_config
from ..config.run import process_config
from ..errors import ArgumentError, UserError
from ..modeling import Detector
from .exported import is_exported, open_exported
from .model import ModelMetadata, Runner

_logger = logging.getLogger(__name__)
COCO_NAMES = {len(THINGS): THINGS, len(THINGS_AND_STUFF): THINGS_AND_STUFF}
_IN_OUTPUT_FOLDER = ("model_best.pth", "model_final.pth")


def open_model(
    source: str | os.PathLike[str], config: Any, class_names: Sequence[str] | None, device: str | torch.device
) -> tuple[Runner, ModelMetadata]:
    """Opens a model; see `Detector.load` for arguments and errors."""
    if isinstance(class_names, str) or (class_names is not None and not all(isinstance(n, str) for n in class_names)):
        raise ArgumentError("class_names", f"must be a sequence of names, got {class_names!r}")
    path, entry = find_model(source)
    if is_exported(path):
        if config is not None:
            raise ArgumentError("config", "must be None for an exported model, which contains its own")
        runner, metadata = open_exported(path, device)
        return runner, _rename(metadata, class_names)
    weights = read_weights(path)
    if entry is not None:
        config, weights = config or entry.config, dataclasses.replace(weights, class_names=entry.class_names)
    return _open_checkpoint(path, weights, config, class_names)


def find_model(source: str | os.PathLike[str]) -> tuple[Path, zoo.Entry | None]:
    """Returns the file of a model, which is downloaded if it is published, and the entry of published weights.

    Raises:
        UserError: if there is no such file, folder or published detector, or it cannot be downloaded.
    """
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise ArgumentError("source", f"must be a path or the name of published weights, got {source!r}")
    path, name = Path(source), os.fspath(source).removeprefix(zoo.ZOO)
    if name == os.fspath(source) and path.exists():
        return _find_checkpoint(path), None
    if name not in zoo.ENTRIES and name == os.fspath(source):
        near = [key for key, entry in zoo.ENTRIES.items() if entry.config == name]
        near = near or difflib.get_close_matches(name, zoo.ENTRIES, n=1)
        hint = f"did you mean {near[0]}?" if near else "names of published weights are in docs/models.md"
        raise UserError(f"there is no file, folder or published model {name!r}: {hint}")
    entry = zoo.get(name)
    if entry.is_backbone:
        raise UserError(f"{source}: must be a detector, got the weights of a backbone")
    return zoo.download(name), entry


def _find_checkpoint(path: Path) -> Path:
    """Returns the best, final or last model in an output folder; other paths are returned unchanged."""
    if not path.is_dir():
        return path
    candidates = [path / name for name in _IN_OUTPUT_FOLDER]
    if (path / "last_checkpoint").is_file():
        candidates.append(path / (path / "last_checkpoint").read_text(encoding="utf-8").strip())
    found = next((file for file in candidates if file.is_file()), path)
    if found != path:
        _logger.info("Loading %s", found)
    return found


def _open_checkpoint(
    path: Path, weights: Weights, config: Any, class_names: Sequence[str] | None
) -> tuple[Detector, ModelMetadata]:
    """Builds the detector of a checkpoint and loads its weights."""
    cfg = _read_config(path, weights, config)
    is_softmax = criterion_config(cfg).class_loss == "softmax"
    format, count, stored = file_classes(weights, is_softmax)
    if format is None or format.is_backbone:
        found = "unknown weights" if format is None else "the weights of a backbone"
        raise CheckpointError(f"{path}: must contain a detector, got {found}")
    known = tuple(name for name in stored or () if name is not None)
    cfg.MODEL.DETR.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES or len(known) or count
    if len(known) != cfg.MODEL.DETR.NUM_CLASSES:
        known = ()
    names = known or COCO_NAMES.get(cfg.MODEL.DETR.NUM_CLASSES) or _numbered(cfg.MODEL.DETR.NUM_CLASSES)
    _set_things(cfg, names)
    with torch.random.fork_rng(devices=()):  # the initial weights are replaced
        detector = build_detector(cfg)
    options = load_options(cfg, for_evaluation=True, class_names=known or None)
    with naming_keys(LOADING_KEYS):
        fitting, _ = fit(detector, weights, str(path), options)
    detector.load_state_dict(fitting, strict=False)
    metadata = _rename(read_metadata(cfg, names, no_object=detector.no_object), class_names)
    if not weights.class_names and class_names is None:
        _logger.warning(
            "%s has no class names: %d are assumed (%s). Pass class_names to Detector.load to set them.",
            path, len(names), ", ".join(shorten(names, 4)),
        )  # fmt: skip
    return detector, metadata


def read_metadata(cfg: CfgNode, class_names: Sequence[str], *, no_object: bool) -> ModelMetadata:
    """Reads the metadata of a model from its config.

    Raises:
        UserError: for an invalid value; the message names the key.
    """
    process = process_config(cfg)
    return ModelMetadata(
        tuple(class_names),
        no_object,
        cfg.MODEL.MASK_ON,
        process.pixel_mean,
        process.pixel_std,
        cfg.INPUT.MIN_SIZE_TEST,
        cfg.INPUT.MAX_SIZE_TEST,
        image_reader(cfg),
        dataclasses.replace(evaluation_config(cfg), tta=None),
        None if cfg.MODEL.DETR.PANOPTIC.ENABLED else tta_config(cfg),
    )


def _read_config(path: Path, weights: Weights, config: Any) -> CfgNode:
    """Returns the given config, or that of the checkpoint or its output folder."""
    if isinstance(config, CfgNode):
        return _supported(config, "config")
    if isinstance(config, str | os.PathLike):
        cfg, name = get_cfg("standalone"), find_config(os.fspath(config))
        merge(cfg, name, [])
        return _supported(cfg, name)
    if config is not None:
        raise ArgumentError("config", f"must be a file, the name of a recipe or a CfgNode, got {type(config).__name__}")
    return _supported(stored_cfg(path, weights.config), str(path))


def _supported(config: CfgNode, source: str) -> CfgNode:
    """Returns the part of a config of either engine that determines the model and its input, without data sets."""
    cfg = get_cfg("standalone")
    known = dict(leaves(cfg))
    name = config.get("MODEL", {}).get("BACKBONE", {}).get("NAME", cfg.MODEL.BACKBONE.NAME)
    if name not in BACKBONES:
        raise UserError(
            f"{source}: MODEL.BACKBONE.NAME {name} is a backbone of Detectron2's registry, which needs Detectron2's "
            "DefaultPredictor"
        )
    found = {
        key: value for key, value in leaves(config) if key in known and key.startswith(("MODEL.", "INPUT.", "TEST."))
    }
    for key, value in found.items():
        node = cfg
        *sections, leaf = key.split(".")
        for section in sections:
            node = node[section]
        node[leaf] = value
    cfg.MODEL.WEIGHTS = ""
    cfg.TEST.AUG.ENABLED = False
    return cfg


def _set_things(cfg: CfgNode, names: Sequence[str]) -> None:
    """Sets the thing classes of a panoptic model if its config does not set them."""
    if cfg.MODEL.DETR.PANOPTIC.ENABLED and not thing_classes(cfg):
        if tuple(names) != THINGS_AND_STUFF:
            raise UserError("MODEL.DETR.PANOPTIC.NUM_THING_CLASSES is 0: set it to the number of things of the model")
        set_thing_classes(cfg, range(len(THINGS)))


def _rename(metadata: ModelMetadata, class_names: Sequence[str] | None) -> ModelMetadata:
    if class_names is None:
        return metadata
    if len(class_names) != len(metadata.class_names):
        raise ArgumentError(
            "class_names", f"must be {len(metadata.class_names)} names for the model's classes, got {len(class_names)}"
        )
    return dataclasses.replace(metadata, class_names=tuple(class_names))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))
