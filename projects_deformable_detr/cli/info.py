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

from ..errors import Range, UserError
from .arguments import add_config_argument, number

if TYPE_CHECKING:
    from ..config.inference import ModelConfig
    from ..zoo import Entry

HELP = "describe a model, or list the published weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "weights",
        nargs="?",
        metavar="W",
        help="checkpoint, output folder, exported model or published weights (default: list the published weights)",
    )
    add_config_argument(parser)
    parser.add_argument(
        "--size",
        nargs=2,
        type=number(Range(1)),
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
    from ..zoo import ENTRIES

    lines = {}
    for name, entry in ENTRIES.items():
        lines[name] = f"{_results(entry)}; config {entry.config}" if entry.config else "ImageNet backbone"
    return lines


def _results(entry: "Entry") -> str:
    results = {"box AP": entry.ap, "mask AP": entry.mask_ap, "PQ": entry.pq}
    return ", ".join(f"{name} {value}" for name, value in results.items() if value is not None)


def _describe(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the properties of a model by name."""
    from ..checkpoint.files import weights_file
    from ..inference.exported import is_exported
    from ..inference.loading import find_model
    from ..zoo.files import sha256_of

    path, entry = find_model(args.weights)
    file = weights_file(path)
    facts: dict[str, Any] = {
        "file": str(file),
        "size": f"{file.stat().st_size / 2**20:.1f} MiB",
        "SHA-256": sha256_of(file),
    }
    if entry is not None:
        facts |= {"source": entry.source.page, "license": entry.license, "published results": _results(entry)}
    return facts | (_describe_exported(path) if is_exported(path) else _describe_checkpoint(args, path, entry))


def _describe_exported(path: Path) -> dict[str, Any]:
    from ..inference.exported import read_exported_metadata

    metadata, graph = read_exported_metadata(path)
    return {
        "format": f"exported model, {graph.format}",
        "precision": graph.precision,
        "classes": list(metadata.class_names),
        "masks": "yes" if metadata.has_masks else "no",
        "input": _input(metadata.min_size, metadata.max_size)
        if metadata.input_size is None
        else "{} x {}".format(*metadata.input_size),
    }


def _describe_checkpoint(args: argparse.Namespace, path: Path, entry: "Entry | None") -> dict[str, Any]:
    import torch

    from ..checkpoint import CheckpointError, read_weights
    from ..checkpoint.load import file_classes
    from ..config.inference import MissingConfigError, read_config, read_model
    from ..config.training import describe_training
    from ..data.images import resize_shortest_edge
    from ..inference.flops import count_detector, count_parameters

    weights = read_weights(path)
    format, count, _ = file_classes(weights, no_object=False)
    if format is None:
        raise CheckpointError(
            f"{path}: the keys ({', '.join(list(weights.state)[:4])} …) do not match any supported detector"
        )
    project = "deformable-detr" if format.name == "native" else format.name
    if format.is_backbone:
        return {"format": f"{project}, a backbone without a detector"}
    try:
        cfg = read_config(path, weights.config, args.config_file or (entry.config if entry else None))
    except MissingConfigError as error:
        return {"format": project, "logits": count, "config": f"unknown: {error}"}
    model = read_model(cfg, weights, str(path), entry.class_names if entry else None)
    with torch.device("meta"):
        detector = model.build()
    limits = model.metadata.min_size, model.metadata.max_size
    size = tuple(args.size or resize_shortest_edge(480, 640, *limits))  # the default has an aspect ratio of 4:3
    try:
        (flops,) = count_detector(detector, [size])
    except ValueError as error:  # raised by group norms with one value per group
        raise UserError(f"--size {size[0]} {size[1]} is too small for the model ({error})") from error
    try:
        training = describe_training(cfg)
    except UserError as error:  # Detectron2 has more schedules and optimizers
        training = f"unknown: {error}"
    if entry is not None:
        training = f"published recipe, as in {entry.config}: {training}"
    elif weights.iteration is None or weights.iteration < 0:  # a file of another project, or a converted one
        training = f"not recorded; the config, with which the weights may not have been trained, has {training}"
    else:
        training += f"; saved after {weights.iteration + 1} iterations"
    return {
        "format": project,
        "architecture": _architecture(model),
        "classes": list(model.class_names or ()) or f"{model.detector.num_classes}, without names",
        "parameters": f"{count_parameters(detector):.1f} M",
        "FLOPs": f"{flops:.3g} G at {size[0]} x {size[1]}; a multiply-add counts as one",
        "input": _input(*limits),
        "training": training,
    }


def _input(min_size: int, max_size: int) -> str:
    return f"shorter side {min_size}, longer side at most {max_size}" if min_size else "images are not resized"


def _architecture(model: "ModelConfig") -> str:
    """Returns the main parts of a model in one line."""
    detector, backbone = model.detector, (model.backbone.bottom_up or model.backbone).arguments
    network = backbone.get("variant") or f"ResNet-{backbone['depth']}{' DC5' * (backbone['res5_dilation'] == 2)}"
    parts = [
        f"{detector.architecture} with {network}",
        f"{detector.num_levels} levels from {', '.join(detector.in_features)}",
        f"{detector.encoder_layers} encoder and {detector.decoder_layers} decoder layers",
        f"{detector.d_model} channels",
        f"{detector.num_queries} queries",
    ]
    options = {
        "box refinement": detector.box_refine,
        "two-stage": detector.two_stage,
        "mask head": detector.mask_head,
        "panoptic": model.metadata.evaluation.is_panoptic,
    }
    return "; ".join([*parts, *(name for name, is_on in options.items() if is_on)])
