"""``KEY=VALUE`` in dotted names, as detrex, mmdetection and Detectron2's LazyConfigs take them."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from ..errors import UserError
from .rows import Reading, Source

_FLAGS = ("--cfg-options", "--config-file", "--config")
_PROGRAMS = ("python", "train", "test", "train_net", "dist_train", "dist_test")


def parse(source: Source, words: list[str]) -> Reading:
    """Overrides, and the name of a published config among programs and flags of a pasted line.

    Raises:
        UserError: for a word that is none of these.
    """
    values: dict[str, Any] = {}
    preset = ""
    for word in words:
        name, is_pair, text = word.partition("=")
        stem = PurePath(word).stem
        if is_pair and not word.startswith("-"):
            values |= dict(flatten(source, {name: value_of(text)}))
        elif stem in source.presets:
            preset = stem
        elif word not in _FLAGS and stem not in _PROGRAMS:
            raise UserError(
                f"{word!r} is neither KEY=VALUE nor one of {source.name}'s configs ({', '.join(source.presets)}); "
                "leave flags of its programs out (the number of GPUs is our own --gpus)"
            )
    return Reading(values, preset)


def value_of(text: str) -> Any:
    """A value as Python or YAML writes it; otherwise the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def flatten(source: Source, values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted names, as deep as the rows go; items of lists are numbered, or named by their type."""
    for name, value in values.items():
        option = f"{prefix}{name}"
        below = any(row.option.startswith(f"{option}.") and row.option != f"{option}.*" for row in source.rows)
        if below and isinstance(value, Mapping):
            yield from flatten(source, value, f"{option}.")
        elif below and isinstance(value, list | tuple):
            yield from flatten(source, _numbered(value, option in source.by_type), f"{option}.")
        elif isinstance(value, Mapping) and value and all(not row.names(option) for row in source.rows):
            yield from flatten(source, value, f"{option}.")
        else:
            yield option, value


def _numbered(items: Sequence[Any], by_type: bool) -> dict[str, Any]:
    """By their places; ``by_type``, the first item of a type by that."""
    found: dict[str, Any] = {}
    for index, item in enumerate(items):
        kind = item.get("type") if by_type and isinstance(item, Mapping) else None
        found[kind if isinstance(kind, str) and kind not in found else str(index)] = item
    return found
