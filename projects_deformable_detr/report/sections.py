"""Sections of the page: tables, plots and pictures."""

import math
import platform
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from ..data.catalog import DatasetSpec
from ..data.coco import CocoRecords
from ..evaluation.coco import METRICS
from . import panels
from .analysis import KINDS, Analysis, compare
from .pictures import Thumbnail, false_positive_pictures, missed_pictures
from .predictions import TestSet, error_text
from .runs import Metrics, Run

MAX_CONFUSION = 30  # classes in a confusion matrix
_PAIRS = 20
_PACKAGES = ("projects-deformable-detr", "torch", "torchvision", "detectron2", "lightning", "hotcoco", "matplotlib")
_SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}  # areas of COCO's metrics
_F1 = ("threshold", "precision", "recall", "F1")
_BOXES_ONLY = "Errors are those of boxes; masks and panoptic segmentations are not analyzed."


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header, rows: texts of the cells.
        shares: numbers in [0, 1] that color the cells after the first column; (): no colors.
        is_text: whether numbers are aligned to the left, like texts in other rows.
        groups: titles above pairs of columns after the first one.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    shares: Sequence[Sequence[float]] = ()
    is_text: bool = False
    groups: Sequence[str] = ()


@dataclass
class Section:
    """Part of the page.

    Attributes:
        title: heading.
        text: introduction.
        plots: ``<svg>`` elements.
        tables: tables by caption.
        folded: further tables, which are opened by a click.
        pictures: thumbnails by caption.
        is_part: whether the section belongs to the one before it.
    """

    title: str
    text: str = ""
    plots: list[str] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    folded: dict[str, Table] = field(default_factory=dict)
    pictures: dict[str, list[Thumbnail]] = field(default_factory=dict)
    is_part: bool = False


def _text(value: object, digits: int = 2) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def summary_section(runs: Sequence[Run]) -> Section:
    """Returns a summary table, one column for each run."""
    from markupsafe import Markup  # a dependency of jinja2

    def waiting(run: Run) -> str:
        if not {"time", "data_time"} <= run.scalars.keys():
            return "–"
        share = sum(run.scalars["data_time"].values()) / max(sum(run.scalars["time"].values()), 1e-12)
        return f"{100 * share:.0f} %"

    numbers = {id(run): number for number, run in enumerate(runs)}
    rows: dict[str, Callable[[Run], object]] = {
        "folder": lambda run: run.folder,
        "state": lambda run: run.state,
        "model": _model,
        "seconds per iteration (median)": lambda run: _text(run.seconds_per_iteration, 3),
        "images per second": lambda run: _text(run.images_per_second, 1),
        "time waiting for data": waiting,
        "GPU memory": lambda run: "–" if run.memory is None else f"{run.memory} MiB",
        "missing parts": lambda run: Markup('<a href="#missing{}">{}</a>').format(numbers[id(run)], len(run.missing)),
    }
    cells = [[name, *map(value, runs)] for name, value in rows.items()]
    cells[3:3] = _results(runs)
    return Section("Summary", tables={"": Table(["", *(run.name for run in runs)], cells, is_text=True)})


def _results(runs: Sequence[Run]) -> list[list[object]]:
    """Returns the last and the best value of the main metric of each kind and data set."""

    def value(run: Run, kind: tuple[str, str], name: str, best: bool) -> str:
        values = next((item.values.get(name, {}) for item in run.metrics if (item.data, item.kind) == kind), {})
        points = {iteration: value for iteration, value in values.items() if math.isfinite(value)}
        if not points:
            return "–"
        iteration = max(points, key=points.__getitem__ if best else int)
        return f"{points[iteration]:.2f} after {run.completed(iteration)} iterations"

    rows: list[list[object]] = []
    kinds = dict.fromkeys((metrics.data, metrics.kind) for run in runs for metrics in run.metrics)
    for data, kind in kinds:
        name = {"panoptic_seg": "PQ", "sem_seg": "mIoU"}.get(kind, "AP")
        label = f"{name if kind == 'panoptic_seg' else f'{kind} {name}'}{f' on {data}' * bool(data)}"
        for word in ("last", "best"):
            rows.append([f"{word} {label}", *(value(run, (data, kind), name, word == "best") for run in runs)])
    return rows


