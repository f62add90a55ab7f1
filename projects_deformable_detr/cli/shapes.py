"""Generates the shapes data set: synthetic scenes in COCO format, for the demo and for tests.

Examples:
  deformable-detr shapes --output datasets/shapes --size 128
"""

import argparse
import os
from pathlib import Path

from ..errors import Range, UserError
from .arguments import number

HELP = "generate the data set of the demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    default = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "shapes"
    parser.add_argument("--output", type=Path, default=default, help="folder to write to (default: %(default)s)")
    parser.add_argument("--train", type=number(Range(0)), default=4000, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=number(Range(0)), default=500, help="validation images (default: %(default)s)")
    parser.add_argument(
        "--size",
        type=number(Range(32)),
        nargs="+",
        default=[128, 160],
        help="side of the images in pixels, or minimum and maximum (default: 128 160)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all scenes (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Writes images and annotations."""
    import cv2

    from ..shapes.dataset import generate

    if len(args.size) > 2:
        raise UserError(f"--size takes one number or two, got {len(args.size)}")
    cv2.setNumThreads(1)  # threads slow down the processing of such small images
    size = (args.size[0], args.size[-1])
    generate(args.output, num_train=args.train, num_val=args.val, size=size, seed=args.seed)
    print(f"Wrote {args.train} training and {args.val} validation images to {args.output}")
