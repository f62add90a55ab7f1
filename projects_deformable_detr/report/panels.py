"""Plots of training runs and of error analyses."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from ..evaluation.coco import Array
from .analysis import Analysis
from .plots import Curve, plot
from .runs import Metrics, Run, Values

_LAYER = re.compile(r"(.+?)[_/](\d+)")
_SHARED = {  # title, and whether the axis is logarithmic
    "total_loss": ("total loss", True),
    "lr": ("learning rate", False),
    "grad_norm": ("gradient norm before clipping", True),
    "cardinality_error": ("cardinality error", False),
    "time": ("seconds per iteration", False),
    "data_time": ("seconds per iteration waiting for data", False),
}
_HIDDEN = ("eta_seconds", "rank_data_time")
_METRIC_GROUPS = {
    "overall": ("AP", "AP50", "AP75", "PQ", "SQ", "RQ", "mIoU"),
    "by size of the objects": ("APs", "APm", "APl"),
    "by frequency of the classes": ("APr", "APc", "APf"),
}
MAX_CLASSES = 16  # curves in a plot


def training_panels(runs: Sequence[Run]) -> list[str]:
    """Plots the scalars that all training runs have in common, one curve per run."""
    panels = []
    for name, (title, log) in _SHARED.items():
        curves = [Curve(run.name, run.scalars[name]) for run in runs if name in run.scalars]
        if curves:
            panels.append(plot(title, curves, log=log))
    return panels


def loss_panels(run: Run) -> list[str]:
    """Plots each loss with one curve per layer, and losses without layers together."""
    panels, single = [], []
    for loss, layers in run.losses.items():
        if len(layers) == 1:
            single += [Curve(loss, values) for values in layers.values()]
            continue
        last = 2 + max((int(layer) for layer in layers if layer.isdecimal()), default=-1)
        labels = {layer: f"layer {int(layer) + 1}" for layer in layers if layer.isdecimal()}
        labels |= {"": f"layer {last} (last)", "enc": "encoder"}
        order = sorted(layers, key=lambda layer: (layer == "enc", layer == "", int(layer) if layer.isdecimal() else 0))
        panels.append(plot(loss, (Curve(labels[k], layers[k], 1.3 + 0.9 * (not k)) for k in order), log=True))
    if single:
        panels.append(plot("losses", single, log=True))
    return panels


def other_panels(run: Run) -> list[str]:
    """Plots scalars that are neither losses nor common to all runs; NAME_0, NAME_1, … are curves of one plot."""
    known = {*_SHARED, *_HIDDEN}
    known |= {f"{loss}_{layer}".rstrip("_") for loss, layers in run.losses.items() for layer in layers}
    groups: dict[str, list[Curve]] = {}
    for name, values in run.scalars.items():
        if name not in known:
            match = _LAYER.fullmatch(name)
            title, label = (match[1], match[2]) if match else (name, name)
            if match and title == "attention/negative_entropy":
                label = f"layer {int(label) + 1}"
            groups.setdefault(title, []).append(Curve(label, values))
    return [plot(title, curves) for title, curves in groups.items()]


def metric_panels(chosen: Sequence[tuple[Run, Metrics]]) -> list[str]:
    """Plots metrics of one kind over time: all classes together, by size or frequency, and by class if there are few.

    Metrics of several runs are plotted with one curve per run, except those by class.
    """
    panels = []
    for title, names in _METRIC_GROUPS.items():
        curves = {
            name: [(run, _finite(metrics.values[name])) for run, metrics in chosen if name in metrics.values]
            for name in names
        }
        if len(chosen) > 1:
            panels += [_over_time(name, ((run.name, values) for run, values in rows)) for name, rows in curves.items()]
        else:
            panels.append(_over_time(title, ((name, values) for name, rows in curves.items() for _, values in rows)))
    for run, metrics in chosen:
        classes = {name.partition("-")[2]: name for name in metrics.values if re.match("(AP|PQ)-", name)}
        if len(classes) <= MAX_CLASSES:
            title = f"{run.name}: by class" if len(chosen) > 1 else "by class"
            panels.append(_over_time(title, ((key, _finite(metrics.values[name])) for key, name in classes.items())))
    return [panel for panel in panels if panel]


def _over_time(title: str, items: Iterable[tuple[str, Values]]) -> str:
    """Plots curves by label; returns "" if all have fewer than two points."""
    curves = [Curve(label, values) for label, values in items if values]
    return plot(title, curves) if any(len(curve.points) > 1 for curve in curves) else ""


def _finite(values: Values) -> Values:
    return {iteration: value for iteration, value in values.items() if np.isfinite(value)}


def comparison_panels(analyses: Iterable[Analysis]) -> list[str]:
    """Plots precision over recall of several models."""
    curves = [Curve(item.label, list(zip(item.recalls, _mean(item.precision[0]), strict=True))) for item in analyses]
    return [plot("precision over recall, IoU 0.5", curves, "recall", unit=True)] if len(curves) > 1 else []


def error_panels(analysis: Analysis) -> list[str]:
    """Plots precision over recall, metrics over thresholds, and calibration of the scores."""
    recalls, names = analysis.recalls, analysis.records.summary.class_names

    def curve(label: str, precision: Array) -> Curve:
        return Curve(label, list(zip(recalls, precision, strict=True)))

    thresholds = {"IoU 0.5": 0, "IoU 0.75": 5, "IoU 0.9": 8}
    curves = [curve(label, _mean(analysis.precision[index])) for label, index in thresholds.items()]
    curves.append(curve("mean, 0.5 to 0.95", _mean(analysis.precision.mean(axis=0))))
    panels = [plot("precision over recall, mean of the classes", curves, "recall", unit=True)]
    present = [row for row in range(len(names)) if analysis.precision[0, 0, row] > -1]
    if 1 < len(present) <= MAX_CLASSES:
        by_class = [curve(names[row], analysis.precision[0, :, row]) for row in present]
        panels.append(plot("precision over recall by class, IoU 0.5", by_class, "recall", unit=True))
    panels.append(_threshold_panel(analysis))
    bins = [(item["avg_confidence"], item["avg_accuracy"]) for item in analysis.bins if item["count"]]
    title = f"precision over score (calibration error {analysis.calibration_error:.3f})"
    panels.append(
        plot(title, [Curve("precision", bins), Curve("calibrated", [(0, 0), (1, 1)])], "mean score", unit=True)
    )
    return panels


def _threshold_panel(analysis: Analysis) -> str:
    """Plots precision, recall and F1 of the detections above each threshold, and marks the best F1."""
    matches = analysis.matches
    correct, count = np.cumsum(matches.is_correct), np.arange(1, len(matches.scores) + 1)
    objects = max(1, sum(matches.num_objects.values()))
    values = {"precision": correct / count, "recall": correct / objects, "F1": 2 * correct / (count + objects)}
    threshold = analysis.best["threshold"]
    curves = [
        Curve(name, list(zip(matches.scores, points, strict=True)), marked=(threshold, analysis.best[name]))
        for name, points in values.items()
    ]
    return plot("above a score threshold, IoU 0.5", curves, "threshold", unit=True)


def _mean(precision: Array) -> Array:
    """Returns the mean of precision (…, classes) over the classes with objects."""
    return precision[..., (precision > -1).all(axis=0)].mean(axis=-1)
