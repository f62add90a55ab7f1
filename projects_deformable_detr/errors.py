"""Exceptions, argument checks, and error handling of command lines."""

import dataclasses
import difflib
import errno
import functools
import io
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, get_args, get_origin, get_type_hints

# Errors of the file system that the user can correct.
_FILE_ERRORS = {
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOSPC,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip

# Optional dependencies of pyproject.toml, by import name.
_EXTRAS = {
    "export": ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "torchao"),
    "standalone": ("lightning",),
    "report": ("hotcoco", "jinja2", "matplotlib"),
    "track": ("supervision", "trackers"),
    "lvis": ("faster_coco_eval",),
    "serve": ("fastapi", "uvicorn", "prometheus_client", "pydantic", "python_multipart"),
}


class UserError(ValueError):
    """Raised for invalid user input.

    The message contains the file, record or config key, and the remedy. Command lines print it without a traceback.
    """

    def __init__(self, message: str = "") -> None:
        # DataLoader re-raises errors of workers with a traceback as the message.
        pattern = rf"Caught \w+ in DataLoader worker .*^{type(self).__module__}\.\w+: (.*)"
        worker = re.match(pattern, message, re.MULTILINE | re.DOTALL)
        super().__init__(worker[1].rstrip() if worker else message)


class Interrupted(BaseException):
    """Raised when a signal ends a run. It is not an `Exception`, which trainers would report as a failure.

    Attributes:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int]]:
        return type(self), (self.signum,)


def run_command(name: str, command: Callable[[], object]) -> int:
    """Runs a command, and prints errors that the user can correct to stderr without a traceback.

    Returns:
        The exit status: the return value of ``command``, or 0; 2 for invalid input, files that cannot be read or
        written, and missing packages; 1 for non-finite losses; 128 plus the signal number after a signal.
    """
    _escape_characters()
    try:
        status = command()
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
        return _fail(name, missing_package(package), 2)
    except KeyboardInterrupt:
        return _fail(name, Interrupted(signal.SIGINT), 128 + signal.SIGINT)
    except Interrupted as error:
        return _fail(name, error, 128 + error.signum)
    return status if isinstance(status, int) else 0


def missing_package(package: str) -> str:
    """Returns the error message for a missing package, with the remedy for dependencies of the project."""
    remedy = ""
    if package == "ms_deform_attn":
        remedy = ": run pip install ./ops in the checkout, or install projects-deformable-detr-ops"
    for extra, packages in _EXTRAS.items():
        if package in packages:
            remedy = f": pip install 'projects-deformable-detr[{extra}]'"
    return f"requires the package {package}, which is not installed{remedy}"


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str:
    """Returns a suggestion of the most similar words to append to an error message, or "" if there are none."""
    near = difflib.get_close_matches(word, list(known), n=count)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _escape_characters() -> None:
    """Escapes characters that the terminal cannot display, in the output of this process and its children."""
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
        argument: name of the argument, which ``config/`` replaces with the config key.
        problem: remainder of the message, such as ``"must be in [0, 1], got 2"``.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument} {problem}")
        self.argument = argument
        self.problem = problem

    def __reduce__(self) -> tuple[type["ArgumentError"], tuple[str, str]]:
        return type(self), (self.argument, self.problem)


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of a number, or of each element of a sequence; it never contains NaN.

    Annotation of fields of a dataclass or arguments of a class or function, for `check_ranges`.

    Attributes:
        low, high: inclusive bounds; None: no bound. Infinity is in the range only if ``high`` is infinite.
        above, below: exclusive bounds.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (math.isfinite(value) or self.high == value)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.low, "at most": self.high, "above": self.above, "below": self.below}
        stated = [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]
        if len(stated) < 2:
            return stated[0] if stated else "finite"
        left = f"[{self.low}" if self.low is not None else f"({self.above}"
        right = f"{self.high}]" if self.high is not None else f"{self.below})"
        return f"in {left}, {right}"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Set of allowed numbers; used like `Range`."""

    values: tuple[float, ...]

    def __contains__(self, value: float) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


@dataclasses.dataclass(frozen=True)
class Annotation:
    """Range and type of a field or argument: integer or float, number or sequence, and whether None is allowed."""

    range: Range | OneOf
    is_integer: bool = True
    is_sequence: bool = False
    is_optional: bool = False

    def __str__(self) -> str:
        return f"{'integer' if self.is_integer else 'number'}{'s' * self.is_sequence}, {self.range}"

    def problem(self, value: object) -> str | None:
        """Returns an error message without the name, such as ``"must be in [0, 1], got 2"``; None for valid values."""
        if value is None and self.is_optional:
            return None
        if self.is_sequence and (isinstance(value, str) or not isinstance(value, Sequence)):
            return f"must be a sequence of numbers, got {value!r}"
        elements: Any = value if self.is_sequence else (value,)
        kind = Integral if self.is_integer else Real
        if any(isinstance(item, bool) or not isinstance(item, kind) for item in elements):
            wanted = "an integer" if self.is_integer else "a number"
        elif any(item not in self.range for item in elements):
            wanted = str(self.range)
        else:
            return None
        return f"must be {wanted}{' in each element' * self.is_sequence}, got {value!r}"


@functools.cache
def annotations(owner: Callable[..., Any]) -> Mapping[str, Annotation]:
    """Returns the range of each annotated field of a dataclass, or argument of a class or function."""
    is_module = isinstance(owner, type) and not dataclasses.is_dataclass(owner)
    hints = get_type_hints(vars(owner)["__init__"] if is_module else owner, include_extras=True)
    found = {}
    for name, hint in hints.items():
        for limits in getattr(hint, "__metadata__", ()):
            kinds = hint.__origin__, *get_args(hint.__origin__)
            found[name] = Annotation(limits, float not in kinds, get_origin(kinds[0]) is tuple, type(None) in kinds)
    return found


def check_ranges(owner: Callable[..., Any], values: Mapping[str, object]) -> None:
    """Raises `ArgumentError` for the first value outside its annotated range.

    Args:
        owner: dataclass, or class or function with annotated arguments.
        values: value of each field or argument.
    """
    for name, annotation in annotations(owner).items():
        if problem := annotation.problem(values[name]):
            raise ArgumentError(name, problem)


def check_choice(argument: str, value: str, choices: Iterable[str]) -> None:
    """Raises `ArgumentError` if ``value`` is not one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise ArgumentError(argument, f"must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_features(argument: str, names: Iterable[str], available: Iterable[str]) -> None:
    """Raises `ArgumentError` if ``names`` is empty or contains a feature map that the backbone lacks."""
    names, available = list(names), list(available)
    if not names or not set(names) <= set(available):
        raise ArgumentError(argument, f"must be a non-empty subset of the backbone's features {available}, got {names}")
