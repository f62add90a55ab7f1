"""Describes a model: architecture, classes, parameters, FLOPs, training recipe, provenance and hash.

Examples:
  deformable-detr info                          lists the published weights
  deformable-detr info deformable_detr_r50_two_stage
  deformable-detr info runs/cells --json
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from ..checkpoint import Weights
    from ..checkpoint.zoo import Entry

HELP = "describe a model, or list the published weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "weights",
        nargs="?",
        metavar="W",
        help="checkpoint, output folder, exported model or published weights (default: list the published weights)",
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help="config of a checkpoint that has none: file or recipe name"
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="image size for the FLOPs (default: 4:3, as in evaluation)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Prints the description."""
    facts = _published() if args.weights is None else _describe(args)
    if args.json:
        print(json.dumps(facts, indent=1))
        return
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        text = value
        if isinstance(value, list):
            text = f"{len(value)}: {', '.join(value[:12])}{', …' if len(value) > 12 else ''}"
        print(f"{name:{width}}{text}")


def _published() -> dict[str, Any]:
    """Returns a one-line summary of each published checkpoint."""
    from ..checkpoint.zoo import ENTRIES

    lines = {}
    for name, entry in ENTRIES.items():
        lines[name] = f"{_results(entry)}; config {entry.config}" if entry.config else "ImageNet backbone"
    return lines


def _results(entry: "Entry") -> str:
    results = {"box AP": entry.ap, "mask AP": entry.mask_ap, "PQ": entry.pq}
    return ", ".join(f"{name} {value}" for name, value in results.items() if value is not None)


def _describe(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the properties of a model by name."""
    from ..checkpoint import read_weights
    from ..checkpoint.download import sha256_of
    from ..checkpoint.files import weights_file
    from ..inference.exported import is_exported
    from ..inference.loading import find_model

    path, entry = find_model(args.weights)
    if is_exported(path):
        return _describe_exported(path, args.weights)
    file = weights_file(path)
    facts: dict[str, Any] = {
        "file": str(file),
        "size": f"{file.stat().st_size / 2**20:.1f} MiB",
        "SHA-256": sha256_of(file),
    }
    if entry is not None:
        facts |= {"source": entry.source.page, "license": entry.license}
        facts["published results"] = _results(entry)
    weights = read_weights(path)
    return facts | _describe_weights(args, file, weights, entry)


def _describe_exported(path: Path, source: str) -> dict[str, Any]:
    from ..checkpoint.download import sha256_of
    from ..inference import Detector

    metadata = Detector.load(source).metadata
    return {
        "file": str(path),
        "size": f"{path.stat().st_size / 2**20:.1f} MiB",
        "SHA-256": sha256_of(path),
        "format": f"exported model ({path.suffix})",
        "classes": list(metadata.class_names),
        "masks": "yes" if metadata.has_masks else "no",
        "input": _input(metadata.min_size, metadata.max_size)
        if metadata.input_size is None
        else "{} x {}".format(*metadata.input_size),
    }


def _describe_weights(
    args: argparse.Namespace, file: Path, weights: "Weights", entry: "Entry | None"
) -> dict[str, Any]:
    import torch

    from ..checkpoint import CheckpointError
    from ..checkpoint.load import file_classes
    from ..config import build_detector
    from ..config.loading import stored_cfg
    from ..config.model import criterion_config
    from ..errors import UserError
    from ..inference.flops import count_detector, count_parameters

    format, count, names = file_classes(weights, no_object=False)
    if format is None:
        raise CheckpointError(
            f"{file}: the keys ({', '.join(list(weights.state)[:4])} …) do not match any supported detector"
        )
    project = "deformable-detr" if format.name == "native" else format.name
    if format.is_backbone:
        return {"format": f"{project}, a backbone without detector"}
    try:
        cfg = _read_config(args.config_file or (entry.config if entry else None)) or stored_cfg(file, weights.config)
    except UserError as error:
        if args.config_file or weights.config:
            raise
        return {"format": project, "logits": count, "config": f"unknown: {error}"}
    _, count, names = file_classes(weights, criterion_config(cfg).class_loss == "softmax")
    known = entry.class_names if entry else tuple(name for name in names or () if name is not None)
    cfg.MODEL.DETR.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES or len(known) or count
    with torch.device("meta"):
        detector = build_detector(cfg, weights="")
    size = tuple(args.size or _default_size(cfg))
    (flops,) = count_detector(detector, [size])
    return {
        "format": project,
        "architecture": _architecture(cfg),
        "classes": list(known) or f"{count}, without names",
        "parameters": f"{count_parameters(detector):.1f} M",
        "FLOPs": f"{flops:.3g} G at {size[0]} x {size[1]}; a multiply-add counts as one",
        "input": _input(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        "training": _training(cfg, file, entry),
    }


def _read_config(config_file: str | None) -> "CfgNode | None":
    from ..config import get_cfg, merge

    if not config_file:
        return None
    cfg = get_cfg("standalone")
    merge(cfg, config_file, [])
    return cfg


def _default_size(cfg: "CfgNode") -> tuple[int, int]:
    """Returns the evaluation size of an image with an aspect ratio of 4:3."""
    from ..data.images import resize_shortest_edge

    return resize_shortest_edge(480, 640, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


def _input(min_size: int, max_size: int) -> str:
    return f"shorter side {min_size}, longer side at most {max_size}" if min_size else "images are not resized"


def _architecture(cfg: "CfgNode") -> str:
    """Returns the main parts of a model in one line."""
    detr, backbone = cfg.MODEL.DETR, cfg.MODEL.BACKBONE
    network = f"ResNet-{cfg.MODEL.RESNETS.DEPTH}" if "resnet" in backbone.NAME else backbone.VARIANT
    parts = [f"{cfg.MODEL.META_ARCHITECTURE} with {network}{' DC5' * (cfg.MODEL.RESNETS.RES5_DILATION == 2)}"]
    parts.append(f"{detr.NUM_FEATURE_LEVELS} levels from {', '.join(detr.IN_FEATURES)}")
    parts.append(f"{detr.ENC_LAYERS} encoder and {detr.DEC_LAYERS} decoder layers of {detr.HIDDEN_DIM} channels")
    parts.append(f"{detr.NUM_OBJECT_QUERIES} queries")
    options = {
        "box refinement": detr.WITH_BOX_REFINE,
        "two-stage": detr.TWO_STAGE,
        "mask head": cfg.MODEL.MASK_ON,
        "panoptic": detr.PANOPTIC.ENABLED,
    }
    return "; ".join([*parts, *(name for name, is_on in options.items() if is_on)])


def _training(cfg: "CfgNode", file: Path, entry: "Entry | None") -> str:
    """Returns the recipe and, for a checkpoint of this project, the number of iterations."""
    from ..checkpoint import read_checkpoint
    from ..config.training import describe_recipe, training_config

    recipe = f"{', '.join(cfg.DATASETS.TRAIN)}: {describe_recipe(training_config(cfg), cfg.SOLVER.IMS_PER_BATCH)}"
    if entry is not None:
        return f"published recipe, as in {entry.config}: {recipe}"
    content = None if file.suffix == ".safetensors" else read_checkpoint(file)
    iteration = content.get("iteration") if isinstance(content, dict) else None
    if isinstance(iteration, int) and iteration >= 0:
        recipe += f"; saved after {iteration + 1} iterations"
    return recipe
