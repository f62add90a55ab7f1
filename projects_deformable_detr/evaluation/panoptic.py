"""Panoptic quality (arXiv 1801.00868, section 4.1), and the COCO panoptic results format.

The reference implementation, panopticapi, is not on the Python package index.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..data.catalog import DatasetSpec
from ..data.files import read_json
from ..data.panoptic import PanopticRecords
from ..data.problems import DatasetError
from ..data.segment_ids import VOID, decode_png, encode_png, read_segment_ids
from ..modeling import PanopticSegmentation
from .coco import Metrics, gather

logger = logging.getLogger(__name__)
Ids = np.ndarray[Any, np.dtype[np.int32]]
Segments = Sequence[Mapping[str, Any]]
_MAX_IGNORED = 0.5  # predictions with a larger fraction of void or crowd pixels are ignored


@dataclass(frozen=True)
class PanopticResult:
    """Segmentation of one image in a compact form that can be gathered from all ranks.

    Attributes:
        image_id: id of the image in the annotation file.
        file_name: name of the image file.
        png: segment ids as a PNG, because thousands of uncompressed images would not fit into memory.
        segments: dicts with ``id`` and the ``category_id`` of the file.
    """

    image_id: int
    file_name: str
    png: bytes
    segments: list[dict[str, int]]


class PanopticEvaluator:
    """Gathers the panoptic segmentations of one data set from all ranks and computes panoptic quality.

    Args:
        spec: data set in the panoptic format.
        category_ids: category id of each class in the file.
        records: records of the data set; None: all images of the file, which is read when metrics are computed.
    """

    def __init__(self, spec: DatasetSpec, category_ids: Sequence[int], records: PanopticRecords | None = None) -> None:
        self.spec = spec
        self.records = records
        self.category_ids = category_ids
        self._results: list[PanopticResult] = []

    def reset(self) -> None:
        """Removes all results."""
        self._results = []

    def add(self, image_id: int, file_name: str, segmentation: PanopticSegmentation) -> None:
        """Adds the segmentation of one image in its original size."""
        segments = [
            {"id": int(item["id"]), "category_id": self.category_ids[item["category_id"]]}
            for item in segmentation.segments
        ]
        png = encode_png(segmentation.ids.cpu().numpy())
        self._results.append(PanopticResult(image_id, os.path.basename(file_name), png, segments))

    def evaluate(self, output_dir: Path) -> dict[str, Metrics]:
        """Writes ``predictions.json`` and ``panoptic/*.png`` in COCO format, and computes metrics in percent.

        Returns:
            ``{"panoptic_seg": metrics}`` with Detectron2's names (PQ, SQ, RQ, PQ_th, …) and ``PQ-<class>``; ``{}`` on
            ranks other than 0.

        Raises:
            DatasetError: if an image of the data set has no result.
        """
        gathered = gather(self._results)
        if gathered is None:
            return {}
        ground_truth = read_json(self.spec) if self.records is None else self.records.ground_truth()
        results = {result.image_id: result for result in gathered}
        missing = [item["image_id"] for item in ground_truth["annotations"] if item["image_id"] not in results]
        if missing:
            raise DatasetError(
                f"data set {self.spec.name} has {len(missing)} images without a panoptic result, such as id "
                f"{missing[0]}: evaluate all of its images"
            )
        _write(ground_truth, results, output_dir)
        quality = PanopticQuality({item["id"]: bool(item["isthing"]) for item in ground_truth["categories"]})
        for item in ground_truth["annotations"]:
            result = results[item["image_id"]]
            true_ids = read_segment_ids(os.path.join(str(self.spec.panoptic_root), item["file_name"]))
            quality.add(true_ids, item["segments_info"], decode_png(result.png), result.segments)
        metrics = quality.compute({item["id"]: item["name"] for item in ground_truth["categories"]})
        logger.info("Panoptic quality of %s:\n%s", self.spec.name, _format_metrics(metrics, quality.num_categories))
        return {"panoptic_seg": metrics}


def _write(ground_truth: dict[str, Any], results: Mapping[int, PanopticResult], output_dir: Path) -> None:
    folder = output_dir / "panoptic"
    folder.mkdir(parents=True, exist_ok=True)
    annotations = []
    is_unique = len({Path(result.file_name).stem for result in results.values()}) == len(results)
    for image_id, result in sorted(results.items()):
        stem = Path(result.file_name).stem
        # Images in different folders may have the same name.
        name = f"{stem}.png" if is_unique else f"{image_id}_{stem}.png"
        (folder / name).write_bytes(result.png)
        annotations.append({"image_id": image_id, "file_name": name, "segments_info": result.segments})
    path = output_dir / "predictions.json"
    path.write_text(json.dumps({**ground_truth, "annotations": annotations}))
    logger.info("%d panoptic results written to %s and %s", len(annotations), folder, path)


def _format_metrics(metrics: Metrics, num_categories: tuple[int, int, int]) -> str:
    """Returns a table of the means over all classes, things and stuff, and a table of the classes."""
    rows = [
        [name, *(metrics[key + suffix] for key in ("PQ", "SQ", "RQ")), count]
        for name, suffix, count in zip(("All", "Things", "Stuff"), ("", "_th", "_st"), num_categories, strict=True)
    ]
    classes = [(name.removeprefix("PQ-"), value) for name, value in metrics.items() if name.startswith("PQ-")]
    tables = (rows, ["", "PQ", "SQ", "RQ", "#categories"]), (classes, ["category", "PQ"])
    return "\n".join(tabulate(*table, tablefmt="pipe", floatfmt=".3f") for table in tables)


@dataclass
class _Counts:
    """Sum of the IoU of matches, true positives, false positives and false negatives of one category."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    @property
    def is_empty(self) -> bool:
        return not self.tp + self.fp + self.fn

    def quality(self) -> tuple[float, float, float]:
        """Returns PQ, SQ and RQ in [0, 1]: SQ is the mean IoU of matches, RQ the F1 score, PQ their product."""
        if self.is_empty:
            return 0.0, 0.0, 0.0
        segmentation = self.iou / self.tp if self.tp else 0.0
        recognition = self.tp / (self.tp + 0.5 * (self.fp + self.fn))
        return segmentation * recognition, segmentation, recognition


class PanopticQuality:
    """Accumulates images and computes panoptic quality.

    A predicted and a true segment match if they have the same category and an IoU above 1/2, so that matches are
    unique. Void pixels of the ground truth are not part of any union. An unmatched prediction is ignored if more than
    half of it is void or a crowd of the same category. Unmatched crowds are not false negatives.

    Args:
        is_thing: maps category ids to whether the category is a thing.
    """

    def __init__(self, is_thing: Mapping[int, bool]) -> None:
        self.is_thing = is_thing
        self._counts = {category: _Counts() for category in is_thing}

    def add(self, true_ids: Ids, true_segments: Segments, pred_ids: Ids, pred_segments: Segments) -> None:
        """Adds one image.

        Args:
            true_ids, pred_ids: (H, W) segment ids; 0 and ground-truth ids without a segment are void.
            true_segments: dicts with ``id``, ``category_id`` and optionally ``iscrowd``.
            pred_segments: dicts with ``id`` and ``category_id``.

        Raises:
            ValueError: if the maps differ in size, the ids in the predicted map and segments differ, or a category
                is unknown.
        """
        if true_ids.shape != pred_ids.shape:
            raise ValueError(f"ground truth has {true_ids.shape} pixels, prediction {pred_ids.shape}")
        truth = {segment["id"]: segment["category_id"] for segment in true_segments}
        crowds = {segment["id"] for segment in true_segments if segment.get("iscrowd", 0)}
        preds = {segment["id"]: segment["category_id"] for segment in pred_segments}
        pred_areas = _areas(pred_ids)
        self._check(truth, preds, pred_areas)
        true_ids = np.where(np.isin(true_ids, list(truth)), true_ids, VOID)
        true_areas, overlaps = _areas(true_ids), _overlaps(true_ids, pred_ids)

        matched: set[tuple[str, int]] = set()
        for (true_id, pred_id), overlap in overlaps.items():
            if VOID in (true_id, pred_id) or true_id in crowds or truth[true_id] != preds[pred_id]:
                continue
            union = true_areas[true_id] + pred_areas[pred_id] - overlap - overlaps.get((VOID, pred_id), 0)
            if 2 * overlap > union:
                counts = self._counts[preds[pred_id]]
                counts.tp += 1
                counts.iou += overlap / union
                matched |= {("true", true_id), ("pred", pred_id)}
        for true_id, category in truth.items():
            if ("true", true_id) not in matched and true_id not in crowds:
                self._counts[category].fn += 1
        for pred_id, category in preds.items():
            if ("pred", pred_id) in matched:
                continue
            ignored = [VOID, *(crowd for crowd in crowds if truth[crowd] == category)]
            pixels = sum(overlaps.get((true_id, pred_id), 0) for true_id in ignored)
            if pixels <= _MAX_IGNORED * pred_areas[pred_id]:
                self._counts[category].fp += 1

    def _check(self, truth: Mapping[int, int], preds: Mapping[int, int], pred_areas: Mapping[int, int]) -> None:
        unlisted, empty = set(pred_areas) - set(preds) - {VOID}, set(preds) - set(pred_areas)
        if unlisted or empty:
            raise ValueError(
                f"predicted map and segments disagree: ids {sorted(unlisted)} are not listed, {sorted(empty)} have no "
                "pixel"
            )
        unknown = {*truth.values(), *preds.values()} - set(self.is_thing)
        if unknown:
            raise ValueError(f"unknown categories {sorted(unknown)}, expected {sorted(self.is_thing)}")

    def compute(self, names: Mapping[int, str] | None = None) -> Metrics:
        """Returns ``PQ``, ``SQ`` and ``RQ`` of all categories, of things (``_th``) and of stuff (``_st``), in percent.

        Each is the mean over categories that occur in the ground truth or in predictions; NaN if there are none.

        Args:
            names: category names by id; adds ``PQ-<name>`` of each category.
        """
        metrics: Metrics = {}
        for suffix, kinds in (("", (True, False)), ("_th", (True,)), ("_st", (False,))):
            rows = [counts.quality() for kind, counts in self._occurring() if kind in kinds]
            means = np.mean(rows, axis=0) if rows else np.full(3, np.nan)
            metrics |= {name + suffix: 100 * float(mean) for name, mean in zip(("PQ", "SQ", "RQ"), means, strict=True)}
        for category, name in (names or {}).items():
            counts = self._counts[category]
            metrics[f"PQ-{name}"] = np.nan if counts.is_empty else 100 * counts.quality()[0]
        return metrics

    @property
    def num_categories(self) -> tuple[int, int, int]:
        """Number of categories that occur: all, things, stuff."""
        kinds = [kind for kind, _ in self._occurring()]
        return len(kinds), sum(kinds), len(kinds) - sum(kinds)

    def _occurring(self) -> list[tuple[bool, _Counts]]:
        return [(bool(self.is_thing[i]), counts) for i, counts in self._counts.items() if not counts.is_empty]


def _areas(ids: Ids) -> dict[int, int]:
    values, counts = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _overlaps(true_ids: Ids, pred_ids: Ids) -> dict[tuple[int, int], int]:
    """Returns the number of pixels of each pair (true id, predicted id) that occurs."""
    joint = true_ids.astype(np.int64) << 32 | pred_ids.astype(np.int64)
    values, counts = np.unique(joint, return_counts=True)
    pairs = zip((values >> 32).tolist(), (values & 0xFFFFFFFF).tolist(), strict=True)
    return dict(zip(pairs, counts.tolist(), strict=True))
