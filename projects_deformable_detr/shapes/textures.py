"""What covers a surface of a synthetic scene: textures, and clutter that belongs to no class."""

import colorsys
import math
from typing import Any

import cv2
import numpy as np

from .draws import Draws, Field

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Colour = tuple[float, float, float]  # RGB, 0 … 255


def dull_colour(draws: Draws) -> Colour:
    """A colour of the background: any hue and brightness, little saturation."""
    return _rgb(draws.uniform(), draws.uniform(0.0, 0.45), draws.uniform(0.2, 0.95))


def bright_colour(draws: Draws) -> Colour:
    """A colour of an object: any hue, mostly saturated, not dark."""
    return _rgb(draws.uniform(), draws.uniform(0.35, 1.0), draws.uniform(0.45, 1.0))


def shifted(draws: Draws, colour: Colour, amount: float) -> Colour:
    """A colour near another one: every channel moves by at most ``amount``."""
    red, green, blue = (min(255.0, max(0.0, c + draws.uniform(-amount, amount))) for c in colour)
    return red, green, blue


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return 255 * red, 255 * green, 255 * blue


def texture(draws: Draws, kind: str, height: int, width: int, first: Colour, second: Colour) -> Pixels:
    """(height, width, 3): a surface that varies between two colours.

    Args:
        kind: one of `KINDS`.
    """
    weights = _KINDS[kind](draws, height, width)[..., None]
    start, end = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return (start + (end - start) * weights + 0.5).astype(np.uint8)


def _along(draws: Draws, height: int, width: int) -> Field:
    """Each pixel's place along a random direction, in pixels."""
    angle = draws.uniform(0, 2 * math.pi)
    rows = np.arange(height, dtype=np.float32)[:, None] - height / 2
    columns = np.arange(width, dtype=np.float32)[None] - width / 2
    return rows * np.float32(math.sin(angle)) + columns * np.float32(math.cos(angle))


def _plain(draws: Draws, height: int, width: int) -> Field:
    return np.zeros((height, width), np.float32)


def _gradient(draws: Draws, height: int, width: int) -> Field:
    return np.clip(_along(draws, height, width) / max(height, width) + 0.5, 0, 1)


def _clouds(draws: Draws, height: int, width: int) -> Field:
    """Value noise: random grids of several spacings, the coarser the stronger."""
    total = np.zeros((height, width), np.float32)
    strength, cells = 0.5, draws.integer(2, 4)
    for _ in range(3):
        grid = draws.field(cells + 1, cells + 1)
        total += strength * cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
        strength, cells = strength / 2, cells * 2
    return np.clip(total * 1.6 - 0.2, 0, 1)


def _stripes(draws: Draws, height: int, width: int) -> Field:
    """Soft stripes. A triangle wave, since sines differ in the last bit between machines."""
    period = draws.uniform(5, 28)
    phase = _along(draws, height, width) / period + draws.uniform()
    return np.clip((np.abs(phase - np.floor(phase) - 0.5) - 0.25) * 6 + 0.5, 0, 1)


def _checks(draws: Draws, height: int, width: int) -> Field:
    side = draws.uniform(6, 24)
    angle = draws.uniform(0, math.pi)
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None]
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    parity = np.floor((rows * cosine + columns * sine) / side) + np.floor((columns * cosine - rows * sine) / side)
    return np.mod(parity, 2).astype(np.float32)


def _grain(draws: Draws, height: int, width: int) -> Field:
    return draws.field(height, width)


_KINDS = {
    "plain": _plain,
    "gradient": _gradient,
    "clouds": _clouds,
    "stripes": _stripes,
    "checks": _checks,
    "grain": _grain,
}
KINDS = tuple(_KINDS)


# The stuff of a scene: what a background's texture looks like.
_STUFF = {"gradient": "smooth", "clouds": "smooth", "stripes": "pattern", "checks": "pattern", "grain": "grain"}
STUFF_NAMES = ("smooth", "pattern", "grain")


