"""Segment ids of panoptic segmentations as colors of a PNG, and label images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .images import open_image
from .problems import DatasetError

SegmentIds = np.ndarray[Any, np.dtype[np.int32]]
VOID = 0  # id of pixels that belong to no segment
MAX_ID = 256**3 - 1


def ids_to_rgb(ids: SegmentIds) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Converts segment ids (H, W) in [0, 256³) to RGB (H, W, 3); red is the lowest byte."""
    return np.stack([(ids >> shift) & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def rgb_to_ids(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> SegmentIds:
    """Inverse of `ids_to_rgb`."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return np.asarray(red + (green << 8) + (blue << 16), np.int32)


def encode_png(ids: SegmentIds) -> bytes:
    """Returns segment ids (H, W) as the content of a PNG file."""
    with io.BytesIO() as file:
        Image.fromarray(ids_to_rgb(ids)).save(file, format="PNG")
        return file.getvalue()


def decode_png(content: bytes) -> SegmentIds:
    """Inverse of `encode_png`."""
    with Image.open(io.BytesIO(content)) as image:
        return rgb_to_ids(np.asarray(image))


def read_segment_ids(path: str | Path, expected_size: tuple[int, int] | None = None) -> SegmentIds:
    """Reads the segment ids (H, W) of a panoptic PNG.

    Raises:
        DatasetError: if the file is missing, is not an image, or does not have the expected (height, width).
    """
    with open_image(path) as image:
        ids = rgb_to_ids(np.asarray(image.convert("RGB")))
    _check_size(path, ids, expected_size)
    return ids


def read_labels(path: str | Path, expected_size: tuple[int, int]) -> np.ndarray[Any, np.dtype[Any]]:
    """Reads the labels (H, W) of an image: its values or palette indices; see `read_segment_ids` for errors."""
    with open_image(path) as image:
        labels = np.asarray(image)
    labels = labels if labels.ndim == 2 else labels[:, :, 0]
    _check_size(path, labels, expected_size)
    return labels


def _check_size(path: str | Path, labels: np.ndarray[Any, np.dtype[Any]], expected: tuple[int, int] | None) -> None:
    if expected is not None and labels.shape != tuple(expected):
        raise DatasetError(
            f"{path} is {labels.shape[1]} x {labels.shape[0]} pixels (width x height), but {expected[1]} x "
            f"{expected[0]} in its record: correct the record, or replace the file"
        )
