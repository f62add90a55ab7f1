"""Decodes annotation files in COCO's formats and checks their categories and images."""

import contextlib
import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from .catalog import DatasetSpec
from .problems import DatasetError, Problems

T = TypeVar("T")
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Side = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
KEYS = ("images", "categories", "annotations")
_ERRORS = (ValueError, RecursionError)  # raised for invalid JSON, UTF-8 or schema, and deep nesting


class ImageEntry(msgspec.Struct, gc=False):
    """Entry of ``images``. The last three fields are only used in LVIS files."""

    id: Int64
    width: Side
    height: Side
    file_name: str | None = None
    coco_url: Any = None
    neg_category_ids: Any = msgspec.UNSET
    not_exhaustive_category_ids: Any = msgspec.UNSET


class Content(msgspec.Struct, Generic[T]):
    """Content of an annotation file. In a file with faults, images and annotations are decoded JSON, not structs."""

    images: list[ImageEntry]
    categories: list[Any]
    annotations: list[T] | None = None


def read_content(spec: DatasetSpec, annotation: type[T], needed: tuple[str, ...] = KEYS) -> Content[T]:
    """Decodes an annotation file.

    A file that follows the schema is decoded into structs in one pass. Any other file is decoded into Python objects,
    so that `convert` can report all faulty entries.

    Args:
        spec: data set.
        annotation: type of the entries of ``annotations``.
        needed: keys that must be present.

    Raises:
        DatasetError: if the file cannot be read, is not JSON, or lacks a list.
    """
    content = _read_bytes(spec)
    with paused_gc():
        try:
            found = msgspec.json.decode(content, type=Content[annotation])  # type: ignore[valid-type]
            if found.annotations is not None:
                return found
        except _ERRORS:
            pass
        loose = _decode_json(content, spec, needed)
    return Content(loose["images"], loose["categories"], loose.get("annotations", []))


def convert(
    entries: list[Any],
    kind: type[T],
    report: Callable[[int, Any, str], None],
    prepare: Callable[[Any], Any] = lambda entry: entry,
) -> list[T]:
    """Returns the entries as structs of type ``kind``, without those that do not follow the schema.

    Args:
        entries: structs, which are returned unchanged, or decoded JSON.
        kind: struct type.
        report: called with index, entry and message for every faulty entry.
        prepare: applied to every entry of decoded JSON before it is converted.
    """
    if not entries or isinstance(entries[0], kind):
        return entries
    found = []
    for index, entry in enumerate(entries):
        try:
            found.append(msgspec.convert(prepare(entry), kind))
        except msgspec.ValidationError as error:
            report(index, entry, str(error))
    return found


def read_json(spec: DatasetSpec, needed: tuple[str, ...] = KEYS[:2]) -> dict[str, Any]:
    """Decodes an annotation file into Python objects; arguments and errors as in `read_content`."""
    return _decode_json(_read_bytes(spec), spec, needed)


