"""Segmentations of an annotation file: storage as JSON, checks, and the extents of the masks."""

from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np
from pycocotools import mask as rle_format

from .masks import find_rle_fault, to_rle
from .records import Array

_TRIANGLE = 6  # minimum number of coordinates of a polygon
_BATCH = 4096  # segmentations that are decoded at once


class _RunLengths(msgspec.Struct, gc=False):
    size: tuple[int, int]
    counts: str | list[Annotated[int, msgspec.Meta(ge=0)]]


_Segmentation = list[list[float]] | _RunLengths | None
_decoder = msgspec.json.Decoder(_Segmentation)
_batch_decoder = msgspec.json.Decoder(list[_Segmentation])


class Shapes:
    """Properties of many segmentations.

    Attributes:
        faults: row to what is wrong with its segmentation. Other properties of these rows are not set.
        num_parts: (N,) number of polygons, or 1 for an RLE; 0 without a segmentation.
        num_short: (N,) number of polygons of fewer than three points.
        corners: (N, 4) x1, y1, x2, y2 of the mask in pixels, without short polygons; NaN without a mask.
        areas: (N,) sum of the areas of polygons, or area of an RLE.
    """

    def __init__(self, size: int) -> None:
        self.faults: dict[int, str] = {}
        self.num_parts, self.num_short = np.zeros((2, size), np.int64)
        self.corners = np.full((size, 4), np.nan)
        self.areas = np.zeros(size)


class Segmentations:
    """Segmentations of many annotations, stored as JSON and decoded on access.

    JSON takes a quarter of the memory of Python lists, in a single bytes object.

    Args:
        texts: JSON of each segmentation.
    """

    def __init__(self, texts: Sequence[Any]) -> None:
        self._offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts], dtype=np.int64)])
        self._content = b"".join(texts)

    def __getitem__(self, index: int) -> Any:
        """Returns polygons or RLE, without polygons of fewer than three points."""
        found = msgspec.json.decode(self._text(index))
        return [polygon for polygon in found if len(polygon) >= _TRIANGLE] if isinstance(found, list) else found

    def _text(self, index: int) -> bytes:
        return self._content[self._offsets[index] : self._offsets[index + 1]]

    def area(self, index: int, height: int, width: int) -> int:
        """Returns the number of pixels of a mask."""
        return int(rle_format.area(to_rle(self[index], height, width, "annotation")))

    def inspect(self, rows: Array, sizes: Array) -> Shapes:
        """Checks the segmentations of ``rows`` against the sizes (N, 2) of all rows' images, height and width."""
        shapes = Shapes(len(self._offsets) - 1)
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH].tolist()
            try:
                found = dict(
                    zip(batch, _batch_decoder.decode(b"[%b]" % b",".join(map(self._text, batch))), strict=True)
                )
            except (ValueError, RecursionError):
                found = self._decode_each(batch, shapes)
            _inspect_polygons({row: item for row, item in found.items() if isinstance(item, list)}, shapes)
            _inspect_rles({row: item for row, item in found.items() if isinstance(item, _RunLengths)}, sizes, shapes)
        return shapes

    def _decode_each(self, rows: list[int], shapes: Shapes) -> dict[int, Any]:
        found = {}
        for row in rows:
            try:
                found[row] = _decoder.decode(self._text(row))
            except (ValueError, RecursionError) as error:
                what = f"neither polygons with finite coordinates nor an RLE with integer counts ({error})"
                shapes.faults[row], shapes.num_parts[row] = what, 1
        return found


def _inspect_polygons(found: dict[int, list[list[float]]], shapes: Shapes) -> None:
    rows: list[int] = []
    polygons: list[list[float]] = []
    for row, parts in found.items():
        shapes.num_parts[row] = len(parts)
        odd = next((len(polygon) for polygon in parts if len(polygon) % 2), None)
        if odd is not None:
            shapes.faults[row] = f"a polygon with an odd number of coordinates ({odd})"
            continue
        kept = [polygon for polygon in parts if len(polygon) >= _TRIANGLE]
        shapes.num_short[row] = len(parts) - len(kept)
        rows += [row] * len(kept)
        polygons += kept
    if not polygons:
        return
    points = np.fromiter(chain.from_iterable(polygons), np.float64).reshape(-1, 2)
    lengths = np.array([len(polygon) // 2 for polygon in polygons], np.int64)
    starts: Array = np.cumsum(lengths) - lengths
    following = np.arange(1, len(points) + 1)
    following[starts + lengths - 1] = starts
    with np.errstate(over="ignore", invalid="ignore"):
        products = points[:, 0] * points[following, 1] - points[following, 0] * points[:, 1]
        areas = np.abs(np.add.reduceat(products, starts)) / 2
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    owners = np.array(rows)[firsts]
    shapes.areas[owners] = np.add.reduceat(areas, firsts)
    shapes.corners[owners, :2] = np.minimum.reduceat(points, starts[firsts])
    shapes.corners[owners, 2:] = np.maximum.reduceat(points, starts[firsts])


def _inspect_rles(found: dict[int, _RunLengths], sizes: Array, shapes: Shapes) -> None:
    rows, rles = [], []
    for row, item in found.items():
        height, width = sizes[row].tolist()
        shapes.num_parts[row] = 1
        fault = find_rle_fault(item.size, item.counts, height, width)
        if fault is not None:
            shapes.faults[row] = fault
            continue
        rows.append(row)
        rles.append(to_rle({"size": [height, width], "counts": item.counts}, height, width, "annotation"))
    if rows:
        shapes.areas[rows] = rle_format.area(rles)
        boxes = rle_format.toBbox(rles)
        shapes.corners[rows] = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
