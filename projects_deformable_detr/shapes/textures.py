"""Textures of synthetic scenes, and clutter that resembles none of the classes."""

import colorsys
import math
from typing import Any

import cv2
import numpy as np

from .random import Field, Random

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Color = tuple[float, float, float]  # RGB, 0 … 255


def dull_color(random: Random) -> Color:
    """Returns a background color of low saturation, with any hue and brightness."""
    return _rgb(random.uniform(), random.uniform(0.0, 0.45), random.uniform(0.2, 0.95))


def bright_color(random: Random) -> Color:
    """Returns an object color that is mostly saturated and not dark, with any hue."""
    return _rgb(random.uniform(), random.uniform(0.35, 1.0), random.uniform(0.45, 1.0))


def shifted(random: Random, color: Color, amount: float) -> Color:
    """Changes every channel of a color by at most ``amount``."""
    red, green, blue = (min(255.0, max(0.0, c + random.uniform(-amount, amount))) for c in color)
    return red, green, blue


def _rgb(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return 255 * red, 255 * green, 255 * blue


def texture(random: Random, kind: str, height: int, width: int, first: Color, second: Color) -> Pixels:
    """Returns a texture (height, width, 3) of a kind in `_KINDS` that varies between two colors."""
    weights = _KINDS[kind](random, height, width)[..., None]
    start, end = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return (start + (end - start) * weights + 0.5).astype(np.uint8)


def _along(random: Random, height: int, width: int) -> Field:
    """Returns the coordinate of each pixel along a random direction, in pixels."""
    angle = random.uniform(0, 2 * math.pi)
    rows = np.arange(height, dtype=np.float32)[:, None] - height / 2
    columns = np.arange(width, dtype=np.float32)[None] - width / 2
    return rows * np.float32(math.sin(angle)) + columns * np.float32(math.cos(angle))


def _plain(random: Random, height: int, width: int) -> Field:
    return np.zeros((height, width), np.float32)


def _gradient(random: Random, height: int, width: int) -> Field:
    return np.asarray(np.clip(_along(random, height, width) / max(height, width) + 0.5, 0, 1))


def _clouds(random: Random, height: int, width: int) -> Field:
    """Returns value noise: a sum of random grids whose strength decreases with their resolution."""
    total = np.zeros((height, width), np.float32)
    strength, cells = 0.5, random.integer(2, 4)
    for _ in range(3):
        grid = random.field(cells + 1, cells + 1)
        total += strength * cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
        strength, cells = strength / 2, cells * 2
    return np.asarray(np.clip(total * 1.6 - 0.2, 0, 1))


def _stripes(random: Random, height: int, width: int) -> Field:
    """Returns soft stripes from a triangle wave, because the last bit of sines depends on the machine."""
    period = random.uniform(5, 28)
    phase = _along(random, height, width) / period + random.uniform()
    return np.asarray(np.clip((np.abs(phase - np.floor(phase) - 0.5) - 0.25) * 6 + 0.5, 0, 1))


def _checks(random: Random, height: int, width: int) -> Field:
    side = random.uniform(6, 24)
    angle = random.uniform(0, math.pi)
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None]
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    parity = np.floor((rows * cosine + columns * sine) / side) + np.floor((columns * cosine - rows * sine) / side)
    return np.asarray(np.mod(parity, 2), np.float32)


def _grain(random: Random, height: int, width: int) -> Field:
    return random.field(height, width)


_KINDS = {
    "plain": _plain,
    "gradient": _gradient,
    "clouds": _clouds,
    "stripes": _stripes,
    "checks": _checks,
    "grain": _grain,
}

# Kind of stuff of each background texture.
_STUFF = {"gradient": "smooth", "clouds": "smooth", "stripes": "pattern", "checks": "pattern", "grain": "grain"}
STUFF_NAMES = ("smooth", "pattern", "grain")


