"""Interface of checkpoint formats, and tables that rename tensors in both directions."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor

State = dict[str, Tensor]
Names = Sequence[str | None]
Rule = tuple[str, str]

DROPPED = ""  # first template of a rule for tensors without a counterpart in the detector
_PLACEHOLDERS = {"i": r"\d+", "j": r"\d+", "w": "weight|bias", "x": ".+"}


class NameTable:
    """Mapping between the detector's keys and those of another project.

    Args:
        rules: pairs of templates for the detector's key and the other project's; the first match applies. ``{i}`` and
            ``{j}`` match a number, ``{w}`` matches ``weight`` or ``bias``, ``{x}`` matches any text. If a tensor has
            several names in a project, the first is used for export.
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        rules = list(rules)
        self._import_rules = [(_pattern(foreign), native) for native, foreign in rules]
        self._export_rules = [(_pattern(native), foreign) for native, foreign in rules if native != DROPPED]

    def import_state(self, state: State) -> State:
        """Renames keys of the other project to the detector's; keys without a rule are unchanged."""
        renamed = {_rename(key, self._import_rules): value for key, value in state.items()}
        renamed.pop(DROPPED, None)
        return renamed

    def export_state(self, state: State, strict: bool = True) -> State:
        """Renames the detector's keys to those of the other project.

        Raises:
            KeyError: for a key without a rule; with ``strict=False``, it is unchanged.
        """
        if unknown := [key for key in state if strict and not self.has(key)]:
            raise KeyError(unknown[0])
        return {_rename(key, self._export_rules): value for key, value in state.items()}

    def has(self, key: str) -> bool:
        """Returns whether there is a rule for one of the detector's keys."""
        return any(pattern.fullmatch(key) for pattern, _ in self._export_rules)


class Format:
    """Checkpoint format of this project, and base class of other formats.

    Args:
        name: name of the format in reports and messages.
        marks: keys, without wrapper prefixes, that identify the format.
        rules: see `NameTable`.
        classes: class names by number of classes, for files that do not store names.

    Attributes:
        is_backbone: whether its files contain an ImageNet backbone and no detector.
    """

    is_backbone = False

    def __init__(
        self, name: str, marks: Iterable[str], rules: Iterable[Rule] = (), classes: Mapping[int, Names] | None = None
    ) -> None:
        self.name, self.marks, self.table, self.classes = name, frozenset(marks), NameTable(rules), classes or {}

    def detect(self, keys: Collection[str]) -> bool:
        """Returns whether a state dict with these keys has the format."""
        return self.marks.issubset(keys)

    def import_state(self, state: State) -> State:
        """Converts a state dict to the detector's keys and layout; unknown keys are unchanged."""
        return self.table.import_state(state)


def _rename(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, target in rules:
        if match := pattern.fullmatch(key):
            return target.format(**match.groupdict())
    return key


def _pattern(template: str) -> re.Pattern[str]:
    """Compiles a template to a regular expression with a named group for each placeholder."""
    groups = {rf"\{{{name}\}}": f"(?P<{name}>{pattern})" for name, pattern in _PLACEHOLDERS.items()}
    return re.compile(re.sub(r"\\{\w\\}", lambda match: groups[match[0]], re.escape(template)))