def read_categories(spec: DatasetSpec) -> list[Any]:
    """Decodes only the categories of an annotation file; errors as in `read_content`."""
    content = _read_bytes(spec)
    try:
        return msgspec.json.decode(content, type=Content[msgspec.Raw]).categories
    except _ERRORS:
        return list(_decode_json(content, spec, KEYS[:2])["categories"])


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """Pauses the garbage collector, which takes as long to scan millions of new objects as it takes to decode them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_bytes(spec: DatasetSpec) -> bytes:
    where = f"data set {spec.name}: annotation file {spec.json_file}"
    try:
        return Path(spec.json_file).read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{where} does not exist: {_how_to_get(spec)}") from error
    except OSError as error:
        raise DatasetError(f"{where} cannot be read ({error.strerror}): use a readable file") from error


def _decode_json(content: bytes, spec: DatasetSpec, needed: tuple[str, ...]) -> dict[str, Any]:
    where = f"data set {spec.name}: annotation file {spec.json_file}"
    expected = f"use a JSON file in COCO's {'instances' if spec.panoptic_root is None else 'panoptic'} format"
    try:
        found = json.loads(content)
    except _ERRORS as error:
        raise DatasetError(f"{where} is not JSON ({error}): {expected}") from error
    if not isinstance(found, dict):
        is_results = isinstance(found, list) and found and isinstance(found[0], dict) and "score" in found[0]
        hint = " (it looks like a file of results)" if is_results else ""
        raise DatasetError(
            f"{where} contains a {type(found).__name__}{hint}, not an object with images, annotations and categories: "
            f"{expected}"
        )
    wrong = [key for key in KEYS if (key in needed or key in found) and not isinstance(found.get(key), list)]
    if wrong:
        raise DatasetError(
            f"{where} has no list {', '.join(repr(key) for key in wrong)} (its keys: {', '.join(found) or 'none'}): "
            f"{expected}"
        )
    return found


def _how_to_get(spec: DatasetSpec) -> str:
    if spec.name.startswith("shapes_"):
        return "generate it with python -m projects_deformable_detr.shapes, or set DETECTRON2_DATASETS to its folder"
    if spec.name.startswith(("coco_", "lvis_")):
        name = spec.name[:4].upper()
        return f"place {name} there as Detectron2's documentation describes, or set DETECTRON2_DATASETS to its folder"
    return "correct the path"


def check_categories(entries: list[Any], problems: Problems) -> dict[int, str]:
    """Returns category id to name, in the order of the ids."""
    found: dict[int, str] = {}
    for index, entry in enumerate(entries):
        is_sound = isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("name"), str)
        if not is_sound:
            remedy = "Give each an integer 'id' and a string 'name'."
            problems.add("categories that are incomplete", f"categories[{index}] is {entry!r:.80}", remedy)
        elif entry["id"] in found:
            names = f"id {entry['id']}: {found[entry['id']]!r} and {entry['name']!r}"
            problems.add("category ids that are used twice", names, "Give each category a unique id.")
        else:
            found[entry["id"]] = entry["name"]
    if not entries:
        problems.add("empty list of categories", "'categories'", "Add the classes.")
    return dict(sorted(found.items()))


def convert_images(entries: list[Any], problems: Problems) -> list[ImageEntry]:
    """Returns the entries of ``images`` as structs."""

    def report(index: int, entry: Any, message: str) -> None:
        remedy = "Give each an integer 'id', a string 'file_name', and 'width' and 'height' in pixels."
        problems.add("images that are incomplete", f"images[{index}] is {entry!r:.80} ({message})", remedy)

    return convert(entries, ImageEntry, report)


def check_images(images: list[ImageEntry], spec: DatasetSpec, problems: Problems, hint: str = "") -> list[ImageEntry]:
    """Checks ids, and that every image file exists.

    Args:
        images: entries of the file.
        spec: data set.
        problems: collects the faults.
        hint: sentence to append to the error about missing files.

    Returns:
        the images in the order of their ids.
    """
    found: dict[int, ImageEntry] = {}
    for image in images:
        if image.file_name is None:
            problems.add("images without a file_name", f"id {image.id}", "Give each a string 'file_name'.")
        elif image.id in found:
            problems.add("image ids that are used twice", f"id {image.id}: {image.file_name}", "Use unique ids.")
        else:
            found[image.id] = image
    if not images:
        problems.add("empty list of images", "'images'", "Add the images.")
    ordered = [found[image_id] for image_id in sorted(found)]
    if os.path.isdir(spec.image_root):
        _check_files(ordered, spec, problems, hint)
    else:
        problems.add("missing image folder", str(spec.image_root), "Correct the path, or place the images there.")
    return ordered


def _check_files(images: list[ImageEntry], spec: DatasetSpec, problems: Problems, hint: str) -> None:
    """Finds missing image files in listings of the folders, which are faster than one system call per image."""
    listed: dict[str, set[str]] = {}
    for image in images:
        path = os.path.join(spec.image_root, str(image.file_name))
        folder, name = os.path.split(path)
        if folder not in listed:
            is_folder = os.path.isdir(folder)
            listed[folder] = {entry.name for entry in os.scandir(folder) if not entry.is_dir()} if is_folder else set()
        if name not in listed[folder]:
            remedy = f"Add the files, correct the image folder, or remove their records.{hint}"
            problems.add("image files that are missing", path, remedy)