def _model(run: Run) -> str:
    """Returns the names of architecture and backbone."""
    architecture, backbone = (str(run.config.get(f"MODEL.{key}", "")) for key in ("META_ARCHITECTURE", "BACKBONE.NAME"))
    backbone = backbone.removeprefix("build_").removesuffix("_backbone")
    if backbone == "deformable_detr_resnet":
        dilated = " DC5" if run.config.get("MODEL.RESNETS.RES5_DILATION") == 2 else ""
        backbone = f"ResNet-{run.config.get('MODEL.RESNETS.DEPTH')}{dilated}"
    return ", ".join(filter(None, (architecture, backbone)))


def training_sections(runs: Sequence[Run]) -> list[Section]:
    text = "Curves with more than 300 values show means."
    sections = [Section("Training", text, panels.training_panels(runs))]
    for run in runs:
        sections.append(Section(f"{run.name}: losses by decoder layer", plots=panels.loss_panels(run), is_part=True))
        sections.append(Section(f"{run.name}: other values", plots=panels.other_panels(run), is_part=True))
    return sections


def metrics_section(runs: Sequence[Run], data: str, kind: str) -> Section:
    """Returns the last values and the curves of the metrics of one kind."""
    chosen: list[tuple[Run, Metrics]] = [
        (run, metrics) for run in runs for metrics in run.metrics if (metrics.data, metrics.kind) == (data, kind)
    ]
    order = [name for name, _, _ in METRICS]
    known = dict.fromkeys(name for _, metrics in chosen for name in metrics.values)
    names = [*(name for name in order if name in known), *(name for name in known if name not in order)]
    header = ["", *(run.name for run, _ in chosen)]

    def last(metrics: Metrics, name: str) -> str:
        values = metrics.values.get(name)
        return _text(list(values.values())[-1]) if values else "–"

    rows = [[name, *(last(metrics, name) for _, metrics in chosen)] for name in names]
    classes = [row for row in rows if "-" in row[0]]
    section = Section(f"Metrics: {kind}{f' on {data}' * bool(data)}", "Values of the last evaluation, in percent.")
    section.tables[""] = Table(header, [row for row in rows if row not in classes])
    if classes:
        section.folded["By class"] = Table(header, classes)
    section.plots = panels.metric_panels(chosen)
    return section


def errors_sections(analyses: Sequence[Analysis]) -> list[Section]:
    """Returns the comparison of all error analyses."""
    if not analyses:
        return []
    section = Section(
        "Errors of boxes",
        f"{_BOXES_ONLY} Counts: errors of the detections above the suggested threshold, which has the best F1 at IoU "
        "0.5. ΔAP50: what AP50 would gain without the errors of a kind, for all detections (TIDE, arXiv 2008.08115). "
        "Duplicates: share of the detections above the threshold that are not the best one of their object. Objects "
        "found by 1, 2, … detections: numbers of matched objects without a duplicate, with one duplicate, …",
        panels.comparison_panels(analyses),
    )
    labels = [item.label for item in analyses]
    header = ["", *labels]
    rows: list[list[object]] = [[name, *(_text(item.metrics[name]) for item in analyses)] for name in ("AP", "AP50")]
    rows += [[name, *(_text(item.best[name], 3) for item in analyses)] for name in _F1]
    rows += [["duplicates", *(f"{100 * item.best['duplicates']:.1f} %" for item in analyses)]]
    rows += [["calibration error", *(_text(item.calibration_error, 3) for item in analyses)]]
    rows += [["objects found by 1, 2, … detections", *(_counts(item.detections_per_object) for item in analyses)]]
    section.tables["Metrics, and the suggested threshold"] = Table(header, rows)
    header = ["kind", *("count", "ΔAP50") * len(analyses), "meaning"]
    rows = []
    for kind, (name, meaning) in KINDS.items():
        values = [(str(item.counts[kind]), _text(item.delta_ap[kind])) for item in analyses]
        rows.append([name, *(value for pair in values for value in pair), meaning])
    section.tables["Kinds of errors"] = Table(header, rows, groups=labels if len(labels) > 1 else ())
    rows = []
    firsts: dict[DatasetSpec, Analysis] = {}
    for item in analyses:
        first = firsts.setdefault(item.records.spec, item)
        if item is not first:
            change = compare(first, item)
            rows.append([item.label, first.label, *(f"{change[key]:+.2f}" for key in ("delta", "lower", "upper"))])
    if rows:
        caption = "Change of AP from that of another model, with a 95 % confidence interval (bootstrap over images)"
        section.tables[caption] = Table(["", "other", "ΔAP", "from", "to"], rows)
    return [section]


