#!/usr/bin/env python3
"""Sparsity of the decoder's attention of DETR and Deformable DETR during training (arXiv 2011.10881).

python benchmarks/attention_entropy.py [--work DIR] [--images N] [--epochs 15] [--report DIR]

Trains the models of benchmarks/convergence.py with TEST.ATTENTION_ENTROPY, for the same number of epochs, and writes a
table and a plot (with matplotlib) of the negative entropy to --report. Finished models in --work are not trained again.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import convergence

MODELS = {"detr_dc5": "DETR-DC5", "deformable": "Deformable DETR"}
Curve = list[tuple[int, list[float]]]  # iteration, negative entropy of each decoder layer


def read_curve(keys: dict[str, str]) -> Curve:
    """Returns the logged negative entropies of a run with these config keys, in order."""
    points: dict[int, list[float]] = {}
    period = int(keys["TEST.EVAL_PERIOD"])
    for line in Path(keys["OUTPUT_DIR"], "metrics.json").read_text().splitlines():
        record = json.loads(line)
        names = sorted(name for name in record if name.startswith("attention/negative_entropy_"))
        if names:
            done = round((record["iteration"] + 1) / period)  # Detectron2 counts from 0 and may be off by one
            points[done * period] = [record[name] for name in names]
    return sorted(points.items())


def table(curves: dict[str, Curve]) -> str:
    """Returns a table of the first and last value of each layer."""
    layers = range(len(next(iter(curves.values()))[0][1]))
    lines = [
        "| model | iteration | " + " | ".join(f"layer {layer + 1}" for layer in layers) + " |",
        "|---|---|" + "---|" * len(layers),
    ]
    for title, curve in curves.items():
        for iteration, values in (curve[0], curve[len(curve) // 2], curve[-1]):
            lines.append(f"| {title} | {iteration} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)


def plot(curves: dict[str, Curve], path: Path) -> None:
    """Draws the curve of each decoder layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for (title, curve), color in zip(curves.items(), ("#c2452d", "#2d6bc2"), strict=True):
        iterations = [iteration for iteration, _ in curve]
        for layer, values in enumerate(zip(*(values for _, values in curve), strict=True)):
            style = ("-", "--", ":")[layer % 3]
            axes.plot(iterations, values, style, color=color, label=f"{title}, layer {layer + 1}")
    axes.set_xlabel("iteration")
    axes.set_ylabel("negative entropy (nats)")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    """Trains, and writes table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("output/attention_entropy"), help="folder of data and runs")
    parser.add_argument("--images", type=int, default=1500, help="training images")
    parser.add_argument("--val-images", type=int, default=50, help="evaluation images, of which 16 are measured")
    parser.add_argument("--epochs", type=int, default=15, help="epochs of both models")
    parser.add_argument("--report", type=Path, help="folder of attention_entropy.png")
    args = parser.parse_args()
    vars(args).update(size="small", epochs_scale=1.0, threads=1, engine="auto")
    convergence.make_data(args)
    curves = {}
    for name, title in MODELS.items():
        model = convergence.MODELS[name]
        keys = {**model.keys, "TEST.ATTENTION_ENTROPY": "16"}
        convergence.MODELS[name] = replace(model, epochs=args.epochs, keys=keys)
        convergence.train(name, args)
        curves[title] = read_curve(convergence.options(name, args))
    print(table(curves))
    if args.report:
        plot(curves, args.report / "attention_entropy.png")


if __name__ == "__main__":
    main()
