"""Segmentations of an annotation file: storage as JSON, checks, boxes and areas."""

from collections.abc import Sequence
from itertools import chain, compress
from typing import Annotated, Any

import msgspec
import numpy as np
from pycocotools import mask as rle_format

from .files import paused_gc
from .masks import find_rle_fault, to_rle
from .records import Array

_MIN_COORDINATES = 6  # a polygon has at least three points
_BATCH_SIZE = 512  # number of segmentations decoded at once; larger batches do not fit into the CPU cache


class _RunLengths(msgspec.Struct, gc=False):
    size: tuple[int, int]
    counts: str | list[Annotated[int, msgspec.Meta(ge=0)]]


_Segmentation = list[list[float]] | _RunLengths | None
_decoder = msgspec.json.Decoder(_Segmentation)
_batch_decoder = msgspec.json.Decoder(list[_Segmentation])


class Shapes:
    """Properties of many segmentations.

    Attributes:
        faults: problem of each invalid segmentation, by row; the other properties of these rows are undefined.
        num_parts: (N,) number of polygons, or 1 for an RLE; 0 without a segmentation.
        num_short: (N,) number of polygons with fewer than three points.
        corners: (N, 4) x1, y1, x2, y2 of the mask in pixels, without short polygons; NaN without a mask.
        areas: (N,) sum of the areas of polygons, or area of an RLE, in pixels.
    """

    def __init__(self, size: int) -> None:
        self.faults: dict[int, str] = {}
        self.num_parts, self.num_short = np.zeros((2, size), np.int64)
        self.corners = np.full((size, 4), np.nan)
        self.areas = np.zeros(size)


class Segmentations:
    """Segmentations of many annotations, stored as JSON and decoded on access.

    A single bytes object of JSON takes a quarter of the memory of Python lists.

    Args:
        texts: JSON of each segmentation.
        order: (N,) index into ``texts`` of each annotation.
    """

    def __init__(self, texts: Sequence[Any], order: Array) -> None:
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self._starts = (np.cumsum(lengths) - lengths)[order]
        self._stops = self._starts + lengths[order]
        self._content = b"".join(texts)

    def __getitem__(self, index: int) -> Any:
        """Returns the polygons with at least three points, or the RLE, of an annotation."""
        found = msgspec.json.decode(self._content[self._starts[index] : self._stops[index]])
        return [part for part in found if len(part) >= _MIN_COORDINATES] if isinstance(found, list) else found

    def area(self, index: int, height: int, width: int) -> int:
        """Returns the number of pixels of a mask."""
        return int(rle_format.area(to_rle(self[index], height, width, "annotation")))

    def inspect(self, rows: Array, sizes: Array) -> Shapes:
        """Checks the segmentations of ``rows``; ``sizes`` (N, 2) are heights and widths of the images of all rows."""
        shapes = Shapes(len(self._starts))
        rows = rows[np.argsort(self._starts[rows])]  # in the order of the text, which is faster
        with paused_gc():
            for start in range(0, len(rows), _BATCH_SIZE):
                batch = rows[start : start + _BATCH_SIZE]
                found = self._decode(batch, shapes)
                _inspect_polygons(found, shapes)
                _inspect_rles(found, sizes, shapes)
        return shapes

    def _decode(self, rows: Array, shapes: Shapes) -> dict[int, Any]:
        spans = zip(self._starts[rows].tolist(), self._stops[rows].tolist(), strict=True)
        texts = [self._content[start:stop] for start, stop in spans]
        try:
            return dict(zip(rows.tolist(), _batch_decoder.decode(b"[%b]" % b",".join(texts)), strict=True))
        except (ValueError, RecursionError):  # decoded one by one below to find the invalid ones
            pass
        found = {}
        for row, text in zip(rows.tolist(), texts, strict=True):
            try:
                found[row] = _decoder.decode(text)
            except (ValueError, RecursionError) as error:
                what = f"neither polygons with finite coordinates nor an RLE with integer counts ({error})"
                shapes.faults[row], shapes.num_parts[row] = what, 1
        return found


def _inspect_polygons(found: dict[int, Any], shapes: Shapes) -> None:
    parts = {row: item for row, item in found.items() if isinstance(item, list)}
    counts = list(map(len, parts.values()))
    shapes.num_parts[list(parts)] = counts
    rows, polygons = np.repeat(np.array(list(parts), np.int64), counts), list(chain.from_iterable(parts.values()))
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    is_odd, is_short = lengths % 2 == 1, lengths < _MIN_COORDINATES
    for row, length in zip(rows[is_odd].tolist(), lengths[is_odd].tolist(), strict=True):
        shapes.faults[row] = f"a polygon with an odd number of coordinates ({length})"
    np.add.at(shapes.num_short, rows[is_short], 1)
    is_kept = ~(is_odd | is_short)
    rows, lengths = rows[is_kept], lengths[is_kept] // 2
    if not len(rows):
        return
    values = chain.from_iterable(compress(polygons, is_kept.tolist()))
    points = np.fromiter(values, np.float64, 2 * lengths.sum()).reshape(-1, 2)
    x, y = points.T
    stops = np.cumsum(lengths)
    starts, lasts = stops - lengths, stops - 1
    with np.errstate(over="ignore", invalid="ignore"):
        products = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0)
        products[lasts] = x[lasts] * y[starts] - x[starts] * y[lasts]
        areas = np.abs(np.add.reduceat(products, starts)) / 2
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    owners = rows[firsts]
    shapes.areas[owners] = np.add.reduceat(areas, firsts)
    shapes.corners[owners, :2] = np.minimum.reduceat(points, starts[firsts])
    shapes.corners[owners, 2:] = np.maximum.reduceat(points, starts[firsts])


def _inspect_rles(found: dict[int, Any], sizes: Array, shapes: Shapes) -> None:
    rows, rles = [], []
    for row, item in found.items():
        if not isinstance(item, _RunLengths):
            continue
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
