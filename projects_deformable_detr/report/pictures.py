"""Thumbnails of false positives and missed objects."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import read_image
from ..inference.drawing import draw
from .analysis import KINDS, Analysis

COUNT = 12
_WIDTH = 320  # pixels
_TRUTH, _DETECTION = 0, 1  # colors: yellow and blue


@dataclass(frozen=True)
class Thumbnail:
    """A picture and its caption.

    Attributes:
        uri: JPEG as a ``data:`` URI.
        width, height: size in pixels.
        caption: text below the picture.
        file_name: path of the image.
    """

    uri: str
    width: int
    height: int
    caption: str
    file_name: str


def false_positive_pictures(analysis: Analysis) -> list[Thumbnail]:
    """Draws the best-scored false positives, with the annotated objects around them."""
    names = _class_names(analysis)
    pictures = []
    for item in analysis.false_positives[:COUNT]:
        result = item.result
        text = f"{names[result['category_id']]} {100 * result['score']:.0f}%"
        caption = f"{text}: {KINDS[item.kind][0]}"
        pictures.append(_draw(analysis, result["image_id"], result["bbox"], [(result["bbox"], text)], caption))
    return pictures


def missed_pictures(analysis: Analysis) -> list[Thumbnail]:
    """Draws the largest missed objects, with the annotated objects and the detections around them."""
    names = _class_names(analysis)
    pictures = []
    for item in analysis.missed[:COUNT]:
        found = [
            (result["bbox"], f"{names[result['category_id']]} {100 * result['score']:.0f}%")
            for result in analysis.kept
            if result["image_id"] == item["image_id"]
        ]
        caption = f"{names[item['category_id']]}: missed"
        pictures.append(_draw(analysis, item["image_id"], item["bbox"], found, caption))
    return pictures


def _class_names(analysis: Analysis) -> dict[int, str]:
    summary = analysis.records.summary
    return dict(zip(summary.category_ids, summary.class_names, strict=True))


def _draw(
    analysis: Analysis,
    image_id: int,
    box: Sequence[float],
    detections: Sequence[tuple[Sequence[float], str]],
    caption: str,
) -> Thumbnail:
    """Draws the surroundings of a box (x, y, width, height) with all annotated objects and some detections."""
    index = int(np.searchsorted(analysis.records.image_ids, image_id))
    record = analysis.records[index]
    names = analysis.records.summary.class_names
    image = read_image(record["file_name"])
    shown = [(item["bbox"], names[item["category_id"]], _TRUTH) for item in record["annotations"]]
    shown += [(found, text, _DETECTION) for found, text in detections]
    left, top, right, bottom = _surroundings(box, image.shape[1], image.shape[0])
    corners = np.array([item[0] for item in shown], dtype=np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    corners = corners.clip((left, top) * 2, (right, bottom) * 2)
    is_visible = (corners[:, 2:] - corners[:, :2] >= 1).all(axis=1)
    rows = np.flatnonzero(is_visible).tolist()
    part = Image.fromarray(image[top:bottom, left:right])
    scale = _WIDTH / max(part.size)
    resized = np.asarray(part.resize([max(1, round(side * scale)) for side in part.size]))  # before texts are drawn
    boxes, labels = (corners[rows] - (left, top) * 2) * scale, [shown[row][2] for row in rows]
    drawn = draw(resized, boxes, labels, texts=[shown[row][1] for row in rows], min_side=1)
    picture = Image.fromarray(drawn)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Thumbnail(uri, *picture.size, caption, record["file_name"])


def _surroundings(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the corners of a part of the image three times as large as the box, but at least half of the image."""
    center = (box[0] + box[2] / 2, box[1] + box[3] / 2)
    corners: list[Any] = []
    for middle, side, limit in zip(center, box[2:], (width, height), strict=True):
        length = min(float(limit), max(3 * side, limit / 2))
        start = min(max(0.0, middle - length / 2), limit - length)
        corners.append((round(start), round(start + length)))
    return corners[0][0], corners[1][0], corners[0][1], corners[1][1]
