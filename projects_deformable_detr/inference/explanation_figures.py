"""Pictures of explanations: sampling points, attention maps, boxes of all layers, proposals and gradients.

Pictures are drawn at twice their size and reduced, which smooths the edges of markers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import ArgumentError, check_choice
from ..explain import DenseAttention
from ..explain.gradients import GRADIENTS
from . import drawing
from .explanation_data import ExplanationData, Points, check_index

GREEN = "#2fe05a"  # reference point and predicted box, as in the paper
# Colors of low to high weights: anchors of matplotlib's plasma.
RAMP = ("#0d0887", "#6a00a8", "#b12a90", "#e16462", "#fca636", "#f0f921")
# Sides and rotation of the marker of each level; the first is a circle.
MARKERS = ((0, 0), (4, 45), (3, 0), (4, 0), (5, 0), (3, 180), (6, 0), (8, 0))
_SIDE, _CELL = 1000, 560  # longer side in pixels of a single picture, and of one in a grid
_FINE = 2
_IN_TITLES = "value in the title"  # end of a scale that differs between panels


def draw_attention(
    explanation: ExplanationData, index: int, layer: int, by: str | None, *, of_point: bool = False
) -> Image.Image:
    """See `Explanation.draw` and `Explanation.draw_point`."""
    if by is not None:
        check_choice("by", by, ("layer", "head", "level"))
    attention = explanation.point_attention if of_point else explanation.attention
    if attention is None:
        raise ArgumentError("attention", "has no points: pass points to Detector.explain")
    count, rows, heads = attention.weights.shape[:3]
    check_index("index", index, rows)
    check_index("layer", layer, count)
    layer, index = layer % count, index % rows
    top = 0.0
    if isinstance(attention, DenseAttention):
        if by == "level":
            raise ArgumentError("by", "must be 'layer' or 'head' for DETR, which has one level")
        maps = attention.weights[:, index]
        shown: list[tuple[str, int, Any]] = [("", layer, maps[layer].mean(0))]
        if by == "layer":
            shown = [(f"layer {number + 1}", number, maps[number].mean(0)) for number in range(count)]
        elif by == "head":
            shown = [(f"head {head + 1}", layer, maps[layer, head]) for head in range(heads)]
        tops = [float(item.max()) for _, _, item in shown]
        legend = [("bar", "attention weight 0", f"{tops[0]:.2g}" if by is None else _IN_TITLES)]
        if by is not None:
            titles = [f"{name}: 0 to {end:.2g}" for (name, _, _), end in zip(shown, tops, strict=True)]
            shown = [(title, number, item) for title, (_, number, item) in zip(titles, shown, strict=True)]
        if of_point:
            legend.append(("cross", "point", ""))
    else:
        points = explanation.sampling_points(index, None if by == "layer" else layer, of_point=of_point)
        shown = [("", layer, points)]
        if by is not None:
            values = getattr(points, by + "s")
            shown = [
                (f"{by} {value + 1}", value if by == "layer" else layer, _where(points, values == value))
                for value in values.unique().tolist()
            ]
        top = float(points.weights.max())
        legend = [
            ("bar", "attention weight 0", f"{top:.2g}"),
            *((str(level), f"level {level + 1}", "") for level in points.levels.unique().tolist()),
            ("cross", "token nearest to the point" if of_point else "reference point", ""),
        ]
    panels = [(name, _mark(explanation, index, number, item, top, of_point)) for name, number, item in shown]
    return _panels(explanation, panels, legend)


def draw_boxes(explanation: ExplanationData) -> Image.Image:
    """See `Explanation.draw_boxes`."""
    layers = len(explanation.boxes)
    colors = [_color(number / max(1, layers - 1)) for number in range(layers)]

    def mark(picture: Image.Image, scale: float) -> None:
        for number, color in enumerate(colors):
            _outline(picture, explanation.boxes[number] * scale, [color] * explanation.boxes.shape[1])
        texts = [_title(explanation, index) for index in range(len(explanation.detections))]
        corners = (explanation.boxes[-1] * scale).round().int().tolist()
        drawing.draw_texts(picture, corners, texts, [GREEN] * len(texts))

    return _panels(explanation, [("", mark)], [("bar", "first decoder layer", "last")])


def draw_proposals(explanation: ExplanationData, count: int) -> Image.Image:
    """See `Explanation.draw_proposals`."""
    if explanation.proposals is None:
        raise ArgumentError("proposals", "are available for two-stage models only")
    if not isinstance(count, int) or count < 0:
        raise ArgumentError("count", f"must be an integer from 0, got {count!r}")
    boxes, scores = (part[:count].flip(0) for part in explanation.proposals)  # the best are drawn last
    top = float(scores.max()) if len(scores) else 1.0
    colors = [_color(score / top) for score in scores.tolist()]

    def mark(picture: Image.Image, scale: float) -> None:
        _outline(picture, boxes * scale, colors)

    return _panels(explanation, [("", mark)], [("bar", "objectness 0", f"{top:.2f}")])


def draw_gradients(explanation: ExplanationData, index: int) -> Image.Image:
    """See `Explanation.draw_gradients`."""
    if explanation.gradients is None:
        raise ArgumentError("gradients", "were not computed: pass gradients=True to Detector.explain")
    check_index("index", index, len(explanation.gradients))
    last = len(explanation.boxes) - 1

    def draw(values: Tensor, top: float) -> Callable[[Image.Image, float], None]:
        def mark(picture: Image.Image, scale: float) -> None:
            _heat(picture, (values / max(top, 1e-12)).clamp_max(1))
            _box(explanation, index, last, picture, scale)

        return mark

    maps = explanation.gradients[index]
    tops = maps.flatten(1).quantile(0.999, 1).tolist()  # single pixels dominate the maximum
    panels = [
        (f"gradient of {name}: 0 to {top:.2g}", draw(values, top))
        for name, values, top in zip(GRADIENTS, maps, tops, strict=True)
    ]
    return _panels(explanation, panels, [("bar", "gradient norm 0", _IN_TITLES)])


def _mark(
    explanation: ExplanationData, index: int, layer: int, shown: Any, top: float, of_point: bool
) -> Callable[[Image.Image, float], None]:
    """Returns the function that draws points or a map (h, w) of a query of the given layer."""
    attention: Any = explanation.point_attention if of_point else explanation.attention

    def mark(picture: Image.Image, scale: float) -> None:
        is_map = isinstance(shown, Tensor)
        if is_map:
            _heat(picture, shown / shown.max())
        if not of_point:
            _box(explanation, index, min(layer, len(explanation.boxes) - 1), picture, scale)
        if not is_map:
            radius = _markers(picture, shown, top, scale)
            _cross(picture, attention.references[layer, index] * scale, 2.5 * radius)
        elif of_point:
            _cross(picture, explanation.points[index] * scale, min(picture.size) / 40)

    return mark


def _box(explanation: ExplanationData, index: int, layer: int, picture: Image.Image, scale: float) -> None:
    corners = (explanation.boxes[layer, index] * scale).round().int().tolist()
    drawing.draw_boxes(picture, [corners], [GREEN])
    drawing.draw_texts(picture, [corners], [_title(explanation, index)], [GREEN])


def _title(explanation: ExplanationData, index: int) -> str:
    found = explanation.detections
    return f"{found.names[index]} {100 * float(found.scores[index]):.0f}%"


def _where(points: Points, rows: Tensor) -> Points:
    return type(points)(*(part[rows] for part in points))


def _outline(picture: Image.Image, boxes: Tensor, colors: Sequence[str]) -> None:
    pen, width = ImageDraw.Draw(picture), max(2, round(min(picture.size) / 250))
    for corners, color in zip(boxes.tolist(), colors, strict=True):
        pen.rectangle(corners, outline=color, width=width)


def _markers(picture: Image.Image, points: Points, top: float, scale: float) -> float:
    """Draws a marker at each point inside the image, in the order of weights; ``top`` has the last color.

    Returns:
        The radius of the markers.
    """
    pen, places = ImageDraw.Draw(picture), points.locations * scale
    spread = float(places.std(0).mean())  # markers of a small object overlap less if they are smaller
    radius = max(7.0, min(min(picture.size) / 90, spread / 5))
    order = points.weights.argsort()
    parts = (places, points.weights / top, points.levels)
    for (x, y), value, level in zip(*(part[order].tolist() for part in parts), strict=True):
        _marker(pen, x, y, radius, level, value)
    return radius


def _marker(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, level: int, value: float) -> None:
    sides, rotation = MARKERS[level % len(MARKERS)]
    for size, fill in ((radius, "white" if value < 0.4 else "#141414"), (0.75 * radius, _color(value))):
        if sides:
            pen.regular_polygon((x, y, 1.15 * size), sides, rotation, fill=fill)
        else:
            pen.ellipse((x - size, y - size, x + size, y + size), fill=fill)


def _cross(picture: Image.Image, place: Tensor, arm: float) -> None:
    (x, y), pen = place.tolist(), ImageDraw.Draw(picture)
    for extra, color in ((2, "#141414"), (0, GREEN)):
        width = round(arm / 4) + 2 * extra
        pen.line((x - arm - extra, y, x + arm + extra, y), fill=color, width=width)
        pen.line((x, y - arm - extra, x, y + arm + extra), fill=color, width=width)


def _heat(picture: Image.Image, values: Tensor) -> None:
    """Blends values (h, w) in [0, 1] into the darkened gray picture, in place."""
    levels = Image.fromarray((255 * values).round().to(torch.uint8).numpy())
    levels = levels.resize(picture.size, Image.Resampling.BILINEAR)
    colors = Image.merge("RGB", [levels.point(part.tolist()) for part in _COLORS.T])
    opacity = levels.point([round(0.85 * (255 * value) ** 0.5) for value in range(256)])
    gray = picture.convert("L").point([round(0.55 * value) for value in range(256)]).convert("RGB")
    picture.paste(Image.composite(colors, gray, opacity))


_ANCHORS = np.array([[int(color[start : start + 2], 16) for start in (1, 3, 5)] for color in RAMP])
_COLORS = (
    np.stack([np.interp(np.linspace(0, 5, 256), range(6), part) for part in _ANCHORS.T], axis=1).round().astype(int)
)


def _color(value: float) -> str:
    """Returns the color of a value in [0, 1]."""
    return "#{:02x}{:02x}{:02x}".format(*_COLORS[round(255 * value)])


def _panels(
    explanation: ExplanationData,
    panels: Sequence[tuple[str, Callable[[Image.Image, float], None]]],
    legend: Sequence[tuple[str, str, str]],
) -> Image.Image:
    """Draws the image once for each panel, with its name, in a grid above the legend."""
    image = Image.fromarray(explanation.pixels)
    scale = (_SIDE if len(panels) == 1 else _CELL) / max(image.size) * _FINE
    base = image.resize([max(_FINE, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    cells = []
    for name, mark in panels:
        picture = base.copy()
        mark(picture, scale)
        if name:
            drawing.draw_texts(picture, [(0, 0, 0, 0)], [name], ["white"])
        cells.append(np.asarray(picture.reduce(_FINE)))
    columns = min(len(cells), 4 if len(cells) in (4, 7, 8) else 3)
    drawn = drawing.grid(cells, columns=columns) if len(cells) > 1 else cells[0]
    return Image.fromarray(np.concatenate([drawn, _draw_legend(drawn.shape[1], legend)]))


def _draw_legend(width: int, entries: Sequence[tuple[str, str, str]]) -> drawing.Pixels:
    """Draws symbols with texts: ``"bar"`` (between two texts), ``"cross"``, or the level of a marker."""
    unit = _FINE * max(1.0, width / _SIDE)  # pictures are usually shown at the same width
    font, row, gap = ImageFont.load_default(15 * unit), round(26 * unit), round(16 * unit)
    sizes = [font.getlength(first + last) + (12 * row if kind == "bar" else row) for kind, first, last in entries]
    places, x, y = [], gap, gap // 2
    for size in sizes:
        if x > gap and x + size > width * _FINE:
            x, y = gap, y + row
        places.append((x, y))
        x += round(size) + gap
    picture = Image.new("RGB", (width * _FINE, y + row + gap // 2), "white")
    pen = ImageDraw.Draw(picture)
    for (x, y), (kind, first, last) in zip(places, entries, strict=True):
        middle = y + row // 2
        if kind == "bar":
            start = round(x + font.getlength(first) + row / 3)
            for step in range(10 * row):
                pen.line((start + step, y + 8, start + step, y + row - 8), fill=_color(step / (10 * row)))
            pen.text((start + 10.3 * row, middle), last, "black", font, anchor="lm")
        else:
            if kind == "cross":
                _cross(picture, torch.tensor([x + row / 3, middle]), row / 3)
            else:
                _marker(pen, x + row / 3, middle, row / 4, int(kind), 0.5)
            x += row
        pen.text((x, middle), first, "black", font, anchor="lm")
    return np.asarray(picture.reduce(_FINE))
