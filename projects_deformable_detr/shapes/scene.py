"""One synthetic scene: shapes in front of a cluttered background, and the mask of each shape's visible part.

The masks are drawn four times finer than the image. Boxes, areas and outlines all come from them, so they agree
with each other; the image is their average, so edges are smooth.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from .draws import Draws
from .textures import STUFF_NAMES, Colour, Pixels, background, bright_colour, shifted, texture

FINE = 4  # mask pixels per image pixel, each way
MIN_VISIBLE = 0.7  # of a shape's area: a shape that would leave less of itself or of another one is not placed

Mask = np.ndarray[Any, np.dtype[np.uint8]]
Outline = np.ndarray[Any, np.dtype[np.float64]]  # (points, 2): x, y


def _regular(corners: int, inner: float = 1.0) -> Outline:
    """A polygon with its corners on the unit circle; with ``inner``, every other one on a smaller circle."""
    radii = [1.0 if step % 2 == 0 or inner == 1.0 else inner for step in range(corners)]
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
# Each class: the outlines of a shape about two units wide; the second is a hole.
SHAPES: dict[str, tuple[Outline, ...]] = {
    "ellipse": (_CIRCLE,),
    "rectangle": (np.array([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),),
    "triangle": (_regular(3) * 1.1,),
    "star": (_regular(10, inner=0.45) * 1.1,),
    "ring": (_CIRCLE, _CIRCLE * 0.55),
    "cross": (_cross(0.32),),
}
CLASS_NAMES = tuple(SHAPES)
# Of the panoptic annotations; the instances' are the things among them.
CATEGORIES = tuple(
    {"id": index, "name": name, "isthing": int(index <= len(CLASS_NAMES))}
    for index, name in enumerate((*CLASS_NAMES, *STUFF_NAMES), 1)
)


@dataclass(frozen=True)
class SceneObject:
    """A shape of a scene.

    Attributes:
        label: index into `CLASS_NAMES`.
        index: its number in the scene's ``owners``.
        visible: the part of its area that can be seen, in [`MIN_VISIBLE`, 1].
    """

    label: int
    index: int
    visible: float


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        owners: (FINE * H, FINE * W) uint8: the ``index`` of the object seen there; 0 is the background.
        stuff: (H, W) uint8: what the background is there, or would be without objects: index into
            ``textures.STUFF_NAMES``.
        objects: from the back to the front.
    """

    image: Pixels
    owners: Mask
    stuff: Mask
    objects: tuple[SceneObject, ...]


@dataclass
class _Placed:
    """A shape on the canvas: its mask in a window of the fine grid, which is aligned with whole image pixels."""

    label: int
    mask: Mask
    top: int
    left: int
    area: float  # of the whole shape, the part outside the image included
    seen: float

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def draw_scene(draws: Draws, height: int, width: int, objects: tuple[int, int] = (3, 10)) -> Scene:
    """Draws a scene.

    Args:
        draws: all randomness.
        height, width: of the image, in pixels; at least 32.
        objects: the smallest and largest number of shapes to try to place; a crowded scene holds fewer.
    """
    owners = np.zeros((height * FINE, width * FINE), np.uint8)
    placed = _place(draws, owners, draws.integer(*objects))
    image, stuff = background(draws, height, width)
    for shape in placed:
        _paint(draws, image, shape)
    found = tuple(SceneObject(shape.label, i, shape.seen / shape.area) for i, shape in enumerate(placed, 1))
    return Scene(_photograph(draws, image), owners, stuff, found)


def _place(draws: Draws, owners: Mask, count: int) -> list[_Placed]:
    """Places shapes from the back to the front, mostly the large ones first, and fills ``owners`` in."""
    height, width = owners.shape
    sizes = [_size(draws, min(height, width) / FINE) for _ in range(count)]
    sizes.sort(key=lambda size: -size * draws.uniform(0.6, 1.6))
    placed: list[_Placed] = []
    for size in sizes:
        for _ in range(12):  # tries
            shape = _draw_shape(draws, size * FINE, height, width)
            if shape is not None and _fits(shape, owners, placed):
                placed.append(shape)
                owners[shape.window][shape.mask > 0] = len(placed)
                break
    return placed


