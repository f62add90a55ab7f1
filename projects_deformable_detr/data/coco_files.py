"""COCO's files of instances: their JSON, categories and images, with errors that name what is wrong."""

import json
import os
from pathlib import Path
from typing import Any

from .catalog import DatasetSpec
from .problems import DatasetError, Problems

Record = dict[str, Any]
KEYS = ("images", "categories", "annotations")


def read_json(spec: DatasetSpec, needed: tuple[str, ...] = KEYS[:2]) -> dict[str, Any]:
    """The file's object; those of ``needed`` are lists in it, and ``annotations`` where it is there."""
    where = f"data set {spec.name}: annotation file {spec.json_file}"
    wanted = f"name a JSON file in COCO's {'instances' if spec.panoptic_root is None else 'panoptic'} format"
    try:
        content = json.loads(Path(spec.json_file).read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"{where} does not exist: {_how_to_get(spec)}") from error
    except OSError as error:
        raise DatasetError(f"{where} cannot be read ({error.strerror}): name a file that can") from error
    except ValueError as error:  # not JSON, or not text
        raise DatasetError(f"{where} is not JSON ({error}): {wanted}") from error
    if not isinstance(content, dict):
        hint = ""
        if isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]:
            hint = " (it looks like a file of results)"
        raise DatasetError(
            f"{where} holds a {type(content).__name__}{hint}, not an object with images, annotations and categories: "
            f"{wanted}"
        )
    wrong = [key for key in KEYS if (key in needed or key in content) and not isinstance(content.get(key), list)]
    if wrong:
        raise DatasetError(
            f"{where} has no list {', '.join(repr(key) for key in wrong)} (its keys: {', '.join(content) or 'none'}): "
            f"{wanted}"
        )
    return content


def _how_to_get(spec: DatasetSpec) -> str:
    if spec.name.startswith("shapes_"):
        return "make it with python -m projects_deformable_detr.shapes, or set DETECTRON2_DATASETS to its folder"
    if spec.name.startswith(("coco_", "lvis_")):
        what = spec.name[:4].upper()
        return f"put {what} there as Detectron2's documentation says, or set DETECTRON2_DATASETS to its folder"
    return "correct the path"


def read_categories(entries: list[Any], problems: Problems) -> dict[int, str]:
    """Category id → name, in the order of the ids."""
    found: dict[int, str] = {}
    for index, entry in enumerate(entries):
        fine = isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("name"), str)
        if not fine:
            remedy = "Give each a whole number 'id' and a text 'name'."
            problems.add("categories that are incomplete", f"categories[{index}] is {_short(entry)}", remedy)
        elif entry["id"] in found:
            names = f"id {entry['id']}: {found[entry['id']]!r} and {entry['name']!r}"
            problems.add("category ids that are used twice", names, "Give every category its own id.")
        else:
            found[entry["id"]] = entry["name"]
    if not entries:
        problems.add("empty list of categories", "'categories'", "List the classes there.")
    return dict(sorted(found.items()))


def read_images(entries: list[Any], spec: DatasetSpec, problems: Problems, hint: str = "") -> dict[int, Record]:
    """Image id → record without annotations; ``hint``: what to say besides of files that are missing."""
    found: dict[int, Record] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_image(entry):
            remedy = "Give each a whole number 'id', a text 'file_name', and 'width' and 'height' in pixels."
            problems.add("images that are incomplete", f"images[{index}] is {_short(entry)}", remedy)
            continue
        if entry["id"] in found:
            names = f"id {entry['id']}: {entry['file_name']}"
            problems.add("image ids that are used twice", names, "Give every image its own id.")
        path = os.path.join(spec.image_root, entry["file_name"])
        size = {"height": entry["height"], "width": entry["width"]}
        found[entry["id"]] = {"file_name": path, **size, "image_id": entry["id"], "annotations": []}
    if not entries:
        problems.add("empty list of images", "'images'", "List the images there.")
    if os.path.isdir(spec.image_root):
        _check_files(found, problems, hint)
    return found


def _is_image(entry: dict[str, Any]) -> bool:
    numbers = all(type(entry.get(key)) is int for key in ("id", "width", "height"))
    return numbers and entry["width"] > 0 and entry["height"] > 0 and isinstance(entry.get("file_name"), str)


def _check_files(records: dict[int, Record], problems: Problems, hint: str) -> None:
    """Looks for every image file. Folders are listed, not files asked for: 118,000 images take a moment."""
    listed: dict[str, set[str]] = {}
    for record in records.values():
        folder, name = os.path.split(record["file_name"])
        if folder not in listed:
            listed[folder] = _file_names(folder)
        if name not in listed[folder]:
            remedy = f"Put them there, correct the image folder, or remove their records.{hint}"
            problems.add("image files that are missing", record["file_name"], remedy)


def _file_names(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_dir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
