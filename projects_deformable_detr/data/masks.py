"""Instance masks: COCO's segmentations (polygons or RLE) and bitmaps."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from pycocotools import mask as rle_format

from .problems import DatasetError

Rle = dict[str, Any]
Bitmaps = np.ndarray[Any, np.dtype[np.bool_]]
_TRIANGLE = 6  # minimum number of coordinates of a polygon


class _RunLengths(msgspec.Struct, gc=False):
    size: tuple[int, int]
    counts: str | list[Annotated[int, msgspec.Meta(ge=0)]]


_decoder = msgspec.json.Decoder(list[list[float]] | _RunLengths | None)


class Segmentations:
    """Segmentations of many annotations, stored as JSON and decoded on access.

    JSON takes a quarter of the memory of Python lists, in a single bytes object.

    Args:
        texts: JSON of each segmentation.
    """

    def __init__(self, texts: Sequence[Any]) -> None:
        self._offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts], dtype=np.int64)])
        self._content = b"".join(texts)

    def decode(self, index: int) -> Any:
        """Returns the polygons or RLE of the file, unchanged."""
        return msgspec.json.decode(self._text(index))

    def __getitem__(self, index: int) -> Any:
        """Returns polygons or RLE, without polygons of fewer than three points."""
        found = self.decode(index)
        return [polygon for polygon in found if len(polygon) >= _TRIANGLE] if isinstance(found, list) else found

    def _text(self, index: int) -> bytes:
        return self._content[self._offsets[index] : self._offsets[index + 1]]

    def check(self, index: int, height: int, width: int) -> tuple[str | None, int, int]:
        """Checks one segmentation.

        Returns:
            fault or None, number of parts (0 without a segmentation), number of polygons of fewer than three points.
        """
        try:
            found = _decoder.decode(self._text(index))
        except (ValueError, RecursionError) as error:
            return f"neither polygons with finite coordinates nor an RLE with integer counts ({error})", 1, 0
        if found is None:
            return None, 0, 0
        if isinstance(found, _RunLengths):
            return _check_run_lengths(found, height, width), 1, 0
        odd = next((len(polygon) for polygon in found if len(polygon) % 2), None)
        fault = None if odd is None else f"a polygon with an odd number of coordinates ({odd})"
        return fault, len(found), sum(len(polygon) < _TRIANGLE for polygon in found)


def _check_run_lengths(found: _RunLengths, height: int, width: int) -> str | None:
    if found.size != (height, width):
        return f"an RLE of size {list(found.size)}, but its image is {height} x {width} (height x width)"
    total = height * width if isinstance(found.counts, str) else sum(found.counts)
    return None if total == height * width else f"an RLE of {total} pixels, not {height * width}"


def to_rle(segmentation: Any, height: int, width: int, where: str) -> Rle:
    """Converts a segmentation in any of COCO's formats to compressed RLE.

    Args:
        segmentation: list of polygons [x1, y1, x2, y2, …] in pixels, whose union is the mask; or a dict with ``size``
            and ``counts``, a string or a list of integers.
        height, width: size of the image in pixels.
        where: name of the annotation, for errors.

    Raises:
        DatasetError: if the segmentation is invalid or has another size.
    """
    try:
        if isinstance(segmentation, list):
            return dict(rle_format.merge(rle_format.frPyObjects(segmentation, height, width)))
        if list(segmentation["size"]) == [height, width]:
            if isinstance(segmentation["counts"], list):
                return dict(rle_format.frPyObjects(segmentation, height, width))
            return dict(segmentation)
    except Exception as error:  # pycocotools raises plain Exception, too
        raise DatasetError(
            f"{where} has an unusable segmentation ({error}): correct or remove the annotation"
        ) from error
    raise DatasetError(
        f"{where} has a segmentation of {segmentation['size'][0]} x {segmentation['size'][1]} pixels (height x width), "
        f"but its image is {height} x {width}: correct the annotation"
    )


def decode(rles: list[Rle], height: int, width: int) -> Bitmaps:
    """Decodes RLEs to (T, height, width) bool masks."""
    if not rles:
        return np.zeros((0, height, width), bool)
    return np.ascontiguousarray(rle_format.decode(rles).transpose(2, 0, 1)).astype(bool)


def encode(mask: np.ndarray[Any, Any]) -> Rle:
    """Encodes a mask (H, W) as an RLE that can be written as JSON."""
    rle = rle_format.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
