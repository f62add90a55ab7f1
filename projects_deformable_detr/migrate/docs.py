"""The tables of docs/migrating.md, between their marks, from the rows."""

import re
from pathlib import Path
from typing import Any

from ..checkpoint.files import write_text_atomically
from ..errors import UserError
from .rows import NOT_THERE, Row, Source
from .sources import SOURCES

_HEAD = "| theirs | default: DETR | Deformable DETR | ours | value | |\n|---|---|---|---|---|---|\n"
_LONGEST = 48


def table(source: Source) -> str:
    """A source's options in Markdown."""
    return _HEAD + "\n".join(_line(source, row) for row in source.rows) + "\n"


def presets(source: Source) -> str:
    """Its published configs, and how many GPUs each is taken to be for."""
    from .translate import translate

    lines = ["| `--config` | GPUs | nearest of ours | keys that differ |", "|---|---|---|---|"]
    for name, preset in source.presets.items():
        found = translate(source, name, {})
        keys = ", ".join(f"`{key}`" for key in found.settings) or "–"
        lines.append(f"| `{name}` | {preset.gpus} | `{found.base}` | {keys} |")
    return "\n".join(lines) + "\n"


def _line(source: Source, row: Row) -> str:
    option = f"`{source.display(row.option)}`" if row.option else "(no option)"
    keys = "<br>".join(f"`{key}`" for key in row.keys) or "none"
    value = row.change.text if row.change else ("the same" if row.keys else "")
    note = row.note
    if row.fixed:
        note = "; ".join(part for part in ("another value is refused", row.note) if part)
    if row.only_given and not note:
        note = "where it is named"
    return f"| {option} | {_value(row.detr)} | {_value(row.deformable)} | {keys} | {value} | {note} |"


def _value(value: Any) -> str:
    if value is NOT_THERE:
        return "–"
    text = repr(value)
    return f"`{text}`" if len(text) <= _LONGEST else f"`{text[:_LONGEST]}…`"


def renew(text: str) -> str:
    """The document with its tables as the code has them.

    Raises:
        UserError: if a source's marks are missing.
    """
    for source in SOURCES.values():
        for kind, make in (("options", table), ("configs", presets)):
            begin, end = f"<!-- {kind} of {source.name} -->\n", f"<!-- end of {kind} -->"
            pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
            new = begin + make(source) + end
            text, count = pattern.subn(lambda _, new=new: new, text)  # type: ignore[misc]
            if count != 1:
                raise UserError(f"the document has {count} tables between {begin.strip()} and {end}: it needs one")
    return text


def write(path: Path) -> None:
    """Renews a document in place.

    Raises:
        UserError: if it is not there, or as `renew`.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such document")
    write_text_atomically(path, renew(path.read_text(encoding="utf-8")))
