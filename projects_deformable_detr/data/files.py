"""Decodes annotation files in COCO formats."""

import contextlib
import gc
import json
import re
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
_DIGITS = re.compile("-?[0-9]+")
# Kind and consequence of the warning about ids that are accepted as integers.
AS_INTEGERS = (
    "integers written as floats or strings",
    "They are converted to integers, also in result files.",
)
_CONVERT = "convert it with `deformable-detr convert-data`"
# Maps patterns at the start of files that are not JSON to (format, remedy).
_FORMATS = {
    rb"\s*(<\?xml[^>]*>\s*)?<annotation\b": ("is an annotation in Pascal VOC XML format", _CONVERT),
    rb"\s*<": ("is XML", "use a JSON file; for Pascal VOC XML files, " + _CONVERT),
    rb"\s*\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s*(\n|$)": ("is an annotation in YOLO text format", _CONVERT),
    rb"(?s).{,2000}^(names|nc|train|val)\s*:": ("is the YAML file of a data set in YOLO format", _CONVERT),
    rb"PK\x03\x04|\x1f\x8b": ("is a compressed archive", "unpack it"),
}


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
    """Content of an annotation file; its entries are plain decoded JSON if the file does not follow the schema."""

    images: list[ImageEntry]
    categories: list[Any]
    annotations: list[T] | None = None


def read_content(spec: DatasetSpec, annotation: type[T], needed: tuple[str, ...] = KEYS) -> Content[T]:
    """Decodes an annotation file.

    A file that follows the schema is decoded into structs in one pass. Any other file is decoded into Python objects,
    so that `convert` can report all invalid entries.

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
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
) -> list[T]:
    """Converts entries to structs of type ``kind``; entries that do not follow the schema are reported and dropped.

    Args:
        entries: structs, which are returned unchanged, or decoded JSON.
        kind: struct type.
        report: called with index, entry and message for every invalid entry.
        prepare: called with each JSON object before conversion, to convert accepted deviations from the schema.
    """
    if not entries or isinstance(entries[0], kind):
        return entries
    found = []
    for index, entry in enumerate(entries):
        try:
            found.append(msgspec.convert(prepare(entry) if isinstance(entry, dict) else entry, kind))
        except msgspec.ValidationError as error:
            report(index, entry, str(error))
    return found


def with_integers(entry: dict[str, Any], keys: tuple[str, ...], problems: Problems) -> dict[str, Any]:
    """Returns the entry with integers written as floats or strings under ``keys`` converted, with a warning.

    Ids that become equal are reported as duplicates later.
    """
    changed = {}
    for key in keys:
        value = entry.get(key)
        if (number := as_integer(value)) is not value:
            changed[key] = number
            problems.warn(AS_INTEGERS[0], f"{key} {value!r:.40}", AS_INTEGERS[1])
    return {**entry, **changed}


def as_integer(value: Any) -> Any:
    """Returns a whole float or a string of digits as an integer, and any other value unchanged."""
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole or (isinstance(value, str) and _DIGITS.fullmatch(value)) else value


def read_json(spec: DatasetSpec, needed: tuple[str, ...] = KEYS[:2]) -> dict[str, Any]:
    """Decodes an annotation file into Python objects; see `read_content` for arguments and errors."""
    return _decode_json(_read_bytes(spec), spec, needed)


def read_categories(spec: DatasetSpec) -> list[Any]:
    """Decodes only the categories of an annotation file; see `read_content` for errors."""
    content = _read_bytes(spec)
    try:
        return msgspec.json.decode(content, type=Content[msgspec.Raw]).categories
    except _ERRORS:
        return list(_decode_json(content, spec, KEYS[:2])["categories"])


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """Pauses the garbage collector, which would take as long to scan new objects as the decoding itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_bytes(spec: DatasetSpec) -> bytes:
    """Returns the content converted to UTF-8 without a byte order mark from any encoding that JSON allows."""
    where = f"data set {spec.name}: annotation file {spec.json_file}"
    try:
        content = Path(spec.json_file).read_bytes()
        encoding = json.detect_encoding(content[:4])
        return content if encoding == "utf-8" else content.decode(encoding).encode()
    except FileNotFoundError as error:
        raise DatasetError(f"{where} does not exist: {_how_to_get(spec)}") from error
    except IsADirectoryError as error:
        raise DatasetError(
            f"{where} is a folder: use a file in COCO format; to convert a folder of Pascal VOC or YOLO annotations, "
            "use `deformable-detr convert-data`"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where} is not JSON ({error}): save it in UTF-8") from error
    except OSError as error:
        raise DatasetError(f"{where} cannot be read ({error.strerror}): use a readable file") from error


def _decode_json(content: bytes, spec: DatasetSpec, needed: tuple[str, ...]) -> dict[str, Any]:
    where = f"data set {spec.name}: annotation file {spec.json_file}"
    expected = f"use a JSON file in COCO {'instances' if spec.panoptic_root is None else 'panoptic'} format"
    try:
        found = json.loads(content)
    except _ERRORS as error:
        for pattern, (what, remedy) in _FORMATS.items():
            if re.match(pattern, content[:5000], re.MULTILINE):
                raise DatasetError(f"{where} {what}, not JSON: {remedy}") from error
        raise DatasetError(f"{where} is not JSON ({error}): {expected}") from error
    if isinstance(found, dict) and not [key for key in KEYS if _lacks_list(found, key, needed)]:
        return found
    hint = f" (it looks like {known})" if (known := _recognize(found)) else ""
    if not isinstance(found, dict):
        raise DatasetError(
            f"{where} contains a {type(found).__name__}{hint}, not an object with images, annotations and categories: "
            f"{expected}"
        )
    wrong = [key for key in KEYS if _lacks_list(found, key, needed)]
    names = ", ".join(list(found)[:10]) + ", …" * (len(found) > 10)
    notes = [f"{key!r} is {_kind(found[key])}" for key in wrong if key in found] + [f"its keys: {names or 'none'}"]
    lists = ", ".join(map(repr, wrong))
    raise DatasetError(f"{where} has no list {lists} ({'; '.join(notes)}){hint}: {expected}")


def _lacks_list(found: dict[str, Any], key: str, needed: tuple[str, ...]) -> bool:
    return (key in needed or key in found) and not isinstance(found.get(key), list)


def _kind(value: Any) -> str:
    """Returns the JSON type of a value that is not a list."""
    kinds = {dict: "an object", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _recognize(found: Any) -> str:
    """Returns the likely format of decoded JSON that is not a COCO annotation file, or ""."""
    if not isinstance(found, list | dict):
        return ""
    first = next(iter(found.values() if isinstance(found, dict) else found), None)
    keys = set(found) if isinstance(found, dict) else set()
    inner = set(first) if isinstance(first, dict) else set()
    if isinstance(found, list) and "score" in inner:
        return "a COCO results file"
    if isinstance(found, list) and {"image", "annotations"} <= inner:
        return "Create ML format"
    if {"shapes", "imagePath"} <= keys:
        return "LabelMe format"
    if "_via_img_metadata" in keys or {"filename", "regions"} <= inner:
        return "VGG Image Annotator format"
    return ""


def _how_to_get(spec: DatasetSpec) -> str:
    if spec.name.startswith("shapes_"):
        return "generate it with `deformable-detr shapes`, or set DETECTRON2_DATASETS to its folder"
    if spec.name.startswith(("coco_", "lvis_")):
        name = spec.name[:4].upper()
        return (
            f"place {name} there as Detectron2's documentation describes, or set DETECTRON2_DATASETS to its folder; "
            "train --train-data JSON IMAGES selects your own data"
        )
    return "correct the path"
