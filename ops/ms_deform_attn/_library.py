"""Finds and loads the compiled library next to this file, and says what became of it."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent


def find_library() -> Path | None:
    """Path of the compiled library, or None if none was built."""
    for name in ("_C.abi3.so", "_C.pyd", "_C.so"):
        if (FOLDER / name).is_file():
            return FOLDER / name
    return None


def load_library() -> Path | None:
    """Loads the compiled library into PyTorch's dispatcher.

    Returns its path, or None if it was never built or MS_DEFORM_ATTN_REFERENCE=1 asks for the reference.

    Raises:
        ImportError: the library is there but cannot be loaded.
    """
    if os.environ.get("MS_DEFORM_ATTN_REFERENCE", "0") not in ("", "0"):
        return None
    path = find_library()
    if path is None:
        return None
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        raise ImportError(
            f"ms_deform_attn: the compiled library {path} cannot be loaded under torch {torch.__version__} "
            f"(torch >= 2.11 is needed) and Python {sys.version.split()[0]}: {error}. "
            "Rebuild it, or remove the file to run the slow reference."
        ) from error
    if not hasattr(torch.ops.ms_deform_attn, "forward"):
        raise ImportError(f"ms_deform_attn: {path} registers no operator; rebuild it")
    return path


LIBRARY = load_library()


@functools.cache
def warn_reference() -> None:
    """Says once per process that the reference runs instead of the compiled operator."""
    warnings.warn(
        "ms_deform_attn: no compiled library; the plain PyTorch reference runs, which is many times slower. "
        "Build it with `pip install ./ops` (needs a C++ compiler).",
        RuntimeWarning,
        stacklevel=3,
    )
