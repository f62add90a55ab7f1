"""Synthetic scenes: shapes in front of a cluttered background, and masks of their visible parts.

Masks have four times the resolution of the image. Boxes, areas and polygons are computed from them and therefore agree;
the image averages them, so that edges are smooth.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from .random import Random
from .textures import STUFF_NAMES, Color, Pixels, background, bright_color, shifted, texture

FINE = 4  # mask pixels per image pixel, in each direction
MIN_VISIBLE = 0.7  # minimum visible fraction of a shape's area

Mask = np.ndarray[Any, np.dtype[np.uint8]]
Outline = np.ndarray[Any, np.dtype[np.float64]]  # (points, 2): x, y


def _regular(corners: int, inner: float = 1.0) -> Outline:
    """Returns a polygon with corners alternately on the unit circle and on a circle of radius ``inner``."""
    radii = [1.0 if step % 2 == 0 else inner for step in range(corners)]
    angles = [2 * math.pi * step / corners - math.pi / 2 for step in range(corners)]
    return np.array([(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)])


def _cross(arm: float) -> Outline:
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return np.array(points)


_CIRCLE = _regular(64)
# Outlines of each class, about two units wide; the second outline is a hole.
SHAPES: dict[str, tuple[Outline, ...]] = {
    "ellipse": (_CIRCLE,),
    "rectangle": (np.array([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),),
    "triangle": (_regular(3) * 1.1,),
    "star": (_regular(10, inner=0.45) * 1.1,),
    "ring": (_CIRCLE, _CIRCLE * 0.55),
    "cross": (_cross(0.32),),
}
CLASS_NAMES = tuple(SHAPES)
# Categories of the panoptic annotations; things are the categories of the instance annotations.
CATEGORIES = tuple(
    {"id": index, "name": name, "isthing": int(index <= len(CLASS_NAMES))}
    for index, name in enumerate((*CLASS_NAMES, *STUFF_NAMES), 1)
)


@dataclass(frozen=True)
class SceneObject:
    """Shape in a scene.

    Attributes:
        label: index into `CLASS_NAMES`.
        index: value of its pixels in ``Scene.owners``.
        visible: visible fraction of its area, in [`MIN_VISIBLE`, 1].
    """

    label: int
    index: int
    visible: float


@dataclass(frozen=True)
class Scene:
    """Image and its objects.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        owners: (FINE * H, FINE * W) uint8, ``index`` of the visible object; 0 is the background.
        stuff: (H, W) uint8, index into ``textures.STUFF_NAMES`` of the background, also behind objects.
        objects: shapes, back to front.
    """

    image: Pixels
    owners: Mask
    stuff: Mask
    objects: tuple[SceneObject, ...]


@dataclass
class _Placed:
    """Placed shape, with its mask in a window of the high-resolution grid, aligned with image pixels."""

    label: int
    mask: Mask
    top: int
    left: int
    area: float  # area of the whole shape, including the part outside the image
    seen: float

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def draw_scene(random: Random, height: int, width: int) -> Scene:
    """Draws a scene of 3 to 10 shapes, fewer if they do not fit; height and width are at least 32 pixels."""
    owners = np.zeros((height * FINE, width * FINE), np.uint8)
    placed = _place(random, owners, random.integer(3, 10))
    image, stuff = background(random, height, width)
    for shape in placed:
        _paint(random, image, shape)
    found = tuple(SceneObject(shape.label, i, shape.seen / shape.area) for i, shape in enumerate(placed, 1))
    return Scene(_photograph(random, image), owners, stuff, found)


def _place(random: Random, owners: Mask, count: int) -> list[_Placed]:
    """Places shapes back to front, mostly in order of decreasing size, and writes ``owners``."""
    height, width = owners.shape
    sizes = [_size(random, min(height, width) / FINE) for _ in range(count)]
    sizes.sort(key=lambda size: -size * random.uniform(0.6, 1.6))
    placed: list[_Placed] = []
    for size in sizes:
        for _ in range(12):  # attempts
            shape = _draw_shape(random, size * FINE, height, width)
            if shape is not None and _fits(shape, owners, placed):
                placed.append(shape)
                owners[shape.window][shape.mask > 0] = len(placed)
                break
    return placed


def _size(random: Random, side: float) -> float:
    """Returns the approximate width of a shape in pixels, mostly 10 to 45% of the side of the image."""
    kind = random.uniform()
    if kind < 0.12:
        return random.uniform(6, 11)
    if kind < 0.16:
        return side * random.uniform(0.45, 0.7)
    return side * random.log_uniform(0.1, 0.45)


def _draw_shape(random: Random, size: float, height: int, width: int) -> _Placed | None:
    """Returns a random shape, or None if too large a part is outside the image."""
    label = random.integer(0, len(CLASS_NAMES) - 1)
    stretch = random.log_uniform(0.8, 1.25)
    angle = random.uniform(0, 2 * math.pi)
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([(cosine, sine), (-sine, cosine)])
    center = np.array((random.uniform(0, width), random.uniform(0, height)))
    outlines = [
        (outline * (stretch, 1 / stretch)) @ turn * (size / 2) + center for outline in SHAPES[CLASS_NAMES[label]]
    ]
    low = np.floor(outlines[0].min(0) / FINE).astype(int)
    high = np.ceil(outlines[0].max(0) / FINE).astype(int) + 1
    left, top = (max(0, int(value)) * FINE for value in low)
    right, bottom = (int(value) * FINE for value in np.minimum(high, (width // FINE, height // FINE)))
    mask = np.zeros((bottom - top, right - left), np.uint8)
    points = [np.rint((outline - (left, top) - 0.5) * 16).astype(np.int32) for outline in outlines]
    cv2.fillPoly(mask, points, 255, shift=4)
    area = _area(outlines[0]) - sum(_area(hole) for hole in outlines[1:])
    seen = float(np.count_nonzero(mask))
    if seen < MIN_VISIBLE * area:
        return None
    return _Placed(label, mask, top, left, max(area, seen), seen)


def _area(outline: Outline) -> float:
    x, y = outline.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


def _fits(shape: _Placed, owners: Mask, placed: list[_Placed]) -> bool:
    """Checks that a large enough part of all other shapes remains visible, and if so, updates their visible areas."""
    hidden = np.bincount(owners[shape.window][shape.mask > 0], minlength=len(placed) + 1)[1:]
    if any(other.seen - lost < MIN_VISIBLE * other.area for other, lost in zip(placed, hidden, strict=True) if lost):
        return False
    for other, lost in zip(placed, hidden, strict=True):
        other.seen -= float(lost)
    return True


def _paint(random: Random, image: Pixels, shape: _Placed) -> None:
    """Blends a shape over the image."""
    rows, columns = (slice(part.start // FINE, part.stop // FINE) for part in shape.window)
    behind = image[rows, columns]
    height, width = behind.shape[:2]
    alpha = cv2.resize(shape.mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    color = _contrasting(random, behind, alpha)
    kind = random.choice(("plain", "plain", "plain", "gradient", "stripes", "grain"))
    surface = texture(random, kind, height, width, color, shifted(random, color, 45)).astype(np.float32)
    if random.chance(0.3) and min(height, width) > 14:
        inner = cv2.erode(shape.mask, np.ones((2 * FINE + 1,) * 2, np.uint8), borderValue=255)
        edge = 1 - cv2.resize(inner, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
        surface *= 1 - random.uniform(0.3, 0.7) * edge
    image[rows, columns] = (behind + (surface - behind) * alpha + 0.5).astype(np.uint8)


def _contrasting(random: Random, behind: Pixels, alpha: np.ndarray[Any, Any]) -> Color:
    """Returns a random color that differs from the background, or near-black or near-white after ten attempts."""
    mean = (behind * alpha).sum((0, 1)) / max(float(alpha.sum()), 1e-6)
    for _ in range(10):
        color = bright_color(random)
        if float(np.abs(mean - color).sum()) > 150:
            return color
    return (20.0, 20.0, 20.0) if float(mean.sum()) > 380 else (235.0, 235.0, 235.0)


def _photograph(random: Random, image: Pixels) -> Pixels:
    """Adds blur and noise."""
    if random.chance(0.5):
        image = np.asarray(cv2.GaussianBlur(image, (5, 5), random.uniform(0.3, 0.9)), np.uint8)
    strength = random.uniform(0, 22)
    noise = (random.field(*image.shape[:2], 1) - 0.5) * strength + (random.field(*image.shape) - 0.5) * strength / 2
    return np.clip(image + noise + 0.5, 0, 255).astype(np.uint8)
