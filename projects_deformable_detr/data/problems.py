"""Errors of data sets."""

from collections.abc import Iterable
from itertools import islice

from ..errors import UserError


class DatasetError(UserError):
    """Raised for an unusable data set; the message names the file, the record and the remedy."""


class Problems:
    """Collects the faults of a data set, so that one error reports all of them.

    Only the first examples of each kind are kept.

    Args:
        num_examples: number of examples per kind in the message.
    """

    def __init__(self, num_examples: int = 5) -> None:
        self.num_examples = num_examples
        self._kinds: dict[str, tuple[str, list[str]]] = {}  # kind: (remedy, examples)
        self._counts: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def add(self, kind: str, examples: str | Iterable[str], remedy: str, count: int = 1) -> None:
        """Counts ``count`` faults of one kind.

        Args:
            kind: plural noun phrase, such as "boxes that are not finite".
            examples: the faulty record, or an iterable of faulty records, of which only the first are read.
            remedy: sentence for the end of the message.
            count: number of faults.
        """
        self._counts[kind] = self._counts.get(kind, 0) + count
        _, kept = self._kinds.setdefault(kind, (remedy, []))
        kept += islice([examples] if isinstance(examples, str) else examples, self.num_examples - len(kept))

    def raise_if_any(self, name: str, source: object) -> None:
        """Reports all faults.

        Raises:
            DatasetError: if there is a fault; one paragraph per kind with count, examples and remedy.
        """
        if not self._kinds:
            return
        lines = [f"data set {name} ({source}) cannot be used:"]
        for kind, (remedy, examples) in self._kinds.items():
            more = self._counts[kind] - len(examples)
            shown = "; ".join(examples) + (f"; and {more} more" if more else "")
            lines += [f"- {kind} ({self._counts[kind]}): {shown}", f"  {remedy}"]
        raise DatasetError("\n".join(lines))
