"""Polygons of masks, in COCO's convention: pixel (x, y) covers [x, x + 1] × [y, y + 1]."""

from typing import Any

import cv2
import numpy as np

Points = np.ndarray[Any, np.dtype[np.float64]]  # (points, 2)


def mask_to_polygons(mask: np.ndarray[Any, np.dtype[np.uint8]], scale: int = 1) -> list[list[float]]:
    """The outlines of a mask's parts, as COCO's ``segmentation``.

    A hole is joined to its outline by a cut of no width, since COCO's format unites the polygons of an object and
    so cannot subtract one.

    Args:
        mask: (H, W) uint8, not 0 inside.
        scale: mask pixels per image pixel.

    Returns:
        polygons [x1, y1, x2, y2, …] in image pixels, each of at least three points.
    """
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for index, contour in enumerate(contours):
        if hierarchy[0, index, 3] >= 0 or len(contour) < 3:  # a hole, or a line of pixels
            continue
        points = _simplified(contour, scale)
        hole = hierarchy[0, index, 2]
        while hole >= 0:
            if len(contours[hole]) >= 3:
                points = _joined(points, _simplified(contours[hole], scale))
            hole = hierarchy[0, hole, 0]
        if len(points) >= 3:
            polygons.append(np.round((points + 0.5) / scale, 2).ravel().tolist())
    return polygons


def _simplified(contour: np.ndarray[Any, Any], scale: int) -> Points:
    """Fewer points, at most a fifth of an image pixel off."""
    return cv2.approxPolyDP(contour, 0.2 * scale, closed=True)[:, 0].astype(np.float64)


def _joined(outline: Points, hole: Points) -> Points:
    """One closed line: the outline up to its point nearest to the hole, around the hole, and on."""
    distances = ((outline[:, None] - hole[None]) ** 2).sum(2)
    at, start = np.unravel_index(int(distances.argmin()), distances.shape)
    around = np.concatenate([hole[start:], hole[: start + 1]])
    return np.concatenate([outline[: at + 1], around, outline[at:]])