def background(random: Random, height: int, width: int) -> tuple[Pixels, Pixels]:
    """Draws one textured surface, or two with a straight border, and clutter.

    Returns:
        Pixels (height, width, 3), and indices (height, width) into `STUFF_NAMES`; clutter belongs to its surface.
    """
    pixels, kind = _ground(random, height, width)
    stuff = np.full((height, width), STUFF_NAMES.index(_STUFF[kind]), np.uint8)
    if random.chance(0.4):
        beyond = _along(random, height, width) > random.uniform(-0.3, 0.3) * min(height, width)
        other, kind = _ground(random, height, width)
        pixels = np.where(beyond[..., None], other, pixels)
        stuff[beyond] = STUFF_NAMES.index(_STUFF[kind])
    pixels = np.ascontiguousarray(pixels)
    for _ in range(random.integer(1, 6)):
        random.choice((_lines, _arc, _blob, _scribble, _specks))(random, pixels)
    return pixels, stuff


def _ground(random: Random, height: int, width: int) -> tuple[Pixels, str]:
    color = dull_color(random)
    kind = random.choice(("gradient", "clouds", "clouds", "stripes", "checks", "grain"))
    contrast = 70 if kind in ("gradient", "clouds") else 28  # sharp patterns camouflage objects more than soft ones
    return texture(random, kind, height, width, color, shifted(random, color, contrast)), kind


def _clutter_color(random: Random) -> Color:
    return bright_color(random) if random.chance(0.5) else dull_color(random)


def _point(random: Random, pixels: Pixels) -> tuple[int, int]:
    return random.integer(0, pixels.shape[1] - 1), random.integer(0, pixels.shape[0] - 1)


def _lines(random: Random, pixels: Pixels) -> None:
    color, thickness = _clutter_color(random), random.integer(1, 3)
    for _ in range(random.integer(1, 3)):
        cv2.line(pixels, _point(random, pixels), _point(random, pixels), color, thickness, cv2.LINE_AA)


def _arc(random: Random, pixels: Pixels) -> None:
    """Draws at most 200 degrees of an ellipse, so that it is not a ring."""
    axes = (random.integer(5, 40), random.integer(5, 40))
    start = random.uniform(0, 360)
    end = start + random.uniform(60, 200)
    color, thickness = _clutter_color(random), random.integer(1, 3)
    cv2.ellipse(pixels, _point(random, pixels), axes, random.uniform(0, 360), start, end, color, thickness, cv2.LINE_AA)


def _blob(random: Random, pixels: Pixels) -> None:
    """Draws a smooth closed shape with lobes, which resembles none of the classes."""
    x, y = _point(random, pixels)
    radius, lobes = random.log_uniform(4, 24), random.integer(2, 4)
    depth, turn, tilt = random.uniform(0.35, 0.55), random.uniform(0, 6.3), random.uniform(0, 6.3)
    outline = []
    for step in range(48):
        angle = step * math.pi / 24
        wave = 1 + depth * math.sin(lobes * angle + turn) + 0.25 * math.sin((lobes + 1) * angle + tilt)
        outline.append((x + radius * wave * math.cos(angle), y + radius * wave * math.sin(angle)))
    points = np.rint(np.array(outline) * 16).astype(np.int32)
    cv2.fillPoly(pixels, [points], _clutter_color(random), cv2.LINE_AA, shift=4)


def _scribble(random: Random, pixels: Pixels) -> None:
    x, y = _point(random, pixels)
    points = []
    for _ in range(random.integer(4, 9)):
        points.append((x, y))
        x, y = x + random.integer(-18, 18), y + random.integer(-18, 18)
    cv2.polylines(
        pixels, [np.array(points, np.int32)], False, _clutter_color(random), random.integer(1, 2), cv2.LINE_AA
    )


def _specks(random: Random, pixels: Pixels) -> None:
    """Draws dots of one or two pixels, smaller than any object."""
    color = _clutter_color(random)
    for _ in range(random.integer(10, 60)):
        x, y = _point(random, pixels)
        size = random.integer(1, 2)
        pixels[y : y + size, x : x + size] = color
