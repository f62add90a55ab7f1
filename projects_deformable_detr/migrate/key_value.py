"""``KEY=VALUE`` in dotted names, as detrex, mmdetection and Detectron2's LazyConfigs take them."""

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml

from ..errors import UserError
from .launchers import processes
from .rows import Reading, Source

_FLAGS = ("--cfg-options", "--config-file", "--config")
_PROGRAMS = ("train", "test", "train_net", "dist_train", "dist_test")
_ENVIRONMENT = re.compile("[A-Z][A-Z0-9_]*=.*")


def parse(source: Source, words: list[str]) -> Reading:
    """Overrides, flags, and the name of a published config among programs of a pasted line, with its number of GPUs.

    Raises:
        UserError: for a word that is none of these.
    """
    head, words = _cut(source, words)
    torch, warnings = processes(head)
    program = _stem(head[-1]) if head else ""
    found = _Found(source, [] if torch is None else [torch], list(warnings), is_dist=program.startswith("dist_"))
    while words:
        words = found.take(words)
    machines = [word.removeprefix("NNODES=") for word in head if word.startswith("NNODES=")]
    if found.is_dist and found.gpus and machines and machines[-1].isdecimal():
        found.gpus.append(int(machines[-1]))
    return Reading(found.values, found.preset, math.prod(found.gpus) if found.gpus else None, tuple(found.told))


def _cut(source: Source, words: list[str]) -> tuple[list[str], list[str]]:
    """The words up to the program, which the launcher has, and all others."""
    programs = [index for index, word in enumerate(words) if "=" not in word and _stem(word) in _PROGRAMS]
    cut = programs[-1] + 1 if programs else 0
    ours = [
        word
        for word in words[:cut]
        if _stem(word) in source.presets
        or ("=" in word and not word.startswith("-") and not _ENVIRONMENT.fullmatch(word))
    ]
    return words[:cut], ours + [word for word in words[cut:] if word != "python"]


def _stem(word: str) -> str:
    return PurePath(word).stem


@dataclass
class _Found:
    """What the words so far have told."""

    source: Source
    gpus: list[int]
    told: list[str]
    is_dist: bool
    values: dict[str, Any] = field(default_factory=dict)
    preset: str = ""

    def take(self, words: list[str]) -> list[str]:
        """Reads the first word, and its value where it has one; those that are left."""
        word, rest = words[0], words[1:]
        name, is_pair, text = word.partition("=")
        if word.startswith("-"):
            return self._flag(name, [text, *rest] if is_pair else rest, has_value=bool(is_pair))
        if is_pair:
            self.values |= dict(flatten(self.source, {name: value_of(text)}))
        elif _stem(word) in self.source.presets:
            self.preset = _stem(word)
        elif self.is_dist and word.isdecimal() and int(word) > 0:
            self.gpus.append(int(word))  # dist_train.sh CONFIG GPUS
        else:
            self._refuse(word)
        return rest

    def _flag(self, name: str, rest: list[str], has_value: bool) -> list[str]:
        flag = self.source.flags.get(name)
        if name in _FLAGS:
            return rest
        if flag is None:
            self._refuse(name)
            return rest
        if has_value and not (flag.takes or flag.may_take):
            raise UserError(f"{name}: no value follows it in {self.source.name}")
        if flag.may_take and rest and (has_value or self._is_value(rest[0])):
            self.values[flag.option] = flag.value
            if rest[0] != "auto":
                self.values[flag.may_take] = rest[0]
            return rest[1:]
        if not flag.takes:
            self.values[flag.option] = flag.value
            return rest
        if not rest or (not has_value and rest[0].startswith("-")):
            raise UserError(f"{name}: a value must follow it")
        if flag.gpus:
            if not rest[0].isdecimal() or int(rest[0]) < 1:
                raise UserError(f"{name} {rest[0]}: a whole number, 1 or more")
            self.gpus.append(int(rest[0]))
        elif flag.option:
            self.values[flag.option] = rest[0]
        else:
            self.told.append(f"{name} is ignored: it is the launcher's")
        return rest[1:]

    def _is_value(self, word: str) -> bool:
        return not (word.startswith("-") or "=" in word or word.isdecimal() or _stem(word) in self.source.presets)

    def _refuse(self, word: str) -> None:
        known = f" nor one of its flags ({', '.join(self.source.flags)})" if self.source.flags else ""
        raise UserError(
            f"{word!r} is neither KEY=VALUE nor one of {self.source.name}'s configs "
            f"({', '.join(self.source.presets)}){known}; leave it out"
        )


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
