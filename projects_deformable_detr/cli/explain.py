"""Shows what a model attends to in images: sampling points or attention maps, boxes of all layers, and gradients.

For each image, writes an interactive page NAME.html, the boxes of all decoder layers (NAME_boxes.png), the proposals of
two-stage models (NAME_proposals.png), and a picture of each detection (NAME_0.png, …). For each --point,
also draws the encoder's attention at that point.

Examples:
  deformable-detr explain --weights output/quickstart street.jpg
  deformable-detr explain --weights output/quickstart street.jpg --detections 0 2 --by layer head --gradients
  deformable-detr explain --weights output/quickstart street.jpg --point 320 200 --layer 1

Exit status: 0; 1 if images could not be read or do not have the chosen detections or points; 2 for invalid arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, Range, UserError
from .arguments import add_model_arguments, check_not_input, check_output_folder, load_model, number

if TYPE_CHECKING:
    from PIL import Image

    from ..inference import Explanation

HELP = "show the attention of a model in images"
_KEYS = {"detections": "--detections", "points": "--point", "by": "--by"}
_OF_IMAGES = ("detections", "points")  # arguments that may be valid in other images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, folder or pattern")
    add_model_arguments(parser.add_argument_group("model"), with_batches=False, with_exported=False)
    chosen = parser.add_argument_group("explained queries")
    chosen.add_argument(
        "--threshold",
        type=number(Range(0, 1), float),
        default=0.3,
        metavar="T",
        help="minimum score of detections (default: %(default)s)",
    )
    chosen.add_argument(
        "--top-k", type=number(Range(1)), default=8, metavar="K", help="maximum number (default: %(default)s)"
    )
    chosen.add_argument(
        "--detections",
        type=_index,
        nargs="+",
        metavar="I",
        help="indices, from 0 for the best, after the images (default: all)",
    )
    chosen.add_argument(
        "--point",
        type=float,
        nargs=2,
        action="append",
        default=[],
        metavar=("X", "Y"),
        help="point in pixels for the encoder's attention (repeatable)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, default=Path("explanations"), metavar="DIR", help="output folder (default: %(default)s)"
    )
    output.add_argument("--overwrite", action="store_true", help="write into an output folder that is not empty")
    output.add_argument(
        "--layer",
        type=number(Range(1)),
        metavar="N",
        help="layer of the pictures, from 1; the last in an encoder or decoder with fewer layers (default: the last)",
    )
    output.add_argument(
        "--by",
        nargs="+",
        default=[],
        choices=("layer", "head", "level"),
        help="also draw each layer, head or level (NAME_0_layer.png, …)",
    )
    output.add_argument(
        "--gradients",
        action="store_true",
        help="also draw gradients of center, size and score with respect to the pixels (NAME_0_gradients.png)",
    )


def _index(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be integers from 0, got {text}; images come before --detections")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Explains the images and writes the files; returns 1 if images were skipped."""
    check_output_folder(args.output, overwrite=args.overwrite)
    import numpy as np

    from ..config.reading import naming_keys
    from ..inference.drawing import save
    from ..inference.images import ImageError
    from ..inference.sources import expand_patterns, find_images

    paths = expand_patterns(args.images)
    if unsupported := [path for path in paths if path == "-" or path.endswith(".json")]:
        raise UserError(f"{unsupported[0]}: must be an image file, folder or pattern")
    images, _ = find_images(paths)
    sources = [item.path for item in images]
    detector = load_model(args)
    options: dict[str, Any] = {
        "detections": args.detections,
        "points": args.point,
        "gradients": args.gradients,
        "score_threshold": args.threshold,
        "top_k": max(args.top_k, 1 + max(args.detections or [0])),
    }
    layer, status = -1 if args.layer is None else args.layer - 1, 0
    for item in images:
        with naming_keys(_KEYS):
            try:
                explanation = detector.explain(item.path, **options)
            except (ImageError, ArgumentError) as error:
                if isinstance(error, ArgumentError) and error.argument not in _OF_IMAGES:
                    raise
                message = (
                    error if isinstance(error, ImageError) else f"{item.path}: {_KEYS[error.argument]} {error.problem}"
                )
                print(message, file=sys.stderr)
                status = 1
                continue
            parts = (explanation.attention, explanation.point_attention)
            layers = max(part.weights.shape[0] for part in parts if part is not None)
            if layer >= layers:
                raise UserError(f"--layer must be at most {layers}, the number of layers, got {args.layer}")
            for name, picture in _pictures(explanation, layer, args.by):
                path = args.output / f"{item.name}{name}.png"
                check_not_input(path, sources)
                save(path, np.asarray(picture))
        path = args.output / f"{item.name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        explanation.save_page(path)
        found = zip(explanation.indices.tolist(), explanation.detections.names, strict=True)
        names = ", ".join(f"{index} {name}" for index, name in found)
        print(f"{item.path} -> {path}: {names or f'no detection with a score of at least {args.threshold:g}'}")
    return status


def _pictures(explanation: Explanation, layer: int, by: list[str]) -> Iterator[tuple[str, Image.Image]]:
    """Yields the pictures of an image, and the parts of their names that follow the name of the image."""
    own = min(layer, explanation.attention.weights.shape[0] - 1)
    if len(explanation.detections):
        yield "_boxes", explanation.draw_boxes()
    if explanation.proposals is not None:
        yield "_proposals", explanation.draw_proposals()
    for row, index in enumerate(explanation.indices.tolist()):
        yield f"_{index}", explanation.draw(row, layer=own)
        yield from ((f"_{index}_{kind}", explanation.draw(row, layer=own, by=kind)) for kind in by)
        if explanation.gradients is not None:
            yield f"_{index}_gradients", explanation.draw_gradients(row)
    if explanation.point_attention is not None:
        layers, rows = explanation.point_attention.weights.shape[:2]
        own, levels = min(layer, layers - 1), rows // len(explanation.points)
        for row in range(rows):
            name = f"_encoder_{row // levels}_level{row % levels + 1}"
            yield name, explanation.draw_point(row, layer=own)
            yield from ((f"{name}_{kind}", explanation.draw_point(row, layer=own, by=kind)) for kind in by)
