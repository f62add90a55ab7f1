"""The error of an unusable data set, and the list of what is wrong with it."""

from ..errors import UserError


class DatasetError(UserError):
    """A data set that cannot be used: the message names file, record and remedy."""


class Problems:
    """Gathers what is wrong with a data set, so that one error tells all of it.

    Only the first few records of each kind are kept, so that a file with a million faults costs nothing.

    Args:
        shown: how many records of a kind the message has.
    """

    def __init__(self, shown: int = 5) -> None:
        self.shown = shown
        self._kinds: dict[str, tuple[str, list[str]]] = {}  # what is wrong: remedy, first records
        self._counts: dict[str, int] = {}

    def add(self, kind: str, record: str, remedy: str) -> None:
        """Counts a fault of ``kind`` (a plural, as "boxes that are not finite") in ``record``."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        _, records = self._kinds.setdefault(kind, (remedy, []))
        if len(records) < self.shown:
            records.append(record)

    def raise_if_any(self, name: str, source: object) -> None:
        """Raises what was gathered.

        Raises:
            DatasetError: one paragraph a kind: count, first records, remedy.
        """
        if not self._kinds:
            return
        lines = [f"data set {name} ({source}) cannot be used:"]
        for kind, (remedy, records) in self._kinds.items():
            more = self._counts[kind] - len(records)
            lines.append(f"- {kind} ({self._counts[kind]}): {'; '.join(records)}{f'; and {more} more' if more else ''}")
            lines.append(f"  {remedy}")
        raise DatasetError("\n".join(lines))
