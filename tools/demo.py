#!/usr/bin/env python3
"""The demo: makes the shapes data, trains configs/quickstart.yaml, evaluates it and draws what it finds.

tools/demo.py [--engine auto|detectron2|standalone] [--output DIR] [KEY VALUE …]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path("datasets/shapes")


def run(name: str, command: list[str], times: dict[str, float]) -> None:
    """Runs one stage with its output in view, and notes its wall time in seconds."""
    print(f"\n=== {name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    status = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    times[name] = time.monotonic() - start
    if status:
        sys.exit(f"demo: the stage {name!r} failed with exit status {status}; its output is above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--output", default="output/quickstart")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args()
    config = ["--config-file", "configs/quickstart.yaml"]
    times: dict[str, float] = {}
    annotations = ROOT / DATA / "annotations" / "instances_val.json"
    if not annotations.is_file():
        run("data", ["-m", "projects_deformable_detr.data.shapes", "--out", str(DATA), "--size", "128"], times)
    train = ["train_net.py", *config, "--engine", args.engine, "OUTPUT_DIR", args.output, *args.opts]
    run("train and evaluate", train, times)
    pictures = Path(args.output) / "pictures"
    draw = ["-m", "projects_deformable_detr.pictures", "--dataset", "shapes_val", "--out", str(pictures)]
    run("pictures", [*draw, "--results", f"{args.output}/inference/coco_instances_results.json"], times)
    print("\n=== Wall time")
    for name, seconds in times.items():
        print(f"{name:20s} {seconds:6.0f} s")
    print(f"Pictures of predictions: {pictures}; weights: {args.output}/model_final.pth")


if __name__ == "__main__":
    main()
