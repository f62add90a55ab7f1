"""Finds and loads the compiled library next to this file, and says what became of it."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
# What tells a library of another version apart: the schemas are registered in it, and called from here.
FUSED_BACKWARD_ARGUMENTS = 10


def find_library(stem: str = "_C") -> Path | None:
    """Path of a compiled library, or None if it was never built. "_C" has the CPU kernels, "_C_cuda" the CUDA ones."""
    for suffix in (".abi3.so", ".so"):
        if (FOLDER / (stem + suffix)).is_file():
            return FOLDER / (stem + suffix)
    return None


def _load(path: Path) -> None:
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise ImportError(
            f"ms_deform_attn: the compiled library {path} cannot be loaded under torch {torch.__version__} "
            f"(torch >= 2.11 is needed) and Python {sys.version.split()[0]}: {cause}. "
            "Rebuild it, or remove the file to run the slow reference."
        ) from error


def load_libraries() -> dict[str, Path]:
    """Loads the compiled libraries into PyTorch's dispatcher.

    Returns device type -> path. Empty if nothing was built or MS_DEFORM_ATTN_REFERENCE=1 asks for the reference;
    without "cuda" if no CUDA kernels were built or this torch has no CUDA.

    Raises:
        ImportError: a library is there but cannot be loaded, or registers nothing.
    """
    path = find_library()
    if path is None or os.environ.get("MS_DEFORM_ATTN_REFERENCE", "0") not in ("", "0"):
        return {}
    _load(path)
    if not hasattr(torch.ops.ms_deform_attn, "forward"):
        raise ImportError(f"ms_deform_attn: {path} registers no operator; rebuild it")
    if len(torch.ops.ms_deform_attn.fused_backward.default._schema.arguments) != FUSED_BACKWARD_ARGUMENTS:
        raise ImportError(
            f"ms_deform_attn: {path} was built from another version of the source than this Python code; rebuild it "
            "(make setup, or pip install ./ops)"
        )
    cuda = find_library("_C_cuda")
    if cuda is None or torch.version.cuda is None:
        return {"cpu": path}
    _load(cuda)
    return {"cpu": path, "cuda": cuda}


LIBRARIES = load_libraries()


def use_kernel(device_type: str) -> bool:
    """Whether a compiled kernel serves tensors on this type of device; if not, says once that the reference runs."""
    if device_type in LIBRARIES or (device_type == "meta" and LIBRARIES):
        return True
    warn_reference(device_type)
    return False


@functools.cache
def warn_reference(device_type: str) -> None:
    """Says once per process and type of device that the reference runs instead of the compiled operator."""
    built = "no compiled library" if not LIBRARIES else f"the compiled library has no kernels for {device_type}"
    warnings.warn(
        f"ms_deform_attn: {built}; the plain PyTorch reference runs, which is many times slower. Build it with "
        "`pip install ./ops` (needs a C++ compiler; nvcc for CUDA); `python -m ms_deform_attn` tells more.",
        RuntimeWarning,
        stacklevel=4,
    )
