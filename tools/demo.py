#!/usr/bin/env python3
"""Generates the shapes data, trains and evaluates configs/quickstart.yaml, and draws its detections.

tools/demo.py [--engine auto|detectron2|standalone] [--output DIR] [KEY VALUE …]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATASETS = Path("datasets")
OUTPUT = "output/quickstart"
SIZE = 128  # side of the images in pixels


def run(name: str, command: list[str], times: dict[str, float]) -> None:
    """Runs a stage and stores its wall time in seconds in ``times``."""
    print(f"\n=== {name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    # The demo's data is in the checkout, regardless of where COCO is.
    environment = os.environ | {"DETECTRON2_DATASETS": str(ROOT / DATASETS)}
    status = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment).returncode
    times[name] = time.monotonic() - start
    if status:
        sys.exit(f"demo: the stage {name!r} failed with exit status {status}, see its output above")


def has_data() -> bool:
    """Returns whether the data exists in the size of the demo; an earlier version may have generated another size."""
    try:
        images = json.loads((ROOT / DATASETS / "shapes/annotations/instances_val.json").read_text())["images"]
    except (OSError, ValueError, KeyError):
        return False
    return all((image["height"], image["width"]) == (SIZE, SIZE) for image in images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--output", default=OUTPUT)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args()
    config = ["--config-file", "configs/quickstart.yaml"]
    times: dict[str, float] = {}
    if not has_data():
        generate = ["-m", "projects_deformable_detr.shapes", "--out", str(DATASETS / "shapes")]
        run("data", [*generate, "--size", str(SIZE)], times)
    overwrite = ["--overwrite"] if args.output == OUTPUT else []  # the demo's own folder
    train = ["train_net.py", *config, "--engine", args.engine, *overwrite, "OUTPUT_DIR", args.output, *args.opts]
    run("train and evaluate", train, times)
    pictures = Path(args.output) / "pictures"
    draw = ["-m", "projects_deformable_detr.cli.draw", "--dataset", "shapes_val", "--out", str(pictures)]
    run("pictures", [*draw, "--results", f"{args.output}/inference/coco_instances_results.json"], times)
    print("\n=== Wall time")
    for name, seconds in times.items():
        print(f"{name:20s} {seconds:6.0f} s")
    print(f"Pictures of detections: {pictures}; weights: {args.output}/model_final.pth")


if __name__ == "__main__":
    main()
