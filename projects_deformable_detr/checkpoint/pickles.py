"""Detectron2's ``.pkl`` files: pickles of names and NumPy arrays, read without running code.

A pickle is a program, which may call whatever it can import. This reader lets it make dictionaries, lists, numbers,
strings and arrays of numbers, and nothing else. NumPy's own types are not handed to it: they would make an array of
objects out of any bytes. What it gets in their place checks type, shape and length before an array is made.
"""

import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

_KINDS = "fiub"  # floats, signed and unsigned integers, bool


class RefusedPickleError(pickle.UnpicklingError):
    """A pickle that names anything but arrays and plain values."""


class _DType:
    """Stands for ``numpy.dtype``; called as pickles call it, with ``"f4"`` and two flags."""

    def __init__(self, text: Any, *_: Any) -> None:
        self.dtype = _number_type(text)

    def __setstate__(self, state: Any) -> None:
        """NumPy's: version, byte order, then what types of numbers do not have."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise RefusedPickleError("it has a damaged type of numbers")
        self.dtype = self.dtype.newbyteorder(state[1])


def _number_type(text: Any) -> np.dtype[Any]:
    dtype = np.dtype(text) if isinstance(text, str) and len(text) <= 4 else None
    if dtype is None or dtype.kind not in _KINDS:
        raise RefusedPickleError(f"it has an array of {text!r}, not of numbers")
    return dtype


class _Array:
    """Stands for an array, which a pickle makes empty and fills afterwards."""

    def __init__(self, *_: Any) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        """NumPy's: version, shape, type, whether columns come first, and the numbers' bytes."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise RefusedPickleError("it has a damaged array")
        _, shape, kind, by_columns, content = state
        self.array = _numbers(kind, content, shape).reshape(shape, order="F" if by_columns else "C")


def _numbers(kind: Any, content: Any, shape: Any) -> np.ndarray[Any, Any]:
    """``content`` as numbers, copied; as many as ``shape`` says."""
    if isinstance(content, str):  # how Python 3 reads the bytes of Python 2
        content = content.encode("latin1")
    sizes = shape if isinstance(shape, tuple) else (None,)
    is_sound = isinstance(kind, _DType) and isinstance(content, bytes)
    if not is_sound or not all(type(size) is int and size >= 0 for size in sizes):
        raise RefusedPickleError("it has an array that is not of numbers")
    if len(content) != math.prod(sizes) * kind.dtype.itemsize:
        raise RefusedPickleError(f"it has an array of shape {shape} with {len(content)} bytes")
    return np.frombuffer(content, kind.dtype).copy()


def _scalar(kind: Any, content: Any = b"") -> Any:
    return _numbers(kind, content, ()).item()


def _encode_bytes(text: Any, encoding: Any = "") -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if encoding != "latin1" or not isinstance(text, str):
        raise RefusedPickleError(f"it encodes text as {encoding!r}, which weights do not need")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How Python 3 writes empty bytes for Python 2: as a call without arguments."""
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode_bytes,
    ("__builtin__", "bytes"): _no_bytes,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before NumPy 2, and since
    _ALLOWED |= {(_module, "_reconstruct"): _Array, (_module, "scalar"): _scalar}


class _Nothing:
    """Stands for mmengine's history of a logged number and for what that refers to: takes anything, keeps nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def stand_ins() -> list[tuple[Any, str]]:
    """What ``torch.load``'s safe mode may make of NumPy's arrays, and of files that mmengine wrote while it trained."""
    arrays = [(target, f"{module}.{name}") for (module, name), target in _ALLOWED.items() if module.startswith("numpy")]
    # By getattr the history refers to its own methods.
    unwanted = ("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr")
    return arrays + [(_Nothing, name) for name in unwanted]


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name."""
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise RefusedPickleError(f"it names {module}.{name}, which weights do not need")

    def persistent_load(self, pid: Any) -> Any:
        """Objects from outside the pickle: there are none."""
        raise RefusedPickleError("it refers to objects outside itself")


def read_pickle(path: str | Path) -> Any:
    """The content of a pickle of plain values and arrays; Python 2's strings are read as Latin-1.

    Raises:
        RefusedPickleError: for a pickle that names anything else, or arrays of anything but numbers. None of it has run
            then.
        Exception: of any kind, for a damaged one.
    """
    with open(path, "rb") as file:
        return with_arrays(_Reader(file, encoding="latin1").load())


def with_arrays(content: Any) -> Any:
    """Arrays in place of what stood for them."""
    if isinstance(content, _Array):
        return content.array
    if isinstance(content, dict):
        return {key: with_arrays(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(with_arrays(item) for item in content)
    return content


def as_tensors(arrays: Mapping[Any, Any]) -> dict[str, Any]:
    """NumPy arrays as tensors, in this machine's byte order; other values as they are.

    Raises:
        RefusedPickleError: naming an array of what no tensor can have.
    """
    return {
        str(key): _as_tensor(key, value) if isinstance(value, np.ndarray) else value for key, value in arrays.items()
    }


def _as_tensor(key: Any, array: np.ndarray[Any, Any]) -> torch.Tensor:
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except TypeError as error:
        raise RefusedPickleError(
            f"{key} is an array of {array.dtype}, not of numbers that a tensor can have"
        ) from error
