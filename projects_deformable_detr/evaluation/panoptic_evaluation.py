"""Panoptic results as COCO's files, and their quality: what both engines' evaluators share."""

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..data.catalog import DatasetSpec
from ..data.coco_files import read_json
from ..data.panoptic_format import decode_png, encode_png, ids_to_colours, read_segment_ids
from ..data.problems import DatasetError
from .panoptic_quality import PanopticQuality

logger = logging.getLogger(__name__)
_FOLDER = "panoptic"  # of the PNGs, beside predictions.json


@dataclass(frozen=True)
class PanopticResult:
    """One image's result, small enough to send to another process.

    Attributes:
        image_id: of the JSON file.
        file_name: of the image; the result's PNG has its stem.
        png: the segment ids as COCO's PNG; thousands of images, not packed, would not fit into memory.
        segments: dicts with ``id`` and the file's ``category_id``.
    """

    image_id: int
    file_name: str
    png: bytes
    segments: list[dict[str, int]]

    @classmethod
    def of(
        cls,
        image_id: int,
        file_name: str,
        ids: np.ndarray,
        segments: Sequence[Mapping[str, Any]],
        category_ids: Sequence[int],
    ) -> "PanopticResult":
        """From segment ids (H, W), 0 being void, and segments with contiguous ``category_id``."""
        listed = [{"id": int(item["id"]), "category_id": category_ids[item["category_id"]]} for item in segments]
        return cls(image_id, os.path.basename(file_name), encode_png(ids_to_colours(ids)), listed)


def evaluate(spec: DatasetSpec, results: Sequence[PanopticResult], output_dir: Path) -> dict[str, dict[str, float]]:
    """Writes ``predictions.json`` and ``panoptic/*.png``, COCO's panoptic results format, and measures them.

    Returns:
        ``{"panoptic_seg": metrics}`` in percent under Detectron2's names (PQ, SQ, RQ, PQ_th, …), and PQ-<class>.

    Raises:
        DatasetError: if an image of the data set has no result.
    """
    truth = read_json(spec)
    by_image = {result.image_id: result for result in results}
    missing = [item["image_id"] for item in truth["annotations"] if item["image_id"] not in by_image]
    if missing:
        raise DatasetError(
            f"data set {spec.name} has {len(missing)} images without a panoptic result, such as id {missing[0]}: "
            "evaluate all of its images"
        )
    _write(truth, by_image, output_dir)
    quality = PanopticQuality({item["id"]: bool(item["isthing"]) for item in truth["categories"]})
    for item in truth["annotations"]:
        result = by_image[item["image_id"]]
        true_ids = read_segment_ids(os.path.join(str(spec.panoptic_root), item["file_name"]))
        quality.add(true_ids, item["segments_info"], decode_png(result.png), result.segments)
    metrics = quality.result({item["id"]: item["name"] for item in truth["categories"]})
    logger.info("Panoptic quality of %s, computed by this project:\n%s", spec.name, format_metrics(metrics, quality))
    return {"panoptic_seg": metrics}


def _write(truth: dict[str, Any], by_image: dict[int, PanopticResult], output_dir: Path) -> None:
    folder = output_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    annotations = []
    often = Counter(Path(result.file_name).stem for result in by_image.values())
    for image_id, result in sorted(by_image.items()):
        stem = Path(result.file_name).stem  # which images of two folders may share
        name = f"{stem}.png" if often[stem] == 1 else f"{image_id}_{stem}.png"
        (folder / name).write_bytes(result.png)
        annotations.append({"image_id": image_id, "file_name": name, "segments_info": result.segments})
    (output_dir / "predictions.json").write_text(json.dumps({**truth, "annotations": annotations}))
    logger.info("%d panoptic results written to %s and %s", len(annotations), folder, output_dir / "predictions.json")


def format_metrics(metrics: Mapping[str, float], quality: PanopticQuality) -> str:
    """A table of all, things and stuff, and one of the classes."""
    rows = []
    names = ("All", "Things", "Stuff")
    for name, suffix, count in zip(names, ("", "_th", "_st"), quality.num_categories, strict=True):
        rows.append([name, *(metrics[key + suffix] for key in ("PQ", "SQ", "RQ")), count])
    text = tabulate(rows, ["", "PQ", "SQ", "RQ", "#categories"], tablefmt="pipe", floatfmt=".3f")
    classes = [(name.removeprefix("PQ-"), value) for name, value in metrics.items() if name.startswith("PQ-")]
    return text + "\n" + tabulate(classes, ["category", "PQ"], tablefmt="pipe", floatfmt=".3f")
