"""Loads the compiled libraries, which are next to this file."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
# Detects libraries of another version: schemas are registered in the library, and Python code depends on them.
FUSED_BACKWARD_ARGUMENTS = 10


def find_library(stem: str = "_C") -> Path | None:
    """Returns the path of the CPU library ("_C") or the CUDA library ("_C_cuda"), or None if it was never built."""
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
            "Rebuild it, or remove the file to use the slow reference."
        ) from error


def load_libraries() -> dict[str, Path]:
    """Loads the compiled libraries into PyTorch's dispatcher and returns their paths by device type.

    Returns an empty dict if nothing was built or MS_DEFORM_ATTN_REFERENCE=1 is set; "cuda" is missing if no CUDA
    kernels were built or this torch has no CUDA.

    Raises:
        ImportError: If a library exists but cannot be loaded, registers no operator, or was built from another version.
    """
    path = find_library()
    if path is None or os.environ.get("MS_DEFORM_ATTN_REFERENCE", "0") not in ("", "0"):
        return {}
    _load(path)
    if not hasattr(torch.ops.ms_deform_attn, "forward"):
        raise ImportError(f"ms_deform_attn: {path} registers no operator; rebuild it")
    operators = torch.ops.ms_deform_attn
    arguments = len(operators.fused_backward.default._schema.arguments)
    if arguments != FUSED_BACKWARD_ARGUMENTS or not hasattr(operators, "dropout"):
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
    """Returns whether a compiled kernel exists for a device type; if not, warns once that the reference is used."""
    if device_type in LIBRARIES or (device_type == "meta" and LIBRARIES):
        return True
    warn_reference(device_type)
    return False


@functools.cache
def warn_reference(device_type: str) -> None:
    """Warns once per process and device type that the reference is used instead of the compiled operator."""
    built = "no compiled library" if not LIBRARIES else f"the compiled library has no kernels for {device_type}"
    warnings.warn(
        f"ms_deform_attn: {built}; the plain PyTorch reference is used, which is many times slower. Build it with "
        "`pip install ./ops` (needs a C++ compiler; nvcc for CUDA); `python -m ms_deform_attn` prints details.",
        RuntimeWarning,
        stacklevel=4,
    )
