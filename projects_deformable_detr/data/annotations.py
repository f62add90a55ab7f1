"""Decodes the ``annotations`` of a COCO instances file into a structured array."""

import json
from collections.abc import Iterable
from itertools import chain
from typing import Any, Literal

import msgspec
import numpy as np

from .files import Int64, convert, with_integers
from .problems import Problems
from .records import Array

TABLE = np.dtype(
    [
        ("id", np.int64),  # -1 if it is not a 64-bit integer
        ("row", np.int64),  # index in the file
        ("image_id", np.int64),
        ("category_id", np.int64),
        ("bbox", np.float64, 4),
        ("area", np.float64),  # NaN if it is absent or not a number
        ("iscrowd", np.bool_),
        ("has_iscrowd", np.bool_),
    ]
)


class Annotation(msgspec.Struct, gc=False):
    """Entry of ``annotations``, without its segmentation."""

    image_id: Int64
    category_id: Int64
    bbox: tuple[float, float, float, float]
    id: Any = None
    area: float | None = None
    iscrowd: Literal[0, 1] | msgspec.UnsetType = msgspec.UNSET
    ignore: Literal[0] = 0


class MaskAnnotation(Annotation, gc=False):
    """Entry of ``annotations`` with the JSON of its segmentation."""

    segmentation: msgspec.Raw = msgspec.Raw(b"null")


_IDS = ("annotations with non-integer ids", "Use integers of at most 64 bits.")
_CROWDS = (
    "annotations with an invalid iscrowd or ignore",
    "Set iscrowd to 0 or 1. Remove ignore, which is not part of the COCO format; mark regions to ignore as crowds.",
)
_FLAGS: dict[Any, int] = {0: 0, 1: 1, "0": 0, "1": 1}  # also matches False, True, 0.0 and 1.0
# Maps fields to (kind of problem, remedy) for values that cannot be converted.
FIELDS = {
    "image_id": _IDS,
    "category_id": _IDS,
    "bbox": ("boxes that are not four finite numbers", "Write bbox as [x, y, width, height] in pixels."),
    "iscrowd": _CROWDS,
    "ignore": _CROWDS,
}


def convert_annotations(
    entries: list[Any], kind: type[Annotation], file_names: dict[int, str], problems: Problems
) -> list[Any]:
    """Returns the entries as structs of type ``kind``.

    Args:
        entries: entries of a file; see `files.convert`.
        kind: `Annotation` or `MaskAnnotation`.
        file_names: file names by image id, for messages.
        problems: collects errors and warnings.
    """

    def report(index: int, entry: Any, message: str) -> None:
        if not isinstance(entry, dict):
            what = f"annotations[{index}] is {entry!r:.80}"
            problems.add("annotations that are not JSON objects", what, "Replace each with a JSON object.")
            return
        image_id = entry.get("image_id")
        where = f"annotation {entry['id']!r}" if "id" in entry else f"annotations[{index}]"
        if type(image_id) is int and image_id in file_names:
            where += f" of {file_names[image_id]}"
        field = next((field for field in FIELDS if f"$.{field}" in message), None)
        if field is None:
            problems.add("annotations with missing keys", f"{where} lacks {message.split('`')[1]}", "Add them.")
        else:
            problems.add(FIELDS[field][0], f"{where} has {field} {entry[field]!r:.80}", FIELDS[field][1])

    return convert(entries, kind, report, lambda entry: _prepare(entry, problems))


def _prepare(entry: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """Converts an entry with accepted deviations from the schema."""
    prepared = with_integers(entry, ("image_id", "category_id"), problems)
    for key in ("iscrowd", "ignore"):
        value = prepared.get(key)
        if value is None:
            prepared.pop(key, None)
        elif isinstance(value, bool | float | str):
            prepared[key] = _FLAGS.get(value, value)
    if type(entry.get("area")) not in (int, float):
        prepared["area"] = None
    if "segmentation" in entry:
        prepared["segmentation"] = msgspec.Raw(json.dumps(entry["segmentation"]).encode())
    return prepared


def make_table(rows: list[Any]) -> Array:
    """Returns the fields of all annotations as an array of dtype `TABLE`."""
    table = np.empty(len(rows), TABLE)

    def fill(key: str, values: Iterable[Any]) -> None:
        column = table[key]
        column[:] = np.fromiter(values, column.dtype, column.size).reshape(column.shape)

    try:
        fill("id", (row.id for row in rows))
    except (TypeError, ValueError, OverflowError):
        fill("id", (row.id if type(row.id) is int and 0 <= row.id < 2**63 else -1 for row in rows))
    table["row"] = np.arange(len(rows))
    fill("image_id", (row.image_id for row in rows))
    fill("category_id", (row.category_id for row in rows))
    fill("bbox", chain.from_iterable(row.bbox for row in rows))
    fill("area", (np.nan if row.area is None else row.area for row in rows))
    fill("iscrowd", (row.iscrowd == 1 for row in rows))
    fill("has_iscrowd", (row.iscrowd is not msgspec.UNSET for row in rows))
    return table
