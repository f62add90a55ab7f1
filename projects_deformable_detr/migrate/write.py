"""A translation as words for a command line, and as a YAML file."""

import ast
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .. import model_zoo
from ..checkpoint.files import write_text_atomically
from ..errors import UserError
from .translate import Translation


def as_lines(translation: Translation) -> Iterator[str]:
    """Arguments of ``train_net.py``, a pair or a flag on each line, as a shell reads them."""
    yield f"--config-file {shlex.quote(_base(translation))}"
    yield from translation.flags
    for key, value in translation.settings.items():
        yield f"{key} {_word(value)}"


def _base(translation: Translation) -> str:
    """Relative to the working directory where it lies below."""
    path = model_zoo.config_file(translation.base)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _word(value: Any) -> str:
    """One word for a shell, from which ``train_net.py`` makes the value: it takes for text what is no Python value."""
    return shlex.quote(value if isinstance(value, str) and not _is_python(value) else repr(value))


def _is_python(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True


def as_yaml(translation: Translation, folder: Path, told: str) -> str:
    """The file's text: ``_BASE_`` is relative to ``folder``, ``told`` a comment at its head."""
    base = os.path.relpath(model_zoo.config_file(translation.base), folder.resolve())
    content: dict[str, Any] = {"_BASE_": base}
    for key, value in translation.settings.items():
        *sections, name = key.split(".")
        node = content
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = list(value) if isinstance(value, tuple) else value
    comment = "".join(f"# {line}\n" for line in told.splitlines())
    return comment + yaml.safe_dump(content, sort_keys=False, default_flow_style=None)


def write_yaml(path: Path, translation: Translation, told: str, *, overwrite: bool = False) -> None:
    """Writes the file whole or not at all.

    Raises:
        UserError: if it exists, unless ``overwrite``, or cannot be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the file to write")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: --overwrite replaces it")
    try:
        write_text_atomically(path, as_yaml(translation, path.parent, told))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
