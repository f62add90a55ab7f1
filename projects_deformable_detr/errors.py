"""Exceptions of the project, checks of arguments that raise them, and the handler of all command lines."""

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable

# Errors of the file system that the user can correct.
_FILE_ERRORS = {
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOSPC,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip


class UserError(ValueError):
    """Raised for invalid user input.

    The message names the file, record or config key, and the remedy. Command lines print it without a traceback.
    """

    def __init__(self, message: str = "") -> None:
        # DataLoader raises the error of a worker again, with the text of its traceback as the message.
        pattern = rf"Caught \w+ in DataLoader worker .*^{type(self).__module__}\.\w+: (.*)"
        worker = re.match(pattern, message, re.MULTILINE | re.DOTALL)
        super().__init__(worker[1].rstrip() if worker else message)


class Interrupted(BaseException):
    """Raised when a signal ends a run. Not an `Exception`, which trainers report as a failure.

    Attributes:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int]]:
        return type(self), (self.signum,)


def run_command(name: str, command: Callable[[], object]) -> int:
    """Runs a command line; prints errors that the user can correct to stderr without a traceback.

    Returns:
        The exit status: 0; 2 for invalid input, files that cannot be read or written, and missing packages; 1 for
        losses that are not finite; 128 and the signal's number after a signal.
    """
    _escape_characters()
    try:
        command()
    except (UserError, ArgumentError) as error:
        return _fail(name, error, 2)
    except FloatingPointError as error:
        return _fail(name, error, 1)
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            raise
        where = f": {error.filename}" if error.filename else ""
        return _fail(name, f"{error.strerror}{where}", 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", __package__):
            raise
        return _fail(name, f"needs the package {package}, which is not installed", 2)
    except KeyboardInterrupt:
        return _fail(name, Interrupted(signal.SIGINT), 128 + signal.SIGINT)
    except Interrupted as error:
        return _fail(name, error, 128 + error.signum)
    return 0


def _escape_characters() -> None:
    """Makes this process and its children print characters that the terminal cannot encode as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:backslashreplace"


def _fail(name: str, message: object, status: int) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return status


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
