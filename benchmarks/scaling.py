#!/usr/bin/env python3
"""Measures how time and memory of DETR and Deformable DETR grow with pixels, queries and feature levels.

    python3 benchmarks/scaling.py --report DIR      # table, and with matplotlib the figure scaling.png

A point is the forward and backward pass of one layer in training mode, because the backbone, which is linear in the
pixels in both models, would hide the difference:

pixels    encoder layer on a square image; DETR on the feature map of stride 16 (DC5), Deformable DETR on four levels
queries   decoder layer on an image of 512 x 512
levels    encoder layer on an image of 512 x 512, levels of stride 64, 32, 16 and 8, added in this order, in both models

Each point is measured in a new process. Times are medians of the CPU time of the second pass with one thread; memory is
the peak (ru_maxrss) minus the peak before the first pass. The exponent k of the growth value = c * x^k is fitted to the
last three points of a curve; x is the number of tokens instead of levels.
"""

import argparse
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from projects_deformable_detr.modeling.deformable_transformer import (
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    scale_to_levels,
)
from projects_deformable_detr.modeling.layers import LayerConfig
from projects_deformable_detr.modeling.structures import Tokens
from projects_deformable_detr.modeling.transformer import TransformerDecoderLayer, TransformerEncoderLayer

MODELS = ("DETR", "Deformable DETR")
AXES = {"pixels": (256, 384, 512, 768, 1024), "queries": (100, 200, 400, 800, 1600, 3200), "levels": (1, 2, 3, 4)}
SIDE, CHANNELS = 512, 256
Medians = dict[str, float]


def strides(model: str, axis: str, value: int) -> tuple[int, ...]:
    """Returns the strides of the feature levels of a point."""
    if axis == "levels":
        return (64, 32, 16, 8)[:value]
    return (16,) if model == "DETR" else (8, 16, 32, 64)


def position(model: str, axis: str, value: int) -> int:
    """Returns a point's x: the number of pixels, queries or, for levels, tokens."""
    if axis == "levels":
        return sum((SIDE // stride) ** 2 for stride in strides(model, axis, value))
    return value**2 if axis == "pixels" else value


def measure(model: str, axis: str, value: int) -> dict[str, float]:
    """Measures one point in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = value if axis == "pixels" else SIDE
    shapes = tuple((side // stride, side // stride) for stride in strides(model, axis, value))
    count = sum(height * width for height, width in shapes)
    tokens = Tokens(
        values=torch.randn(1, count, CHANNELS, requires_grad=True),
        positions=torch.randn(1, count, CHANNELS),
        padding_mask=torch.zeros(1, count, dtype=torch.bool),
        spatial_shapes=shapes,
        valid_ratios=torch.ones(1, len(shapes), 2),
        has_padding=False,
    )
    config = LayerConfig(
        d_model=CHANNELS, dim_feedforward=2048 if model == "DETR" else 1024, num_levels=len(shapes)
    )  # widths of the papers
    one_pass = _decoder_layer(model, config, tokens, value) if axis == "queries" else _layer(model, config, tokens)
    before = _peak()
    one_pass().sum().backward()
    start = time.process_time()
    one_pass().sum().backward()
    return {"seconds": time.process_time() - start, "mib": _peak() - before}


def _layer(model: str, config: LayerConfig, tokens: Tokens) -> Callable[[], Tensor]:
    if model == "DETR":
        layer = TransformerEncoderLayer(config)
        return lambda: layer(tokens.values, tokens)
    deformable = DeformableEncoderLayer(config)
    references = scale_to_levels(tokens.centers(), tokens.valid_ratios)
    return lambda: deformable(tokens.values, references, tokens)


def _decoder_layer(model: str, config: LayerConfig, tokens: Tokens, queries: int) -> Callable[[], Tensor]:
    content, positions = torch.randn(2, 1, queries, CHANNELS).unbind()
    if model == "DETR":
        layer = TransformerDecoderLayer(config)
        return lambda: layer(content, positions, tokens.values, tokens)
    deformable = DeformableDecoderLayer(config)
    references = scale_to_levels(torch.rand(1, queries, 2), tokens.valid_ratios)
    return lambda: deformable(content, positions, references, tokens.values, tokens)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # in KiB on Linux


def exponent(points: list[tuple[int, float]]) -> float:
    """Fits k of value = c * x^k to the last three points."""
    xs, ys = zip(*((math.log(x), math.log(value)) for x, value in points[-3:]), strict=True)
    return statistics.linear_regression(xs, ys).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", type=Path, help="folder for scaling.png")
    args = parser.parse_args()
    points = [(model, axis, value) for axis, values in AXES.items() for value in values for model in MODELS]
    # The forked processes do not import modules again; the peak of a new process is its memory at its start.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        measured = pool.starmap(measure, points * args.rounds, chunksize=1)
    medians = {
        point: {key: statistics.median(each[key] for each in measured[index :: len(points)]) for key in measured[0]}
        for index, point in enumerate(points)
    }
    print("| | " + " | ".join(f"{model}: seconds | MiB" for model in MODELS) + " |\n|---|---|---|---|---|")
    for axis, values in AXES.items():
        for value in values:
            cells = [medians[model, axis, value] for model in MODELS]
            text = " | ".join(f"{cell['seconds']:.3f} | {cell['mib']:.0f}" for cell in cells)
            print(f"| {value}{'²' * (axis == 'pixels')} {axis} | {text} |")
        fits = [
            exponent([(position(model, axis, value), medians[model, axis, value][key]) for value in values])
            for model in MODELS
            for key in ("seconds", "mib")
        ]
        print(f"| exponent, {axis} | " + " | ".join(f"{fit:.2f}" for fit in fits) + " |")
    if args.report:
        plot(medians, args.report)


def plot(medians: dict[tuple[str, str, int], Medians], folder: Path) -> None:
    """Draws time and memory, in logarithmic scales, against pixels, queries and tokens of the levels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(2, len(AXES), figsize=(10, 5.5), sharex="col")
    for row, (key, label) in zip(rows, (("seconds", "CPU seconds"), ("mib", "MiB")), strict=True):
        for plotted, (axis, values) in zip(row, AXES.items(), strict=True):
            for model, marker in zip(MODELS, "os", strict=True):
                points = [(position(model, axis, value), medians[model, axis, value][key]) for value in values]
                name = f"{model}, exponent {exponent(points):.2f}"
                plotted.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=name)
            plotted.set(xscale="log", yscale="log", ylabel=label)
            plotted.grid(alpha=0.3)
            plotted.margins(y=0.5)  # room for the legend
            plotted.legend(fontsize=8, loc="upper left")
    titles = ("encoder layer: pixels", "decoder layer: queries", "encoder layer: tokens of 1 to 4 levels")
    for plotted, title in zip(rows[0], titles, strict=True):
        plotted.set_title(title, fontsize=9)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "scaling.png", dpi=90)


if __name__ == "__main__":
    main()
