"""Tables of names that are read in both directions: another project's key to ours, and ours to theirs.

A rule is a pair of templates, ours first. ``{i}`` stands for a number, ``{w}`` for ``weight`` or ``bias``, ``{x}`` for
whatever is left. Where a project has had several names for one thing, the first rule is the one that is written.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

State = dict[str, Tensor]
Rule = tuple[str, str]

# What a project stores twice, or beside the model: recognised, and left out.
DROPPED = ""

_PLACEHOLDERS = {"i": r"\d+", "j": r"\d+", "w": "weight|bias", "x": ".+"}


class NameTable:
    """Rules in the order of trial."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        rules = list(rules)
        self._to_ours = [(_pattern(theirs), ours) for ours, theirs in rules]
        self._to_theirs = [(_pattern(ours), theirs) for ours, theirs in rules if ours != DROPPED]

    def to_ours(self, state: Mapping[str, Tensor]) -> State:
        """Renamed to ours; what no rule knows keeps its name, so that whoever loads it can tell of it."""
        renamed = ((_rename(key, self._to_ours), value) for key, value in state.items())
        return {key: value for key, value in renamed if key != DROPPED}

    def to_theirs(self, state: Mapping[str, Tensor], strict: bool = True) -> State:
        """Renamed from ours.

        Raises:
            KeyError: with ``strict``, for a key that they have no name for; without, it keeps its name.
        """
        for key in state:
            if strict and not self.has(key):
                raise KeyError(key)
        return {_rename(key, self._to_theirs): value for key, value in state.items()}

    def has(self, key: str) -> bool:
        """Whether they have a name for a key of ours."""
        return any(pattern.fullmatch(key) for pattern, _ in self._to_theirs)


def _rename(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, target in rules:
        match = pattern.fullmatch(key)
        if match:
            return target.format(**match.groupdict())
    return key


def _pattern(template: str) -> re.Pattern[str]:
    """A template's regular expression, with a group for each placeholder."""
    parts = re.split(r"\{(\w)\}", template)  # text, placeholder, text, …
    return re.compile(
        "".join(
            f"(?P<{part}>{_PLACEHOLDERS[part]})" if index % 2 else re.escape(part) for index, part in enumerate(parts)
        )
    )