def background(draws: Draws, height: int, width: int) -> tuple[Pixels, Pixels]:
    """One textured surface, or two that meet along a straight line, with clutter on them.

    Returns:
        pixels (height, width, 3), and (height, width) the surface's index into `STUFF_NAMES`; clutter is part of it.
    """
    pixels, kind = _ground(draws, height, width)
    stuff = np.full((height, width), STUFF_NAMES.index(_STUFF[kind]), np.uint8)
    if draws.chance(0.4):
        beyond = _along(draws, height, width) > draws.uniform(-0.3, 0.3) * min(height, width)
        other, kind = _ground(draws, height, width)
        pixels = np.where(beyond[..., None], other, pixels)
        stuff[beyond] = STUFF_NAMES.index(_STUFF[kind])
    pixels = np.ascontiguousarray(pixels)
    for _ in range(draws.integer(1, 6)):
        draws.choice((_lines, _arc, _blob, _scribble, _specks))(draws, pixels)
    return pixels, stuff


def _ground(draws: Draws, height: int, width: int) -> tuple[Pixels, str]:
    colour = dull_colour(draws)
    kind = draws.choice(("gradient", "clouds", "clouds", "stripes", "checks", "grain"))
    contrast = 70 if kind in ("gradient", "clouds") else 28  # sharp patterns hide objects sooner than soft ones
    return texture(draws, kind, height, width, colour, shifted(draws, colour, contrast)), kind


def _clutter_colour(draws: Draws) -> Colour:
    return bright_colour(draws) if draws.chance(0.5) else dull_colour(draws)


def _point(draws: Draws, pixels: Pixels) -> tuple[int, int]:
    return draws.integer(0, pixels.shape[1] - 1), draws.integer(0, pixels.shape[0] - 1)


def _lines(draws: Draws, pixels: Pixels) -> None:
    colour, thickness = _clutter_colour(draws), draws.integer(1, 3)
    for _ in range(draws.integer(1, 3)):
        cv2.line(pixels, _point(draws, pixels), _point(draws, pixels), colour, thickness, cv2.LINE_AA)


def _arc(draws: Draws, pixels: Pixels) -> None:
    """At most 200 degrees of an ellipse, so that it is no ring."""
    axes = (draws.integer(5, 40), draws.integer(5, 40))
    start = draws.uniform(0, 360)
    end = start + draws.uniform(60, 200)
    colour, thickness = _clutter_colour(draws), draws.integer(1, 3)
    cv2.ellipse(pixels, _point(draws, pixels), axes, draws.uniform(0, 360), start, end, colour, thickness, cv2.LINE_AA)


def _blob(draws: Draws, pixels: Pixels) -> None:
    """A smooth closed outline with lobes, unlike every class."""
    x, y = _point(draws, pixels)
    radius, lobes = draws.log_uniform(4, 24), draws.integer(2, 4)
    depth, turn, tilt = draws.uniform(0.35, 0.55), draws.uniform(0, 6.3), draws.uniform(0, 6.3)
    outline = []
    for step in range(48):
        angle = step * math.pi / 24
        wave = 1 + depth * math.sin(lobes * angle + turn) + 0.25 * math.sin((lobes + 1) * angle + tilt)
        outline.append((x + radius * wave * math.cos(angle), y + radius * wave * math.sin(angle)))
    points = np.rint(np.array(outline) * 16).astype(np.int32)
    cv2.fillPoly(pixels, [points], _clutter_colour(draws), cv2.LINE_AA, shift=4)


def _scribble(draws: Draws, pixels: Pixels) -> None:
    x, y = _point(draws, pixels)
    points = []
    for _ in range(draws.integer(4, 9)):
        points.append((x, y))
        x, y = x + draws.integer(-18, 18), y + draws.integer(-18, 18)
    cv2.polylines(pixels, [np.array(points, np.int32)], False, _clutter_colour(draws), draws.integer(1, 2), cv2.LINE_AA)


def _specks(draws: Draws, pixels: Pixels) -> None:
    """Dots of one or two pixels, smaller than every object."""
    colour = _clutter_colour(draws)
    for _ in range(draws.integer(10, 60)):
        x, y = _point(draws, pixels)
        size = draws.integer(1, 2)
        pixels[y : y + size, x : x + size] = colour
