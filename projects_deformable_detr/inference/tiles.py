"""Overlapping tiles of large images, and the merging of their detections."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from ..evaluation.tta import merge_views
from ..modeling import Detections

Tile = tuple[int, int, int, int]  # top, left, height, width in pixels
TILE_NMS_THRESHOLD = 0.5


def make_tiles(size: tuple[int, int], side: int, overlap: int) -> list[Tile]:
    """Returns tiles that cover an image of size (H, W); the last tile of a row ends at the border."""
    rows, columns = ([*range(0, length - side, side - overlap), max(0, length - side)] for length in size)
    height, width = (min(side, length) for length in size)
    return [(top, left, height, width) for top in rows for left in columns]


def select(found: Detections, rows: Tensor) -> Detections:
    """Returns the detections with indices ``rows`` (K,)."""
    masks, queries = found.masks, found.queries
    return Detections(
        found.boxes[rows],
        found.scores[rows],
        found.labels[rows],
        None if masks is None else masks[rows],
        None if queries is None else queries[rows],
    )


def merge_tiles(
    size: tuple[int, int],
    tiles: Sequence[Tile],
    parts: Sequence[Detections],
    overlap: int,
    nms_threshold: float | None,
    top_k: int,
) -> Detections:
    """Merges the detections of tiles by class-wise NMS.

    A detection that ends at an inner border of its tile and is smaller than the overlap is dropped, because the next
    tile contains all of it.

    Args:
        size: (H, W) of the image.
        tiles: positions and sizes of the tiles.
        parts: detections of each tile, in pixels of the tile.
        overlap: overlap of the tiles in pixels.
        nms_threshold: IoU above which detections of one class are duplicates; None: 0.5.
        top_k: maximum number of detections.
    """
    height, width = size
    views, masks = [], []
    for (top, left, rows, columns), found in zip(tiles, parts, strict=True):
        x1, y1, x2, y2 = found.boxes.unbind(1)
        margin_x, margin_y = 0.01 * columns, 0.01 * rows
        cut_x = ((x1 <= margin_x) & (left > 0)) | ((x2 >= columns - margin_x) & (left + columns < width))
        cut_y = ((y1 <= margin_y) & (top > 0)) | ((y2 >= rows - margin_y) & (top + rows < height))
        # Without the margins, an object could be cut in both tiles.
        is_cut = (cut_x & (x2 - x1 < overlap - 2 * margin_x)) | (cut_y & (y2 - y1 < overlap - 2 * margin_y))
        found = select(found, (~is_cut).nonzero()[:, 0])
        views.append(replace(found, boxes=found.boxes + found.boxes.new_tensor([left, top, left, top])))
        masks.append(partial(_paste, found.masks, (top, left), size))
    has_masks = all(part.masks is not None for part in parts)
    threshold = TILE_NMS_THRESHOLD if nms_threshold is None else nms_threshold
    return merge_views(views, size, threshold, top_k, masks if has_masks else None)


def _paste(masks: Tensor | None, corner: tuple[int, int], size: tuple[int, int], rows: Tensor) -> Tensor:
    """Pastes masks of a tile (len(rows), h, w) into masks of the image (len(rows), H, W)."""
    assert masks is not None
    top, left = corner
    result = masks.new_zeros(len(rows), *size)
    result[:, top : top + masks.shape[1], left : left + masks.shape[2]] = masks[rows]
    return result
