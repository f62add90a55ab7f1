"""Rows of the corpus: segmentations."""

from dataclasses import replace
from typing import Any

from corpus_annotations import AP_WITHOUT_FIRST, ONE, plain
from corpus_inputs import HEIGHT, WIDTH, accept, entries, error, options, skip, together, warn

KEYS = ("MODEL.MASK_ON", "True", "MODEL.DETR.HIDDEN_DIM", "128")
UNUSABLE = r"invalid segmentations \(1\)"


def rle(height: int, width: int, counts: Any) -> dict[str, Any]:
    return {"size": [height, width], "counts": counts}


def box_rle(item: dict[str, Any]) -> dict[str, Any]:
    """Returns uncompressed run lengths of a box."""
    x, y, w, h = item["bbox"]
    counts = [x * HEIGHT + y, h]
    for _ in range(w - 1):
        counts += [HEIGHT - h, h]
    return rle(HEIGHT, WIDTH, [*counts, WIDTH * HEIGHT - sum(counts)])


def box_rle_string(item: dict[str, Any]) -> dict[str, Any]:
    from pycocotools import mask

    found = mask.frPyObjects(box_rle(item), HEIGHT, WIDTH)
    return rle(HEIGHT, WIDTH, found["counts"].decode())


def first(segmentation: Any) -> Any:
    """Returns a function that replaces the segmentation of the first annotation."""
    return entries("annotations", 0, segmentation=segmentation)


OFF = [[500, 500, 520, 500, 520, 520]]
ROWS = [
    accept("polygons", lambda _: None, plain),
    accept("run lengths as lists", entries("annotations", segmentation=box_rle), plain),
    accept("run lengths as strings", entries("annotations", segmentation=box_rle_string), plain),
    error("no segmentation", r"annotations without a segmentation \(1\)", first(...)),
    error("empty segmentation", r"annotations without a segmentation \(1\)", first([])),
    error("polygon of two points", r"polygons with fewer than three points \(1\)", first([[1, 1, 9, 9]])),
    skip(
        "polygon of two points, dropped",
        r"masks without a polygon of three or more points \(1\).*dropped",
        together(first([[1, 1, 9, 9]]), options("DATASETS.INVALID_BOXES", "drop")),
        ONE,
        AP_WITHOUT_FIRST,
    ),
    error(
        "polygon with an odd number of coordinates",
        r"invalid segmentations \(1\).*odd number of coordinates \(7\)",
        first([[1, 1, 9, 1, 9, 9, 1]]),
    ),
    error("polygon with NaN", UNUSABLE, first([[1, 1, float("nan"), 1, 9, 9]])),
    error("segmentation that is text", UNUSABLE, first("mask")),
    error(
        "polygons in [0, 1]",
        r"polygons in normalized coordinates \(10\)",
        entries("annotations", segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]),
    ),
    error("polygon off its image", r"masks without a pixel inside their image \(1\)", first(OFF)),
    skip(
        "polygon off its image, dropped",
        r"masks without a pixel inside their image \(1\).*dropped",
        together(first(OFF), options("DATASETS.INVALID_BOXES", "drop")),
        ONE,
        AP_WITHOUT_FIRST,
    ),
    warn(
        "mask elsewhere than its box",
        r"boxes that do not match their masks \(1\)",
        first([[60, 40, 79, 40, 79, 60]]),
        plain,
    ),
    error(
        "masks elsewhere than their boxes",
        r"boxes that do not match their masks \(10\)",
        entries("annotations", segmentation=[[60, 40, 79, 40, 79, 60]]),
    ),
    error(
        "huge polygon",
        r"masks with coordinates beyond 100 times the size of their image \(1\)",
        first([[0, 0, 99999, 0, 99999, 99999]]),
    ),
    error("run lengths of another image", UNUSABLE, first(rle(10, 10, [50, 50]))),
    error("truncated run lengths", UNUSABLE, first(rle(HEIGHT, WIDTH, [50, 50]))),
    error("negative run lengths", UNUSABLE, first(rle(HEIGHT, WIDTH, [-50, HEIGHT * WIDTH + 50]))),
    error("garbled run-length string", UNUSABLE, first(rle(HEIGHT, WIDTH, "zzz\u00e9"))),
    error("run-length string that is too long", UNUSABLE, first(rle(HEIGHT, WIDTH, "PPYo1" * 50))),
]
SEGMENTATIONS = [replace(case, name=f"masks: {case.name}", make=together(case.make, options(*KEYS))) for case in ROWS]
