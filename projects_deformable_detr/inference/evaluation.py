"""Evaluates a `Detector` on a data set, with the metrics of the engines' evaluation."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import modeling
from ..checkpoint.classes import match_names, shorten
from ..data.records import Records
from ..errors import UserError
from ..evaluation import Evaluator
from ..evaluation.coco import Metrics
from ..evaluation.score_threshold import best_f1, match
from .detections import Detections
from .detector import Detector


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metrics: metrics in percent for ``"bbox"`` and, with masks, ``"segm"``, or for ``"panoptic_seg"``, as in a
            training run's ``metrics.json``.
        best_f1: the score threshold with the best F1, and the metrics of boxes with higher scores, see
            `score_threshold.metrics_above`; {} for LVIS, whose annotations are not exhaustive, for panoptic data
            sets, or if there are no detections.
        best_f1_of_classes: the same for each class.
        objects: number of objects of each class, without crowds.
    """

    metrics: dict[str, Metrics]
    best_f1: dict[str, float]
    best_f1_of_classes: dict[str, dict[str, float]]
    objects: dict[str, int]


def evaluate(
    detector: Detector,
    records: Records,
    output_dir: Path,
    *,
    iou: float = 0.5,
    batch_size: int | None = None,
    on_image: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Runs a detector on a data set and computes metrics; writes a COCO results file to ``output_dir``.

    Args:
        detector: a detector for all classes of the data set, which are matched by name. Its other classes are ignored.
        records: data set in COCO's instances or panoptic format or LVIS format, loaded with ``for_evaluation``, and
            with masks if the detector predicts masks.
        output_dir: folder of the results file.
        iou: minimum IoU between a detection and an object for precision and recall.
        batch_size: see `Detector.stream`.
        on_image: called after each image.

    Raises:
        UserError: if the detector lacks a class of the data set, or an image cannot be read; or for a panoptic data
            set, if the detector is not panoptic or has other classes.
    """
    summary, config = records.summary, detector.metadata.evaluation
    rows = match_names(summary.class_names, detector.class_names)
    if missing := [name for index, name in enumerate(summary.class_names) if index not in rows]:
        raise UserError(
            f"{records.spec}: the model lacks the classes {', '.join(shorten(missing))}; its classes are "
            f"{', '.join(shorten(detector.class_names))}"
        )
    labels = torch.full((len(detector.class_names),), -1)
    labels[list(rows.values())] = torch.tensor(list(rows))
    classes = None if -1 not in labels else list(rows.values())
    is_panoptic = records.spec.panoptic_root is not None
    if is_panoptic and not config.is_panoptic:
        raise UserError(f"{records.spec} is in the panoptic format, but the model is not panoptic")
    if is_panoptic and classes is not None:
        raise UserError(f"{records.spec} must have all {len(detector.class_names)} classes of the panoptic model")
    evaluator = Evaluator(records, config.max_detections, is_panoptic)
    found = detector.stream(
        (record["file_name"] for record in records),
        score_threshold=config.score_threshold,
        classes=classes,
        batch_size=batch_size,
    )
    for image_id, item in zip(records.image_ids.tolist(), found, strict=True):
        result = modeling.Detections(item.boxes, item.scores, labels[item.labels], item.masks)
        evaluator.add([image_id], [item.source], [result], _segmentations(item, labels) if is_panoptic else None)
        on_image()
    metrics = evaluator.evaluate(output_dir)
    if summary.is_lvis or evaluator.coco is None:
        return Evaluation(metrics, {}, {}, {})
    results = json.loads((output_dir / evaluator.coco.results_name).read_text())
    if not results:
        return Evaluation(metrics, {}, {}, {})
    matches = match(evaluator.coco.ground_truth, results, iou)
    categories = dict(zip(summary.class_names, summary.category_ids, strict=True))
    return Evaluation(
        metrics,
        best_f1(matches),
        {name: best_f1(matches.select(category)) for name, category in categories.items()},
        {name: matches.num_objects.get(category, 0) for name, category in categories.items()},
    )


def _segmentations(found: Detections, labels: torch.Tensor) -> list[modeling.PanopticSegmentation]:
    """Returns the segmentation of an image with the class ids of the data set."""
    assert found.segmentation is not None
    segments = found.segmentation.segments
    segments = [item | {"category_id": int(labels[item["category_id"]])} for item in segments]
    return [replace(found.segmentation, segments=segments)]


def measure_latency(detector: Detector, files: list[str]) -> float:
    """Returns the median time from the pixels of an image to its detections, in milliseconds.

    Args:
        detector: the model.
        files: image files, which are read before the measurement. The first image is also used for a warm-up run.
    """
    images = [detector.metadata.reader.read(file) for file in files]
    color = "bgr" if detector.metadata.reader.format == "BGR" else "rgb"
    times = []
    for image in images[:1] + images:
        start = time.perf_counter()
        detector(image, color=color)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])
