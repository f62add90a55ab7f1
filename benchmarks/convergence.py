#!/usr/bin/env python3
"""Compares AP over epochs of DETR and Deformable DETR of equal size (arXiv 2010.04159, figure 3).

python benchmarks/convergence.py [--work DIR] [--images 1500] [--models detr_dc5 deformable …] [--jobs 2] [--report DIR]

Trains all models from scratch on the same images with benchmarks/convergence.yaml, DETR for more epochs, and evaluates
them after each epoch. Finished models in --work are not trained again. The default size takes about 90 minutes of CPU
time, 45 minutes on two cores; --size r50 is for a GPU. Writes a table and a plot (with matplotlib) to --report.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SINGLE = {"MODEL.RESNETS.RES5_DILATION": "2", "MODEL.RESNETS.OUT_FEATURES": "['res5']"}
_SINGLE |= {"MODEL.DETR.IN_FEATURES": "['res5']", "MODEL.DETR.NUM_FEATURE_LEVELS": "1"}


@dataclass(frozen=True)
class Model:
    """A row of the table: title, number of epochs, and config keys."""

    title: str
    epochs: int
    keys: dict[str, str]


# DETR uses the learning rate of its paper; with that of Deformable DETR, its loss does not decrease.
_DETR = {"MODEL.META_ARCHITECTURE": "DETR", "SOLVER.BASE_LR": "0.0001", **_SINGLE}
_REFINE = {"MODEL.DETR.WITH_BOX_REFINE": "True"}
MODELS = {
    # The softmax loss has the same weight relative to the box losses as in DETR's paper.
    "detr_dc5": Model("DETR-DC5", 40, {**_DETR, "MODEL.DETR.COST_CLASS": "1.0", "MODEL.DETR.CLASS_WEIGHT": "1.0"}),
    "detr_dc5_plus": Model("DETR-DC5+ (focal loss)", 40, {**_DETR, "MODEL.DETR.CLASS_LOSS": "focal"}),
    "deformable": Model("Deformable DETR", 15, {}),
    "refine": Model("+ iterative box refinement", 15, _REFINE),
    "two_stage": Model("++ two-stage", 15, {**_REFINE, "MODEL.DETR.TWO_STAGE": "True"}),
}
DEFAULT = ("detr_dc5", "deformable", "refine", "two_stage")
SIZES: dict[str, dict[str, str]] = {
    "small": {},
    "r50": {
        "MODEL.RESNETS.STEM_OUT_CHANNELS": "64",
        "MODEL.RESNETS.RES2_OUT_CHANNELS": "256",
        "MODEL.DETR.HIDDEN_DIM": "256",
        "MODEL.DETR.ENC_LAYERS": "6",
        "MODEL.DETR.DEC_LAYERS": "6",
        "MODEL.DETR.DIM_FEEDFORWARD": "1024",
        "MODEL.DETR.NUM_FEATURE_LEVELS": "4",
        "MODEL.DETR.NUM_OBJECT_QUERIES": "100",
        "SOLVER.IMS_PER_BATCH": "16",
        "SOLVER.BASE_LR": "0.0002",
    },
}


def options(name: str, args: argparse.Namespace) -> dict[str, str]:
    """Returns the config keys of a model; the learning rate drops after 80 % of the iterations, as in the papers."""
    model, size = MODELS[name], SIZES[args.size]
    batch = int(size.get("SOLVER.IMS_PER_BATCH", "8"))
    epoch = max(1, args.images // batch)
    iterations = max(1, round(model.epochs * args.epochs_scale)) * epoch
    return {
        **size,
        **model.keys,
        "SOLVER.MAX_ITER": str(iterations),
        "SOLVER.STEPS": f"({int(0.8 * iterations)},)",
        "SOLVER.CHECKPOINT_PERIOD": str(iterations),
        "TEST.EVAL_PERIOD": str(epoch),
        "OUTPUT_DIR": str(args.work / args.size / name),
    }


def train(name: str, args: argparse.Namespace) -> None:
    """Trains and evaluates one model in a new process, unless it is finished."""
    keys = options(name, args)
    folder = Path(keys["OUTPUT_DIR"])
    if (folder / "model_final.pth").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train_net.py"), "--engine", args.engine]
    command += ["--config-file", str(ROOT / "benchmarks/convergence.yaml")]
    command += ["--overwrite"]  # files of an interrupted run
    command += [part for pair in keys.items() for part in pair]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(args.work)}
    if args.threads:
        environment["OMP_NUM_THREADS"] = str(args.threads)
    with open(folder / "output.txt", "w") as output:
        status = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
    if status.returncode:
        raise SystemExit(f"{name}: train_net.py failed with status {status.returncode}; see {output.name}")


def make_data(args: argparse.Namespace) -> None:
    """Generates the shapes data set."""
    folder = args.work / "shapes"
    if not (folder / "annotations/instances_val.json").exists():
        shapes = [sys.executable, "-m", "projects_deformable_detr", "shapes"]
        numbers = ["--train", str(args.images), "--val", str(args.val_images)]
        subprocess.run([*shapes, "--output", str(folder), *numbers], check=True, cwd=ROOT)


def read_curve(name: str, args: argparse.Namespace) -> list[tuple[float, float, float]]:
    """Returns (epoch, AP, AP_small) of every evaluation."""
    keys = options(name, args)
    epoch = int(keys["TEST.EVAL_PERIOD"])
    points = {}
    for line in (Path(keys["OUTPUT_DIR"]) / "metrics.json").read_text().splitlines():
        record = json.loads(line)
        if "bbox/AP" in record:
            done = round((record["iteration"] + 1) / epoch)  # Detectron2 counts from 0 and may be off by one
            points[done] = (float(done), record["bbox/AP"], record["bbox/APs"])
    return [points[key] for key in sorted(points)]


def first_epoch(curve: list[tuple[float, float, float]], column: int, minimum: float) -> float | None:
    """Returns the first epoch whose AP (column 1) or AP_small (column 2) is at least ``minimum``."""
    return next((point[0] for point in curve if point[column] >= minimum), None)


def table(curves: dict[str, list[tuple[float, float, float]]]) -> str:
    """Returns a table of final metrics and of the epochs needed to reach those of the first model, DETR."""
    base, *_ = curves.values()
    epochs, ap, small = base[-1]
    lines = [
        f"| model | epochs | AP | AP_small | epochs to DETR's AP {ap:.1f} | speed-up "
        f"| epochs to DETR's AP_small {small:.1f} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, curve in curves.items():
        reached, reached_small = first_epoch(curve, 1, ap), first_epoch(curve, 2, small)
        fewer = f"{epochs / reached:.1f}" if reached else "-"
        lines.append(
            f"| {MODELS[name].title} | {curve[-1][0]:.0f} | {curve[-1][1]:.1f} | {curve[-1][2]:.1f} | "
            f"{reached or '-'} | {fewer} | {reached_small or '-'} |"
        )
    return "\n".join(lines)


def plot(curves: dict[str, list[tuple[float, float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for column, (axis, label) in enumerate(zip(axes, ("AP", "AP_small"), strict=True), start=1):
        for name, curve in curves.items():
            axis.plot([p[0] for p in curve], [p[column] for p in curve], label=MODELS[name].title, linewidth=1.5)
        axis.set(xlabel="epochs", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("output/convergence"), help="data and runs (%(default)s)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(DEFAULT), help="DETR first (%(default)s)")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--engine", default="auto", help="as in train_net.py")
    parser.add_argument("--images", type=int, default=1500, help="training images (%(default)s)")
    parser.add_argument("--val-images", type=int, default=250, help="validation images (%(default)s)")
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="factor for the epochs of all models")
    parser.add_argument("--jobs", type=int, default=2, help="number of concurrent training runs (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads per training; 0: PyTorch's default (%(default)s)"
    )
    parser.add_argument("--report", type=Path, help="folder for convergence.md's table and convergence.png")
    args = parser.parse_args()
    args.work = args.work.resolve()
    make_data(args)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda name: train(name, args), args.models))
    curves = {name: read_curve(name, args) for name in args.models}
    text = table(curves)
    print(text)
    if args.report:
        args.report.mkdir(parents=True, exist_ok=True)
        (args.report / "convergence_table.md").write_text(text + "\n")
        plot(curves, args.report / "convergence.png")


if __name__ == "__main__":
    main()
