"""Instance masks: COCO segmentations (polygons or RLE) and bitmaps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle_format

from .problems import DatasetError

Rle = dict[str, Any]
Bitmaps = np.ndarray[Any, np.dtype[np.bool_]]


def find_rle_fault(size: Sequence[int], counts: str | bytes | list[int], height: int, width: int) -> str | None:
    """Returns a description of the fault in an RLE, or None if it is valid.

    pycocotools does not check run lengths; invalid ones make it read out of bounds or loop forever.
    """
    if tuple(size) != (height, width):
        return f"an RLE of size {list(size)}, but its image is {height} x {width} (height x width)"
    try:
        total = sum(counts) if isinstance(counts, list) else _decode_counts(counts).sum()
    except ValueError as error:
        return f"an RLE whose counts {error}"
    return None if total == height * width else f"an RLE of {total} pixels, not {height * width}"


def _decode_counts(text: str | bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Decodes the run lengths of a compressed RLE: 5-bit digits of differences from the length two positions before."""
    content = text.encode("utf-8") if isinstance(text, str) else text
    digits = np.frombuffer(content, np.uint8).astype(np.int64) - 48
    if not digits.size:
        return digits
    if digits.min() < 0 or digits.max() > 63:
        raise ValueError("contain characters that COCO's encoding does not use")
    stops = np.flatnonzero(digits < 32)  # last digit of each number
    if not stops.size or stops[-1] != digits.size - 1:
        raise ValueError("are truncated")
    starts = np.concatenate([[0], stops[:-1] + 1])
    num_digits = stops - starts + 1
    if num_digits.max() > 7:
        raise ValueError("are not run lengths of an image")
    powers = 5 * (np.arange(digits.size) - np.repeat(starts, num_digits))
    found = np.add.reduceat((digits & 31) << powers, starts)
    found -= (digits[stops] >> 4 & 1) << 5 * num_digits  # two's complement
    found[1::2] = found[1::2].cumsum()
    found[2::2] = found[2::2].cumsum()
    if found.min() < 0:
        raise ValueError("are negative")
    return found


def to_rle(segmentation: Any, height: int, width: int, where: str) -> Rle:
    """Converts a COCO segmentation to compressed RLE.

    Args:
        segmentation: list of polygons [x1, y1, x2, y2, …] in pixels, whose union is the mask; or a dict with ``size``
            and ``counts``, which is a string or a list of integers.
        height, width: size of the image in pixels.
        where: name of the annotation, for errors.

    Raises:
        DatasetError: if the segmentation is invalid or its size differs from the image.
    """
    try:
        if isinstance(segmentation, list):
            return dict(rle_format.merge(rle_format.frPyObjects(segmentation, height, width)))
        fault = find_rle_fault(segmentation["size"], segmentation["counts"], height, width)
        if fault is None and isinstance(segmentation["counts"], list):
            return dict(rle_format.frPyObjects(segmentation, height, width))
    except Exception as error:  # pycocotools also raises plain Exception
        fault = f"an invalid segmentation ({error})"
    if fault is not None:
        raise DatasetError(f"{where} has {fault}: correct or remove the annotation")
    return dict(segmentation)


def decode(rles: list[Rle], height: int, width: int) -> Bitmaps:
    """Decodes RLEs to (T, height, width) bool masks."""
    if not rles:
        return np.zeros((0, height, width), bool)
    return np.ascontiguousarray(rle_format.decode(rles).transpose(2, 0, 1)).astype(bool)


def encode(mask: np.ndarray[Any, Any]) -> Rle:
    """Encodes a mask (H, W) as an RLE that can be written as JSON."""
    rle = rle_format.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