def _counts(numbers: Counter[int]) -> str:
    return ", ".join(str(numbers[number]) for number in range(1, max(numbers, default=0) + 1))


def analysis_section(run: Run, analysis: Analysis) -> Section:
    """Returns the error analysis of one model on one data set."""
    text = f"Detections: {analysis.source}. {_BOXES_ONLY}"
    section = Section(f"Errors of {analysis.label}", text, panels.error_panels(analysis))
    names = analysis.records.summary.class_names
    if len(names) <= MAX_CONFUSION:
        section.text += (
            " The confusion matrix pairs objects with detections of any class at IoU 0.5, so that its sums differ from "
            "the kinds of errors: the row (unmatched) has errors of all kinds, not only background, and the column "
            "(unmatched) has objects that are not counted as missed because a localization error overlaps them most."
        )
        section.tables["Confusion matrix: objects (rows) and detections above the threshold (columns)"] = _confusion(
            analysis
        )
    else:
        section.tables["Most frequent confusions above the threshold"] = _confused_pairs(analysis)
    rows = []
    for name, best, category in zip(
        names, analysis.best_of_classes, analysis.records.summary.category_ids, strict=True
    ):
        count = analysis.matches.num_objects.get(category, 0)
        rows.append([name, count, _text(analysis.metrics[f"AP-{name}"]), *(_text(best[key], 3) for key in _F1)])
    section.folded["Classes, each with its own threshold"] = Table(["class", "objects", "AP", *_F1], rows)
    bins = [item for item in analysis.bins if item["count"]]
    rows = [
        [f"{item['bin_lower']:.1f} to {item['bin_upper']:.1f}", int(item["count"])]
        + [_text(item[key], 3) for key in ("avg_confidence", "avg_accuracy")]
        for item in bins
    ]
    section.folded["Calibration"] = Table(["score", "detections", "mean score", "precision"], rows)
    try:
        section.pictures["Best-scored false positives (blue; objects yellow)"] = false_positive_pictures(analysis)
        section.pictures["Largest missed objects (yellow; detections blue)"] = missed_pictures(analysis)
    except Exception as error:  # other parts of the page are still valid
        run.missing.append((f"Pictures of {analysis.label}", error_text(error)))
    return section


def _confusion(analysis: Analysis) -> Table:
    """Returns the confusion matrix; colors show the share of the objects of a class."""
    names = analysis.records.summary.class_names
    counts = analysis.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares[-1] = 0
    rows = [[name, *row] for name, row in zip([*names, "(unmatched)"], counts.tolist(), strict=True)]
    rows[-1][-1] = ""
    return Table(["", *names, "(unmatched)"], rows, shares.tolist())


