"""Instance masks of COCO's annotations: polygons, run lengths compressed or not, as bitmaps and back."""

from typing import Any

import numpy as np
from pycocotools import mask as rle_format

from .problems import DatasetError

Rle = dict[str, Any]


def to_rle(segmentation: Any, height: int, width: int, where: str) -> Rle:
    """Any of COCO's segmentations as compressed run lengths of an image of ``height`` x ``width`` pixels.

    Args:
        segmentation: a list of polygons [x1, y1, x2, y2, …] in pixels, whose union is meant; or a dict with ``size``
            and ``counts``, a text or a list of numbers.
        where: the annotation, for the error.

    Raises:
        DatasetError: if it is none of these, or of another size.
    """
    try:
        if isinstance(segmentation, list):
            return dict(rle_format.merge(rle_format.frPyObjects(segmentation, height, width)))
        if list(segmentation["size"]) == [height, width]:
            if isinstance(segmentation["counts"], list):
                return dict(rle_format.frPyObjects(segmentation, height, width))
            return dict(segmentation)
    # What pycocotools raises for other things: plain Exception, too.
    except Exception as error:
        raise DatasetError(
            f"{where} has an unusable segmentation ({error}): correct or remove the annotation"
        ) from error
    raise DatasetError(
        f"{where} has a segmentation of {segmentation['size'][0]} x {segmentation['size'][1]} pixels (height x width), "
        f"but its image is {height} x {width}: correct the annotation"
    )


def decode(rles: list[Rle], height: int, width: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(T, height, width) bool masks."""
    if not rles:
        return np.zeros((0, height, width), bool)
    return np.ascontiguousarray(rle_format.decode(rles).transpose(2, 0, 1)).astype(bool)


def encode(mask: np.ndarray[Any, Any]) -> Rle:
    """A mask (H, W) as run lengths that JSON can hold."""
    rle = rle_format.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def compact(segmentation: Any) -> Any:
    """A segmentation in less memory: polygons as arrays of numbers instead of lists of objects."""
    if isinstance(segmentation, list):
        return [np.asarray(polygon, np.float64) for polygon in segmentation]
    return segmentation
