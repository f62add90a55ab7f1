"""Exceptions of the project, and checks of arguments that raise them."""

from collections.abc import Iterable


class UserError(ValueError):
    """Raised for invalid user input.

    The message names the file, record or config key, and the remedy. Command lines print it without a traceback.
    """


class ArgumentError(ValueError):
    """Raised for an invalid argument of a function or class below ``config/``.

    Attributes:
        argument: name of the argument; ``config/`` replaces it with the config key.
        problem: rest of the message, such as ``"must be in [0, 1], got 2"``.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument} {problem}")
        self.argument = argument
        self.problem = problem

    def __reduce__(self) -> tuple[type["ArgumentError"], tuple[str, str]]:
        return type(self), (self.argument, self.problem)


def check_at_least(argument: str, value: int, minimum: int) -> None:
    """Raises `ArgumentError` if ``value`` is below ``minimum``."""
    if value < minimum:
        raise ArgumentError(argument, f"must be at least {minimum}, got {value}")


def check_choice(argument: str, value: str, choices: Iterable[str]) -> None:
    """Raises `ArgumentError` if ``value`` is not one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise ArgumentError(argument, f"must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_features(argument: str, names: Iterable[str], available: Iterable[str]) -> None:
    """Raises `ArgumentError` if ``names`` is empty or has a feature map that the backbone lacks."""
    names, available = list(names), list(available)
    if not names or not set(names) <= set(available):
        raise ArgumentError(argument, f"must be a non-empty subset of the backbone's features {available}, got {names}")