def _size(draws: Draws, side: float) -> float:
    """About the width of a shape in pixels: mostly 10 to 45 % of the image's side, some tiny, few larger."""
    kind = draws.uniform()
    if kind < 0.12:
        return draws.uniform(6, 11)
    if kind < 0.16:
        return side * draws.uniform(0.45, 0.7)
    return side * draws.log_uniform(0.1, 0.45)


def _draw_shape(draws: Draws, size: float, height: int, width: int) -> _Placed | None:
    """A shape of random class, turn and stretch somewhere on the fine grid; None if too much of it is outside."""
    label = draws.integer(0, len(CLASS_NAMES) - 1)
    stretch = draws.log_uniform(0.8, 1.25)
    angle = draws.uniform(0, 2 * math.pi)
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([(cosine, sine), (-sine, cosine)])
    centre = np.array((draws.uniform(0, width), draws.uniform(0, height)))
    outlines = [
        (outline * (stretch, 1 / stretch)) @ turn * (size / 2) + centre for outline in SHAPES[CLASS_NAMES[label]]
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
    """Whether enough of every shape behind stays visible; if so, what they lose is taken off."""
    hidden = np.bincount(owners[shape.window][shape.mask > 0], minlength=len(placed) + 1)[1:]
    if any(other.seen - lost < MIN_VISIBLE * other.area for other, lost in zip(placed, hidden, strict=True) if lost):
        return False
    for other, lost in zip(placed, hidden, strict=True):
        other.seen -= float(lost)
    return True


def _paint(draws: Draws, image: Pixels, shape: _Placed) -> None:
    """Blends the whole shape over what is behind it."""
    rows, columns = (slice(part.start // FINE, part.stop // FINE) for part in shape.window)
    behind = image[rows, columns]
    height, width = behind.shape[:2]
    alpha = cv2.resize(shape.mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    colour = _contrasting(draws, behind, alpha)
    kind = draws.choice(("plain", "plain", "plain", "gradient", "stripes", "grain"))
    surface = texture(draws, kind, height, width, colour, shifted(draws, colour, 45)).astype(np.float32)
    if draws.chance(0.3) and min(height, width) > 14:
        inner = cv2.erode(shape.mask, np.ones((2 * FINE + 1,) * 2, np.uint8), borderValue=255)
        edge = 1 - cv2.resize(inner, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
        surface *= 1 - draws.uniform(0.3, 0.7) * edge
    image[rows, columns] = (behind + (surface - behind) * alpha + 0.5).astype(np.uint8)


def _contrasting(draws: Draws, behind: Pixels, alpha: np.ndarray[Any, Any]) -> Colour:
    """A colour that can be told from what is behind; black or white where chance finds none."""
    mean = (behind * alpha).sum((0, 1)) / max(float(alpha.sum()), 1e-6)
    for _ in range(10):
        colour = bright_colour(draws)
        if float(np.abs(mean - colour).sum()) > 150:
            return colour
    return (20.0, 20.0, 20.0) if float(mean.sum()) > 380 else (235.0, 235.0, 235.0)


def _photograph(draws: Draws, image: Pixels) -> Pixels:
    """A little blur and noise, as a camera has."""
    if draws.chance(0.5):
        image = np.asarray(cv2.GaussianBlur(image, (5, 5), draws.uniform(0.3, 0.9)), np.uint8)
    strength = draws.uniform(0, 22)
    noise = (draws.field(*image.shape[:2], 1) - 0.5) * strength + (draws.field(*image.shape) - 0.5) * strength / 2
    return np.clip(image + noise + 0.5, 0, 255).astype(np.uint8)
