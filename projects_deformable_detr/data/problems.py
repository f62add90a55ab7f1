"""Problems found in data sets, reported as errors or, if accepted, as warnings."""

from collections.abc import Iterable
from itertools import islice

from ..errors import UserError

_NUM_EXAMPLES = 5  # per kind of problem


class DatasetError(UserError):
    """Raised for an invalid data set. The message names the file, the record and the remedy."""


class IntensityError(DatasetError):
    """Raised for an image whose gray values exceed the range of their type."""


class Problems:
    """Collects the problems of a data set and reports them in a single error, with a few examples of each kind.

    Args:
        source: data set and file, for messages.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._errors: dict[str, _Problem] = {}
        self._warnings: dict[str, _Problem] = {}

    def __bool__(self) -> bool:
        """Whether there are errors."""
        return bool(self._errors)

    def add(self, kind: str, examples: str | Iterable[str], remedy: str, count: int = 1) -> None:
        """Adds ``count`` problems of one kind to the error.

        Args:
            kind: plural noun phrase, such as "boxes that are not finite".
            examples: description of the invalid record, or an iterable of several; only the first few are used.
            remedy: sentence that ends the message.
            count: number of problems.
        """
        self._errors.setdefault(kind, _Problem(remedy)).add(examples, count)

    def warn(self, kind: str, examples: str | Iterable[str], consequence: str, count: int = 1) -> None:
        """Adds a warning about ``count`` accepted problems of one kind; ``consequence`` ends the message."""
        self._warnings.setdefault(kind, _Problem(consequence)).add(examples, count)

    def raise_if_any(self) -> None:
        """Raises a `DatasetError` with the count, examples and remedy of each kind, if there are any errors."""
        if self._errors:
            lines = [f"{self.source} cannot be used:"]
            for kind, problem in self._errors.items():
                lines += [f"- {problem.describe(kind)}", f"  {problem.sentence}"]
            raise DatasetError("\n".join(lines))

    def warnings(self) -> tuple[str, ...]:
        """Returns one message per kind of accepted problem."""
        return tuple(
            f"{self.source}: {problem.describe(kind)}. {problem.sentence}" for kind, problem in self._warnings.items()
        )


class _Problem:
    """Number and examples of one kind of problem."""

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
