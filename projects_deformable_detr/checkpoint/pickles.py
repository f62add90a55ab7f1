"""Reads Detectron2's ``.pkl`` files, which are pickles of names and NumPy arrays, without running code.

A pickle can call any importable function. This unpickler creates only dictionaries, lists, numbers, strings and arrays
of numbers. NumPy types, which would also create arrays of objects from arbitrary bytes, are replaced with substitutes
that check type, shape and length.
"""

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

_KINDS = "fiub"  # floats, signed and unsigned integers, bool


class UnsafePickleError(pickle.UnpicklingError):
    """Raised for a pickle that contains anything other than arrays of numbers and plain values."""


class _DType:
    """Substitute for ``numpy.dtype``, which pickles construct from a string such as ``"f4"`` and two flags."""

    def __init__(self, text: Any, *_: Any) -> None:
        dtype = np.dtype(text) if isinstance(text, str) and len(text) <= 4 else None
        if dtype is None or dtype.kind not in _KINDS:
            raise UnsafePickleError(f"array of {text!r}, not of numbers")
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        """Sets NumPy's state: version, byte order, and fields that do not apply to numbers."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise UnsafePickleError("invalid state of a dtype")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Substitute for ``numpy.ndarray``, which pickles construct empty and then fill; contains a tensor."""

    def __init__(self, *_: Any) -> None:
        self.tensor = torch.zeros(0)

    def __setstate__(self, state: Any) -> None:
        """Sets NumPy's state: version, shape, dtype, whether the memory layout is column-major, and the bytes."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnsafePickleError("invalid state of an array")
        _, shape, dtype, fortran, content = state
        array = _numbers(dtype, content, shape).reshape(shape, order="F" if fortran else "C")
        try:
            self.tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except TypeError as error:
            raise UnsafePickleError(f"array of {array.dtype}, which torch does not support") from error


def _numbers(dtype: Any, content: Any, shape: Any) -> np.ndarray[Any, Any]:
    """Copies ``content`` to a flat array after checking its size against ``shape``."""
    if isinstance(content, str):  # bytes written by Python 2
        content = content.encode("latin1")
    is_valid = isinstance(dtype, _DType) and isinstance(content, bytes) and isinstance(shape, tuple)
    if not is_valid or not all(type(size) is int and size >= 0 for size in shape):
        raise UnsafePickleError("array that is not of numbers")
    if len(content) != math.prod(shape) * dtype.dtype.itemsize:
        raise UnsafePickleError(f"array of shape {shape} with {len(content)} bytes")
    return np.frombuffer(content, dtype.dtype).copy()


def _scalar(dtype: Any, content: Any = b"") -> Any:
    return _numbers(dtype, content, ()).item()


def _encode(text: Any, encoding: Any = "") -> bytes:
    """Substitute for ``codecs.encode``, which Python 3 uses to write bytes in protocols of Python 2."""
    if encoding != "latin1" or not isinstance(text, str):
        raise UnsafePickleError(f"text encoded as {encoding!r}, which weights do not contain")
    return text.encode("latin1")


class _Ignored:
    """Substitute for mmengine's ``HistoryBuffer`` and its methods, which discards all content."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # empty bytes, for Python 2
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1 and 2
    _ALLOWED |= {(_module, "_reconstruct"): _Array, (_module, "scalar"): _scalar}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise UnsafePickleError(f"refers to {module}.{name}, which weights do not contain")

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError("refers to objects outside the pickle")


def read_pickle(path: str | Path) -> Any:
    """Reads a pickle of plain values and arrays, which are converted to tensors. Python 2 strings are read as Latin-1.

    Raises:
        UnsafePickleError: for any other content, before it is executed.
        Exception: any type of exception, for a corrupt pickle.
    """
    with open(path, "rb") as file:
        return with_tensors(_Unpickler(file, encoding="latin1").load())


def safe_globals() -> list[tuple[Any, str]]:
    """Returns the substitutes as arguments of ``torch.serialization.add_safe_globals``."""
    arrays = [(target, f"{module}.{name}") for (module, name), target in _ALLOWED.items() if module.startswith("numpy")]
    # HistoryBuffer refers to its methods with getattr.
    ignored = ("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr")
    return arrays + [(_Ignored, name) for name in ignored]


def with_tensors(content: Any) -> Any:
    """Replaces the substitutes in nested dictionaries, lists and tuples with tensors."""
    if isinstance(content, _Array):
        return content.tensor
    if isinstance(content, dict):
        return {key: with_tensors(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(with_tensors(item) for item in content)
    return content
