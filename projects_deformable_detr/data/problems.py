"""Errors of data sets."""

from collections.abc import Iterable
from itertools import islice

from ..errors import UserError

_NUM_EXAMPLES = 5  # per kind of fault


class DatasetError(UserError):
    """Raised for an unusable data set. The message names the file, the record and the remedy."""


class Problems:
    """Collects the faults of a data set, so that one error reports all of them, with a few examples of each kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, list[str]]] = {}  # kind: (remedy, examples)
        self._counts: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def add(self, kind: str, examples: str | Iterable[str], remedy: str, count: int = 1) -> None:
        """Adds ``count`` faults of one kind.

        Args:
            kind: plural noun phrase, such as "boxes that are not finite".
            examples: description of the faulty record, or an iterable of several, of which only the first are read.
            remedy: sentence that ends the message.
            count: number of faults.
        """
        self._counts[kind] = self._counts.get(kind, 0) + count
        _, kept = self._kinds.setdefault(kind, (remedy, []))
        kept += islice([examples] if isinstance(examples, str) else examples, _NUM_EXAMPLES - len(kept))

    def raise_if_any(self, name: str, source: object) -> None:
        """Raises a `DatasetError` that lists count, examples and remedy of each kind, if there is a fault."""
        if not self._kinds:
            return
        lines = [f"data set {name} ({source}) cannot be used:"]
        for kind, (remedy, examples) in self._kinds.items():
            more = self._counts[kind] - len(examples)
            shown = "; ".join(examples) + (f"; and {more} more" if more else "")
            lines += [f"- {kind} ({self._counts[kind]}): {shown}", f"  {remedy}"]
        raise DatasetError("\n".join(lines))
