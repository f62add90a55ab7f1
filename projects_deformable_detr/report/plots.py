"""Plots as inline SVG, drawn by matplotlib, with the colors and fonts of the page."""

import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Points = Mapping[int, float] | Sequence[tuple[float, float]]
MAX_POINTS = 300
NUM_COLORS = 8
# Placeholders that `_themed` replaces with CSS variables, so that the colors follow the theme of the page.
_INK, _LINE = "#0a0b0c", "#1a1b1c"
_SERIES = tuple(f"#fe00{index:02x}" for index in range(NUM_COLORS))
_DASHES = ("-", "--", ":", "-.")
_numbers = itertools.count()  # prefixes of the ids, which must be unique in a page


@dataclass(frozen=True)
class Curve:
    """A curve of a plot.

    Attributes:
        label: text of the legend.
        points: values by iteration, or pairs (x, y).
        width: width of the line; the default is 1.3.
        marked: point that is marked, or None.
    """

    label: str
    points: Points
    width: float = 1.3
    marked: tuple[float, float] | None = None


def plot(
    title: str,
    curves: Iterable[Curve],
    x_label: str = "iteration",
    *,
    log: bool = False,
    unit: bool = False,
) -> str:
    """Draws curves.

    Curves with more than 300 points are replaced with the means of up to 300 equal parts.

    Args:
        title: title of the plot.
        curves: the curves; those after the eighth have the same colors with other dashes.
        x_label: label of the horizontal axis.
        log: whether the vertical axis is logarithmic, if all values are positive.
        unit: whether the vertical axis is from 0 to 1.

    Returns:
        An ``<svg>`` element.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    with rc_context(_style()):
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        drawn = list(curves)
        for index, curve in enumerate(drawn):
            style: dict[str, Any] = {"color": _SERIES[index % NUM_COLORS], "linewidth": curve.width}
            style["linestyle"] = _DASHES[index // NUM_COLORS % len(_DASHES)]
            x, y = _reduced(curve.points)
            label = f" {curve.label}" if curve.label.startswith("_") else curve.label  # else it is hidden
            axes.plot(x, y, label=label, marker="o" if len(x) <= 20 else "", markersize=3, **style)
            if curve.marked is not None:
                axes.plot(*curve.marked, marker="o", markersize=7, color=style["color"], fillstyle="none")
        if log and all(value > 0 for curve in drawn for value in _reduced(curve.points)[1]):
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            is_narrow = high < 10 * low  # a logarithmic locator would place few labels
            axes.yaxis.set_major_locator(MaxNLocator(5) if is_narrow else LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")  # matplotlib's own labels are mathematical expressions
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(title=title, xlabel=x_label)
        if unit:
            axes.set_ylim(0, 1.03)
        if len(drawn) > 1:
            columns = 4 if max(len(curve.label) for curve in drawn) < 9 else 2
            figure.legend(loc="outside lower center", ncols=columns)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _themed(file.getvalue(), title)


def _style() -> Any:
    return {
        "svg.fonttype": "none",  # text remains text: selectable, small, and in the fonts of the page
        "svg.hashsalt": "report",
        "text.parse_math": False,  # class names may contain dollar signs
        "font.size": 10.5,
        "axes.titlesize": 11.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.formatter.limits": (-3, 5),
        "grid.color": _LINE,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    }


def _reduced(points: Points) -> tuple[Any, Any]:
    """Returns at most `MAX_POINTS` x and y values."""
    pairs = np.array(list(points.items() if isinstance(points, Mapping) else points), dtype=np.float64).reshape(-1, 2)
    if len(pairs) > MAX_POINTS:
        pairs = np.array([part.mean(axis=0) for part in np.array_split(pairs, MAX_POINTS)])
    return pairs[:, 0], pairs[:, 1]


def _themed(text: str, title: str) -> str:
    """Reduces matplotlib's SVG to an element for an HTML page, without addresses and duplicate ids."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    head, _, body = text.partition(">")
    view = re.search(r'viewBox="[^"]*"', head)
    assert view is not None
    prefix = f"p{next(_numbers)}-"
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    for color, name in ((_INK, "ink"), (_LINE, "line"), *((value, f"s{k}") for k, value in enumerate(_SERIES))):
        body = body.replace(color, f"var(--{name})")
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<svg {view[0]} role="img" aria-label="{label}">{body.strip()}'
