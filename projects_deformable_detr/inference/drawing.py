"""Boxes drawn on images, and grids of images, for people to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import UserError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Told apart by most eyes, and light enough for black text; class k takes colour k modulo their number.
_COLOURS = (
    (255, 196, 0),
    (64, 196, 255),
    (255, 122, 89),
    (128, 222, 90),
    (214, 140, 255),
    (255, 138, 196),
    (0, 214, 178),
    (222, 222, 110),
    (160, 170, 255),
    (220, 176, 130),
)


def draw(
    image: Pixels,
    boxes: Any,
    labels: Any,
    scores: Any = None,
    class_names: Sequence[str] | None = None,
    *,
    masks: Any = None,
    min_side: int = 480,
) -> Pixels:
    """A copy of the image with boxes, class names and scores, and masks if there are any.

    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (K, 4) corners x1, y1, x2, y2 in pixels of ``image``; an array or a CPU tensor.
        labels: (K,) class ids.
        scores: (K,) in [0, 1], shown in percent and the best drawn last; None for ground truth.
        class_names: of class 0, 1, …; None shows the ids.
        masks: (K, H, W) bool, shown as a tint in the class's colour; None for boxes only.
        min_side: the shorter side is enlarged by a whole factor to at least this many pixels, so that lines and
            text stay thin on small images.

    Returns:
        (f H, f W, 3) uint8, f >= 1.

    Raises:
        ValueError: for an image that is not (H, W, 3) uint8, or lists of different lengths.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image of (H, W, 3) uint8 is wanted, not {image.shape} {image.dtype}")
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    classes = np.asarray(labels, dtype=np.int64).reshape(-1)
    numbers = None if scores is None else np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(corners) != len(classes) or (numbers is not None and len(numbers) != len(corners)):
        counts = f"{len(corners)} boxes, {len(classes)} labels" + (
            "" if numbers is None else f", {len(numbers)} scores"
        )
        raise ValueError(f"one label and one score a box are wanted, not {counts}")
    factor = max(1, -(-min_side // min(image.shape[:2])))
    canvas = _enlarged(image, factor)
    order = range(len(corners)) if numbers is None else np.argsort(numbers, kind="stable")
    if masks is not None:
        for index in order:
            mask = np.kron(np.asarray(masks[index], bool), np.ones((factor, factor), bool))
            canvas[mask] = (canvas[mask] // 2 + np.array(_colour(classes[index])) // 2).astype(np.uint8)
    scaled = np.rint(corners * factor).astype(int).tolist()
    for index in order:
        _draw_box(canvas, scaled[index], _colour(classes[index]))
    for index in order:  # after all boxes, which would cross them out
        label = int(classes[index])
        text = str(label) if class_names is None else class_names[label]
        if numbers is not None:
            text += f" {100 * numbers[index]:.0f}%"
        _draw_text(canvas, scaled[index], text, _colour(label))
    return canvas


def _enlarged(image: Pixels, factor: int) -> Pixels:
    if factor == 1:
        return image.copy()
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8)


def _colour(label: int) -> tuple[int, int, int]:
    return _COLOURS[label % len(_COLOURS)]


def _line_width(canvas: Pixels) -> int:
    return max(1, round(min(canvas.shape[:2]) / 400))


def _draw_box(canvas: Pixels, box: list[int], colour: tuple[int, int, int]) -> None:
    """A coloured line on a dark one, to be seen on any background."""
    unit = _line_width(canvas)
    cv2.rectangle(canvas, box[:2], box[2:], (20, 20, 20), 3 * unit)
    cv2.rectangle(canvas, box[:2], box[2:], colour, unit)


def _draw_text(canvas: Pixels, box: list[int], text: str, colour: tuple[int, int, int]) -> None:
    """Text on a plate above the box, or in its upper corner where there is no room above."""
    height, width = canvas.shape[:2]
    unit, (left, top) = _line_width(canvas), box[:2]
    scale = 0.42 * unit
    (text_width, text_height), below = cv2.getTextSize(text, _FONT, scale, unit)
    plate_width, plate_height = text_width + 4 * unit, text_height + below + 2 * unit
    x = min(max(0, left - unit), max(0, width - plate_width))
    y = top - unit - plate_height
    if y < 0:
        y = min(max(0, top), max(0, height - plate_height))
    cv2.rectangle(canvas, (x, y), (x + plate_width, y + plate_height), colour, cv2.FILLED)
    cv2.putText(canvas, text, (x + 2 * unit, y + text_height + unit), _FONT, scale, (0, 0, 0), unit, cv2.LINE_AA)


def grid(images: Sequence[Pixels], *, columns: int = 4, gap: int = 8) -> Pixels:
    """Images side by side, row by row, on white; cells have the size of the largest, smaller images are centred.

    Args:
        images: (H, W, 3) uint8 each, at least one.
        columns: images in a row.
        gap: pixels between and around them.

    Raises:
        ValueError: without images, or with less than one column.
    """
    if not images or columns < 1:
        raise ValueError(f"a grid needs images and columns, not {len(images)} images in {columns} columns")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell_height, cell_width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    sheet = np.full((rows * (cell_height + gap) + gap, columns * (cell_width + gap) + gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top = gap + row * (cell_height + gap) + (cell_height - image.shape[0]) // 2
        left = gap + column * (cell_width + gap) + (cell_width - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def save(path: str | Path, image: Pixels) -> None:
    """Writes an RGB image; its folder is made where it is missing.

    Args:
        path: its ending (.png, .jpg, …) says the format.

    Raises:
        UserError: if the ending is unknown, or the file cannot be written.
    """
    path = Path(path)
    try:
        fine, encoded = cv2.imencode(path.suffix or ".", np.ascontiguousarray(image[:, :, ::-1]))
    except cv2.error:
        fine = False
    if not fine:
        raise UserError(f"{path}: no image format ends in {path.suffix!r}; use .png or .jpg")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file") from error


def save_grid(path: str | Path, images: Sequence[Pixels], *, columns: int = 4, gap: int = 8) -> None:
    """`grid`, written by `save`."""
    save(path, grid(images, columns=columns, gap=gap))
