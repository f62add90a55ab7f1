"""Detectron2's ``.pkl`` files: pickles of names and NumPy arrays, read without running code.

A pickle is a program, which may call whatever it can import. This reader lets it make dictionaries, lists, numbers,
strings and NumPy arrays of numbers, and nothing else.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch


class RefusedPickleError(pickle.UnpicklingError):
    """A pickle that names anything but arrays and plain values."""


def _encode_bytes(text: str, encoding: str = "") -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise RefusedPickleError(f"it encodes text as {encoding!r}, which weights do not need")
    return text.encode(encoding)


_NUMPY_CORE = ("numpy.core.multiarray", "numpy._core.multiarray")  # before NumPy 2, and since
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode_bytes,
}
# The functions by which NumPy rebuilds an array and a single number, of this NumPy whatever the file says.
_REBUILDERS = {
    "_reconstruct": np.zeros(1).__reduce__()[0],
    "scalar": np.float64(0).__reduce__()[0],
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name."""
        if module in _NUMPY_CORE and name in _REBUILDERS:
            return _REBUILDERS[name]
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise RefusedPickleError(f"it names {module}.{name}, which weights do not need")

    def persistent_load(self, pid: Any) -> Any:
        """Objects from outside the pickle: there are none."""
        raise RefusedPickleError("it refers to objects outside itself")


def read_pickle(path: str | Path) -> Any:
    """The content of a pickle of plain values and arrays; Python 2's strings are read as Latin-1.

    Raises:
        RefusedPickleError: for a pickle that names anything else. None of it has run then.
        Exception: of any kind, for a damaged one.
    """
    with open(path, "rb") as file:
        return _Reader(file, encoding="latin1").load()


def as_tensors(arrays: dict[str, Any]) -> dict[str, Any]:
    """NumPy arrays of numbers as tensors; other values as they are."""
    return {
        str(key): torch.from_numpy(np.array(value))  # a copy: what a pickle holds may not be writable
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub"
        else value
        for key, value in arrays.items()
    }
