"""Image reading."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ArgumentError
from .problems import DatasetError

_ORIENTATION = 0x0112  # the EXIF tag
# Maps an EXIF orientation to its inverse transform.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    path: str | os.PathLike[str], format: str = "RGB", expected_size: tuple[int, int] | None = None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Reads the pixels of an image file and applies its EXIF orientation, as Detectron2's reader does.

    Args:
        path: file in any format that Pillow reads.
        format: order of the channels, ``"RGB"`` or ``"BGR"``.
        expected_size: (height, width) according to the record; None: not checked.

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        DatasetError: if the file is missing, cannot be decoded, or does not have the expected size.
        ArgumentError: for another ``format``.
    """
    if format not in ("RGB", "BGR"):
        raise ArgumentError("format", f"must be RGB or BGR, got {format!r}")
    pixels = np.asarray(_decode(Path(path)))
    if expected_size is not None and pixels.shape[:2] != tuple(expected_size):
        raise DatasetError(
            f"{path} is {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height, after its EXIF orientation), but "
            f"{expected_size[1]} x {expected_size[0]} in its record: correct the width and height of the record, or "
            "replace the file"
        )
    return np.ascontiguousarray(pixels if format == "RGB" else pixels[:, :, ::-1])


def resize_shortest_edge(height: int, width: int, min_size: int, max_size: int | None = None) -> tuple[int, int]:
    """Returns (height, width) scaled so that the shorter side is ``min_size`` and the longer at most ``max_size``.

    Rounds like Detectron2's ``ResizeShortestEdge``. A ``min_size`` of 0 keeps the size.
    """
    if min_size == 0:
        return height, width
    scale = min_size / min(height, width)
    new_height, new_width = height * scale, width * scale
    if max_size is not None and max(new_height, new_width) > max_size:
        scale = max_size / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            method = _UPRIGHT.get(_orientation(image))
            return (image if method is None else image.transpose(method)).convert("RGB")
    except FileNotFoundError as error:
        raise DatasetError(
            f"image file {path} does not exist: add it, or remove its record from the data set"
        ) from error
    except UnidentifiedImageError as error:
        size = path.stat().st_size
        raise DatasetError(
            f"{path} ({size} bytes) is not an image in a format that Pillow supports: replace the file, or remove its "
            "record from the data set"
        ) from error
    # Pillow's decoders raise any of these for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"{path} cannot be decoded as an image ({error}): replace the file, or remove its record from the data set"
        ) from error


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation; 1 (upright) if it is absent or unreadable, as in Detectron2's reader."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, OSError, EOFError, struct.error):
        return 1  # only the metadata is damaged, as the pixels have been decoded
