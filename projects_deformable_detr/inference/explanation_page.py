"""Interactive HTML page of an explanation: one file with the image, all points or maps, and plain JavaScript."""

import base64
import html
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..explain import DenseAttention, SampledAttention
from .explanation_data import ExplanationData

_MAX_SIDE = 1600  # pixels of the image in the page
_PNG_PIXELS = 300_000  # larger images are JPEGs


def render_page(explanation: ExplanationData) -> str:
    """See `Explanation.page`."""
    found = explanation.detections
    attention, corners = explanation.attention, explanation.boxes.transpose(0, 1)
    items = [
        {
            "title": f"{index}: {found.names[row]} {100 * float(found.scores[row]):.0f}%",
            "boxes": _numbers(corners[row]),
            "attention": _attention(attention, row),
        }
        for row, index in enumerate(explanation.indices.tolist())
    ]
    if explanation.point_attention is not None:
        rows = explanation.point_attention.weights.shape[1]
        per_point = rows // len(explanation.points)
        for row in range(rows):
            x, y = explanation.points[row // per_point].tolist()
            title = f"encoder at ({x:g}, {y:g})" + (f", level {row % per_point + 1}" if per_point > 1 else "")
            content = _attention(explanation.point_attention, row)
            items.append({"title": title, "boxes": [], "attention": content, "point": [x, y]})
    proposals = explanation.proposals
    data = {
        "image": _data_url(explanation),
        "size": found.size[::-1],
        "source": Path(found.source).name,
        "items": items,
        "proposals": None if proposals is None else [_numbers(proposals.boxes), proposals.scores.tolist()],
    }
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template, shared = (
        resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        for name in ("explanation.html", "attention.js")
    )
    page = template.replace("SHARED", shared, 1).replace("TITLE", html.escape(Path(found.source).name), 1)
    return page.replace('"DATA"', text, 1)


def _attention(attention: SampledAttention | DenseAttention, row: int) -> dict[str, Any]:
    weights = attention.weights[:, row]
    if isinstance(attention, DenseAttention):
        top = weights.amax((-2, -1), keepdim=True).clamp_min(1e-12)
        maps = (255 * weights / top).round().to(torch.uint8).numpy().tobytes()
        return {
            "shape": list(weights.shape),
            "maps": base64.b64encode(maps).decode(),
            "tops": [float(f"{value:.4g}") for value in top.flatten().tolist()],
        }
    return {
        "shape": list(weights.shape),
        "locations": _numbers(attention.locations[:, row].flatten()),
        "weights": [round(value, 5) for value in weights.flatten().tolist()],
        "levels": attention.levels[row].tolist(),
        "references": _numbers(attention.references[:, row]),
    }


def _numbers(values: torch.Tensor) -> Any:
    """Returns nested lists of coordinates, rounded to a tenth of a pixel."""
    return ((10 * values).round().double() / 10 + 0.0).tolist()  # no negative zeros


def _data_url(explanation: ExplanationData) -> str:
    image = Image.fromarray(explanation.pixels)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    kind, file = "png" if image.width * image.height <= _PNG_PIXELS else "jpeg", io.BytesIO()
    image.save(file, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
