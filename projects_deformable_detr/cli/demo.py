"""Generates the shapes data, trains and evaluates a small model on it, and draws its detections.

Takes about ten minutes on two CPU cores. Config keys and values after the flags are passed to the training command.

Examples:
  deformable-detr demo
  deformable-detr demo --output output/short SOLVER.MAX_ITER 500
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from ..engine import ENGINES
from ..errors import UserError

HELP = "train and evaluate a small model on generated data"

_OUTPUT = Path("output/quickstart")
_SIZE = 128  # side of the images in pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--engine", default="auto", choices=ENGINES, help="training engine (default: %(default)s)")
    parser.add_argument(
        "--data", type=Path, default=Path("datasets"), help="folder of data sets (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="output folder (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, after all flags")


def run(args: argparse.Namespace) -> None:
    """Runs each stage as a separate command and prints its wall time."""
    from ..model_zoo import config_file

    times: dict[str, float] = {}

    def stage(name: str, *words: str | Path) -> None:
        print(f"\n=== {name}: deformable-detr {' '.join(map(str, words))}", flush=True)
        start = time.monotonic()
        isolated = ["-I"] * sys.flags.isolated
        command = [sys.executable, *isolated, "-m", __name__.partition(".")[0], *map(str, words)]
        # The location of the demo data does not depend on that of other data sets.
        environment = os.environ | {"DETECTRON2_DATASETS": str(args.data.absolute())}
        status = subprocess.run(command, env=environment).returncode
        times[name] = time.monotonic() - start
        if status:
            raise UserError(f"the stage {name!r} failed with exit status {status}, see its output above")

    shapes, results = args.data / "shapes", args.output / "inference" / "coco_instances_results.json"
    if not _has_data(shapes):
        stage("data", "shapes", "--output", shapes, "--size", str(_SIZE))
    overwrite = ["--overwrite"] if args.output == _OUTPUT else []  # other folders may contain other runs
    config = ["--config-file", config_file("quickstart"), "--engine", args.engine, "--output", args.output]
    stage("train and evaluate", "train", *config, *overwrite, *args.opts)
    pictures = args.output / "pictures"
    stage("pictures", "draw", "--dataset", "shapes_val", "--results", results, "--output", pictures)
    print("\n=== Wall time")
    for name, seconds in times.items():
        print(f"{name:20s} {seconds:6.0f} s")
    print(f"Pictures of detections: {pictures}; weights: {args.output}/model_final.pth")


def _has_data(folder: Path) -> bool:
    """Returns whether the data set exists and its images have the right size."""
    try:
        images = json.loads((folder / "annotations" / "instances_val.json").read_text())["images"]
    except (OSError, ValueError, KeyError):
        return False
    return all((image["height"], image["width"]) == (_SIZE, _SIZE) for image in images)
