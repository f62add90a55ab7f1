"""COCO's panoptic format: segment ids as the colours of a PNG, and their list beside it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .images import read_image
from .problems import DatasetError

Ids = np.ndarray[Any, np.dtype[np.int32]]
Colours = np.ndarray[Any, np.dtype[np.uint8]]

VOID = 0  # pixels of no segment
MAX_ID = 256**3 - 1


def ids_to_colours(ids: Ids) -> Colours:
    """Segment ids (H, W) in [0, 256³) to RGB (H, W, 3), the red channel being the lowest byte."""
    return np.stack([(ids >> shift) & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def colours_to_ids(colours: Colours) -> Ids:
    """The inverse of `ids_to_colours`."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return np.asarray(red + (green << 8) + (blue << 16), np.int32)


def encode_png(colours: Colours) -> bytes:
    """An RGB image (H, W, 3) as the bytes of a PNG file."""
    with io.BytesIO() as file:
        Image.fromarray(colours).save(file, format="PNG")
        return file.getvalue()


def decode_png(content: bytes) -> Ids:
    """The segment ids (H, W) in the bytes of a PNG file that `encode_png` made."""
    with Image.open(io.BytesIO(content)) as image:
        return colours_to_ids(np.asarray(image))


def read_segment_ids(path: str | Path, expected_size: tuple[int, int] | None = None) -> Ids:
    """The segment ids (H, W) of a panoptic PNG; 0 is void.

    Raises:
        DatasetError: if the file is missing, is not an image, or is not of the expected (height, width).
    """
    return colours_to_ids(read_image(path, expected_size=expected_size))


def segment_masks(ids: Ids, segments: list[dict[str, Any]], path: object) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(T, H, W) bool masks of segments, in their order.

    Args:
        ids: (H, W).
        segments: dicts with ``id``.
        path: of the PNG, for the error.

    Raises:
        DatasetError: for a segment that has no pixel.
    """
    wanted = np.array([segment["id"] for segment in segments], np.int32).reshape(-1)
    masks = ids[None] == wanted[:, None, None]
    empty = wanted[~masks.any((1, 2))]
    if empty.size:
        raise DatasetError(
            f"{path} has no pixel of segment {int(empty[0])}, which segments_info lists for it: remove the segment "
            "from the JSON file, or replace the PNG"
        )
    return np.asarray(masks, bool)
