"""Draws boxes, masks and class names on images, and arranges images in grids."""

import contextlib
import importlib.util
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch.nn import functional as F
from torchvision.utils import make_grid

from ..errors import UserError
from ..modeling import PanopticSegmentation
from .images import ImageError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

# Distinguishable and light enough for black text. Class k has color k modulo the number of colors.
PALETTE = ("#ffc400", "#40c4ff", "#ff7a59", "#80de5a", "#d68cff", "#ff8ac4", "#00d6b2", "#dede6e", "#a0aaff", "#dcb082")
_OUTLINE = "#141414"
_MASK_OPACITY = 0.5
_MAX_ENLARGED = 4096  # longer side in pixels
_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf")


def draw(
    image: Pixels,
    boxes: Any,
    labels: Any,
    scores: Any = None,
    class_names: Sequence[str] | None = None,
    *,
    masks: Any = None,
    texts: Sequence[str] | None = None,
    min_side: int = 480,
) -> Pixels:
    """Draws boxes with class names and scores, and masks if given, on a copy of the image.

    Lines and texts scale with the image.

    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (K, 4) corners x1, y1, x2, y2 in pixels; an array or a CPU tensor.
        labels: (K,) class ids.
        scores: (K,) in [0, 1], written in percent; higher scores are drawn over lower ones. None for ground truth.
        class_names: class names, indexed by class id; None: the ids are written.
        masks: (K, H, W) bool, drawn as a tint of the class's color.
        texts: K texts that replace class names and scores.
        min_side: images whose shorter side is below this value are enlarged by an integer factor, so that texts and
            lines are finer, as far as the longer side is at most 4096.

    Returns:
        (f H, f W, 3) uint8, where f >= 1 is the factor.

    Raises:
        ValueError: if the image is not (H, W, 3) uint8, or boxes, labels and scores differ in length.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    corners = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    classes = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
    ranking = torch.as_tensor(classes if scores is None else scores, dtype=torch.float64).reshape(-1)
    if not len(corners) == len(classes) == len(ranking):
        raise ValueError(
            f"boxes, labels and scores must have the same length, got {len(corners)} boxes, {len(classes)} labels, "
            f"{len(ranking)} scores"
        )
    order = torch.arange(len(corners)) if scores is None else ranking.argsort(stable=True)
    factor = _choose_factor(image, min_side)
    ids: list[int] = classes[order].tolist()
    colors = [PALETTE[label % len(PALETTE)] for label in ids]
    tinted = image.copy()
    if masks is not None:
        for index, color in zip(order.tolist(), colors, strict=True):
            _tint(tinted, np.asarray(masks[index], dtype=bool), color)
    written = [str(label) if class_names is None else class_names[label] for label in ids]
    if texts is not None:
        written = [texts[index] for index in order.tolist()]
    elif scores is not None:
        written = [f"{text} {100 * score:.0f}%" for text, score in zip(written, ranking[order].tolist(), strict=True)]
    picture = Image.fromarray(_enlarge(tinted, factor))
    rectangles = (corners[order] * factor).round().int().tolist()
    draw_boxes(picture, rectangles, colors)
    draw_texts(picture, rectangles, written, colors)
    return np.asarray(picture)


def draw_segments(
    image: Pixels,
    segmentation: PanopticSegmentation,
    class_names: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    min_side: int = 480,
) -> Pixels:
    """Draws the segments of a panoptic segmentation as tints with class names; things of one class differ in color.

    Ids without a segment are not drawn. See `draw` for the arguments and the result.
    """
    factor = _choose_factor(image, min_side)
    segments, tinted = segmentation.segments, image.copy()
    ids = segmentation.ids.numpy()
    ids = np.where(np.isin(ids, [item["id"] for item in segments]), ids, 0)
    places, colors = [], []
    for item in segments:
        mask = ids == item["id"]
        color = PALETTE[(item["category_id"] + (item["id"] if item["isthing"] else 0)) % len(PALETTE)]
        _tint(tinted, mask, color)
        rows, columns = np.nonzero(mask)
        middle = int(np.abs(rows - rows.mean()).argmin())  # a pixel of the segment near its center
        x, y = int(np.median(columns[rows == rows[middle]])) * factor, int(rows[middle]) * factor
        places.append((x, y, x, y))
        colors.append(color)
    edges = np.zeros(ids.shape, bool)
    edges[1:] |= ids[1:] != ids[:-1]
    edges[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    tinted[edges] = ImageColor.getrgb(_OUTLINE)
    picture = Image.fromarray(_enlarge(tinted, factor))
    draw_texts(picture, places, texts or [class_names[item["category_id"]] for item in segments], colors)
    return np.asarray(picture)


def _choose_factor(image: Pixels, min_side: int) -> int:
    """Returns the factor by which an image is enlarged, see `draw`."""
    short, long = sorted(image.shape[:2])
    return max(1, min(-(-min_side // short), _MAX_ENLARGED // long))


def _enlarge(image: Pixels, factor: int) -> Pixels:
    """Enlarges an image (H, W, 3) by repeating pixels."""
    return image if factor == 1 else image.repeat(factor, axis=0).repeat(factor, axis=1)


def _tint(image: Pixels, mask: np.ndarray[Any, np.dtype[np.bool_]], color: str) -> None:
    """Blends a color into the pixels of a mask (H, W), in place."""
    tint = np.array(ImageColor.getrgb(color)) * _MASK_OPACITY
    image[mask] = (image[mask] * (1 - _MASK_OPACITY) + tint).round().astype(np.uint8)


def _scale(width: int, height: int) -> float:
    """Returns the scale of lines and texts, at least 1."""
    return max(1.0, min(height, width) / 500)


def draw_boxes(picture: Image.Image, boxes: Sequence[Sequence[int]], colors: Sequence[str]) -> None:
    """Draws boxes in the colors of their classes with dark edges, which are visible on any background."""
    unit, pen = round(_scale(*picture.size)), ImageDraw.Draw(picture)
    for (left, top, right, bottom), color in zip(boxes, colors, strict=True):
        for distance, width, fill in ((2 * unit, 5 * unit, _OUTLINE), (unit, 3 * unit, color)):
            corners = left - distance, top - distance, right + distance, bottom + distance
            pen.rectangle(corners, outline=fill, width=width)


def draw_texts(
    picture: Image.Image, boxes: Sequence[Sequence[int]], texts: Sequence[str], colors: Sequence[str]
) -> None:
    """Writes texts on filled rectangles above, below or inside boxes (x1, y1, x2, y2)."""
    scale = _scale(*picture.size)
    unit, pen = round(scale), ImageDraw.Draw(picture)
    font, texts = _choose_font(round(13 * scale), texts)
    height = int(pen.textbbox((0, 0), "Ag", font)[3]) + unit
    widths = [round(pen.textlength(text, font)) + 4 * unit for text in texts]
    corners = _place_texts(boxes, widths, height, unit, picture.size)
    for (x, y), width, text, color in zip(corners, widths, texts, colors, strict=True):
        pen.rectangle((x, y, x + width, y + height), fill=color, outline=_OUTLINE, width=unit)
        pen.text((x + 2 * unit, y), text, fill="black", font=font)


def _place_texts(
    boxes: Sequence[Sequence[int]], widths: Sequence[int], height: int, unit: int, size: tuple[int, int]
) -> list[tuple[int, int]]:
    """Returns the upper left corner of each text, where it covers the least of other texts.

    Texts of higher-scoring boxes, which come last, are placed first. Places above a box are preferred.
    """
    used = np.zeros((0, 4), dtype=np.int64)
    corners: list[tuple[int, int]] = []
    for (left, top, right, bottom), width in zip(reversed(boxes), reversed(widths), strict=True):
        xs = left - unit, right + unit - width
        ys = top - unit - height, bottom + unit, top, bottom - height
        limit = max(0, size[1] - height)
        # A place beyond the upper or lower border is replaced by one inside the box.
        places = [(x, y) for y in ys for x in xs if 0 <= y <= limit] or [(xs[0], min(max(0, top), limit))]
        candidates = np.array([(min(max(0, x), max(0, size[0] - width)), y) for x, y in places])
        overlaps = np.minimum(candidates[:, None] + (width, height), used[:, 2:]) - np.maximum(
            candidates[:, None], used[:, :2]
        )
        covered = overlaps.clip(0).prod(axis=2).sum(axis=1)
        x, y = candidates[covered.argmin()].tolist()
        used = np.vstack([used, (x, y, x + width, y + height)])
        corners.append((x, y))
    return corners[::-1]


def _choose_font(size: int, texts: Sequence[str]) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, list[str]]:
    """Returns a font, and the texts without characters that the font lacks.

    Pillow's built-in font contains ASCII characters only.
    """
    fonts = list(_FONTS)
    if matplotlib := importlib.util.find_spec("matplotlib"):
        fonts += [str(Path(str(matplotlib.origin)).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")]
    if not all(text.isascii() for text in texts):
        for name in fonts:
            with contextlib.suppress(OSError):
                return ImageFont.truetype(name, size), list(texts)
    plain = (unicodedata.normalize("NFKD", text).replace("ß", "ss") for text in texts)
    return ImageFont.load_default(size), [text.encode("ascii", "ignore").decode() for text in plain]


def grid(images: Sequence[Pixels], *, columns: int = 4, gap: int = 8) -> Pixels:
    """Arranges images in rows on a white background. Cells have the size of the largest image; smaller images are
    centered.

    Args:
        images: (H, W, 3) uint8 each, at least one.
        columns: number of images in a row.
        gap: pixels between and around images.

    Raises:
        ValueError: if there are no images, or fewer than one column.
    """
    if not images or columns < 1:
        raise ValueError(f"images and columns must be at least 1, got {len(images)} images and {columns} columns")
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    cells = []
    for image in images:
        down, right = height - image.shape[0], width - image.shape[1]
        margins = (right // 2, right - right // 2, down // 2, down - down // 2)
        cells.append(F.pad(torch.tensor(image).permute(2, 0, 1), margins, value=255))
    return make_grid(cells, nrow=columns, padding=gap, pad_value=255).permute(1, 2, 0).numpy()


def save(path: str | Path, image: Pixels) -> None:
    """Writes an RGB image in the format given by the suffix, and creates its folder if needed.

    Raises:
        ImageError: if the format cannot represent the image; JPEG is limited to 65500 pixels per side.
        UserError: if the suffix is unknown or the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=92)
    except ValueError as error:
        raise UserError(f"{path}: unknown image suffix {path.suffix!r}; use .png or .jpg") from error
    except OSError as error:
        if error.errno is None:  # raised by Pillow's encoder, not by the file system
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            raise ImageError(f"cannot write {path}: {size} ({error}); cut the image into tiles") from error
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file") from error
