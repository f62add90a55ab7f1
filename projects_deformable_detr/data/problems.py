"""Faults of data sets, reported as errors or, if they are accepted, as warnings."""

from collections.abc import Iterable
from itertools import islice

from ..errors import UserError

_NUM_EXAMPLES = 5  # per kind of fault


class DatasetError(UserError):
    """Raised for an unusable data set. The message names the file, the record and the remedy."""


class IntensityError(DatasetError):
    """The grey values of an image exceed the range of their type."""


class Problems:
    """Collects the faults of a data set and reports them in a single error, with a few examples of each kind.

    Args:
        source: data set and file, for messages.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._errors: dict[str, _Fault] = {}
        self._warnings: dict[str, _Fault] = {}

    def __bool__(self) -> bool:
        """Whether there is an error."""
        return bool(self._errors)

    def add(self, kind: str, examples: str | Iterable[str], remedy: str, count: int = 1) -> None:
        """Adds ``count`` faults of one kind to the error.

        Args:
            kind: plural noun phrase, such as "boxes that are not finite".
            examples: description of the faulty record, or an iterable of several, of which only the first few are used.
            remedy: sentence that ends the message.
            count: number of faults.
        """
        self._errors.setdefault(kind, _Fault(remedy)).add(examples, count)

    def warn(self, kind: str, examples: str | Iterable[str], consequence: str, count: int = 1) -> None:
        """Adds ``count`` faults of one kind that are accepted; ``consequence`` ends the warning."""
        self._warnings.setdefault(kind, _Fault(consequence)).add(examples, count)

    def raise_if_any(self) -> None:
        """Raises a `DatasetError` with the count, examples and remedy of each kind, if there are any errors."""
        if self._errors:
            lines = [f"{self.source} cannot be used:"]
            for kind, fault in self._errors.items():
                lines += [f"- {fault.describe(kind)}", f"  {fault.sentence}"]
            raise DatasetError("\n".join(lines))

    def warnings(self) -> tuple[str, ...]:
        """Returns one message per kind of accepted fault."""
        return tuple(
            f"{self.source}: {fault.describe(kind)}. {fault.sentence}" for kind, fault in self._warnings.items()
        )


class _Fault:
    """Number and examples of one kind of fault."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        self.count = 0
        self.examples: list[str] = []

    def add(self, examples: str | Iterable[str], count: int) -> None:
        self.count += count
        self.examples += islice(
            [examples] if isinstance(examples, str) else examples, _NUM_EXAMPLES - len(self.examples)
        )

    def describe(self, kind: str) -> str:
        more = self.count - len(self.examples)
        return f"{kind} ({self.count}): " + "; ".join(self.examples) + (f"; and {more} more" if more else "")