def _confused_pairs(analysis: Analysis) -> Table:
    names = analysis.records.summary.class_names
    counts = analysis.confusion[:-1, :-1].copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_PAIRS]
    pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
    rows = [[names[a], names[b], int(counts[a, b])] for a, b in pairs if counts[a, b]]
    return Table(["object", "detected as", "count"], rows)


def _loading(item: TestSet) -> tuple[object, ...]:
    """Returns what the content of a data set depends on."""
    return item.spec, item.config.invalid_boxes, item.config.drop_root_category


def data_section(runs: Sequence[Run], test_sets: Sequence[tuple[Run, TestSet]]) -> Section:
    """Returns the numbers of images and objects of all data sets that can be read."""
    used = list(test_sets)
    for run in runs:
        for name, spec in run.specs.items():
            if run.data is not None and name in run.data.train:
                used.append((run, TestSet(spec.instances(), run.data, Path())))
    loaded: list[CocoRecords] = []
    for item in {_loading(item): item for _, item in used}.values():
        try:
            loaded.append(item.load())
        except Exception as error:  # other parts of the page are still valid
            for run in runs:
                if any(user is run and _loading(other) == _loading(item) for user, other in used):
                    run.missing.append((f"Summary of {item.spec.name}", error_text(error)))
    if not loaded:
        return Section("Data")
    header = ["", *(records.summary.name for records in loaded)]
    rows: list[list[object]] = [
        ["images", *(len(records) for records in loaded)],
        ["objects", *(int((records.is_used & ~records.is_crowd).sum()) for records in loaded)],
        ["crowds", *(records.summary.num_crowd for records in loaded)],
        ["classes", *(len(records.summary.class_names) for records in loaded)],
        ["most objects in an image", *(records.summary.max_objects_per_image for records in loaded)],
    ]
    for size, (low, high) in _SIZES.items():
        areas = [records.table["area"][records.is_used & ~records.is_crowd] for records in loaded]
        rows.append([f"{size} objects", *(int(((low <= area) & (area < high)).sum()) for area in areas)])
    names = dict.fromkeys(name for records in loaded for name in records.summary.class_names)
    counts = [_class_counts(records) for records in loaded]
    by_class = [[name, *(count.get(name, "–") for count in counts)] for name in names]
    section = Section("Data", tables={"": Table(header, rows)})
    section.folded["Objects by class"] = Table(header, by_class)
    return section


def _class_counts(records: CocoRecords) -> dict[str, int]:
    labels = records.labels[records.is_used & ~records.is_crowd]
    names = records.summary.class_names
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def config_section(runs: Sequence[Run]) -> Section:
    """Returns the values in which the configs differ, and the keys that not all of them have."""
    chosen = [run for run in runs if run.config]
    header = ["key", *(run.name for run in chosen)]
    different, partial = [], []
    for key in dict.fromkeys(key for run in chosen for key in run.config):
        row = [key, *(str(run.config.get(key, "–")) for run in chosen)]
        if any(key not in run.config for run in chosen):
            partial.append(row)
        elif len(set(row[1:])) > 1:
            different.append(row)
    section = Section("Differences between the configs")
    if different:
        section.tables[""] = Table(header, different, is_text=True)
    if partial:
        section.folded[f"Keys that not all configs have: {len(partial)}"] = Table(header, partial, is_text=True)
    return section


def environment_section(runs: Sequence[Run]) -> Section:
    rows = [["Python", sys.version.split()[0]], ["platform", platform.platform()]]
    for package in _PACKAGES:
        try:
            rows.append([package, version(package)])
        except PackageNotFoundError:
            rows.append([package, "not installed"])
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"none; {torch.get_num_threads()} CPU threads"
    section = Section("Environment", tables={"Of this report": Table(["", ""], [*rows, ["GPU", gpu]], is_text=True)})
    for run in runs:
        if run.environment:
            section.folded[f"Of the training {run.name}"] = Table(["", ""], run.environment, is_text=True)
    return section
