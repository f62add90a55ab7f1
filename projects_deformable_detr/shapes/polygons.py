"""Converts masks to polygons in the COCO convention: pixel (x, y) covers [x, x + 1] × [y, y + 1]."""

from typing import Any

import cv2
import numpy as np

Points = np.ndarray[Any, np.dtype[np.float64]]  # (points, 2)


def mask_to_polygons(mask: np.ndarray[Any, np.dtype[np.uint8]], scale: int = 1) -> list[list[float]]:
    """Returns the outlines of the connected components of a mask as a COCO ``segmentation``.

    A hole is joined to its outline by a cut of zero width, because the COCO format supports only unions of polygons.

    Args:
        mask: (H, W) uint8, nonzero inside.
        scale: mask pixels per image pixel.

    Returns:
        Polygons [x1, y1, x2, y2, …] in image pixels, each with at least three points.
    """
    left, top, width, height = cv2.boundingRect(mask)
    if width == 0:
        return []
    # OpenCV's contours pass through pixel centers. In a mask of twice the size, halving the coordinates and rounding up
    # gives the edges between pixels.
    doubled = np.repeat(np.repeat(mask[top : top + height, left : left + width], 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [_simplified((contour + 1) // 2, scale) for contour in contours]
    polygons = []
    for index, points in enumerate(outlines):
        if hierarchy[0, index, 3] >= 0:  # a hole
            continue
        hole = hierarchy[0, index, 2]
        while hole >= 0:
            points = _joined(points, outlines[hole])
            hole = hierarchy[0, hole, 0]
        if len(points) >= 3:
            polygons.append(np.round((points + (left, top)) / scale, 2).ravel().tolist())
    return polygons


def _simplified(contour: np.ndarray[Any, Any], scale: int) -> Points:
    """Removes points while the contour moves by at most a quarter of an image pixel."""
    return cv2.approxPolyDP(contour, 0.25 * scale, closed=True)[:, 0].astype(np.float64)


def _joined(outline: Points, hole: Points) -> Points:
    """Joins a hole to an outline at their nearest points, and returns a single closed contour."""
    distances = ((outline[:, None] - hole[None]) ** 2).sum(2)
    at, start = np.unravel_index(int(distances.argmin()), distances.shape)
    around = np.concatenate([hole[start:], hole[: start + 1]])
    return np.concatenate([outline[: at + 1], around, outline[at:]])
