"""``python -m ms_deform_attn``: prints which libraries were built and which implementations are used."""

from __future__ import annotations

import os
import platform

import torch

from . import __version__
from .layers import onednn_is_faster
from .library import LIBRARIES, find_library


def cpu_path() -> str:
    """Describes the implementation used on the CPU, and why."""
    if "cpu" not in LIBRARIES:
        if find_library() is None:
            return "reference, because no library was built (no compiler, or no torch, at installation)"
        return "reference, because MS_DEFORM_ATTN_REFERENCE is set"
    wanted = os.environ.get("MS_DEFORM_ATTN_ISA")
    why = "selected by MS_DEFORM_ATTN_ISA" if wanted else "the best for this processor"
    return f"compiled, {torch.ops.ms_deform_attn.cpu_isa()} instructions ({why})"


def cuda_path() -> str:
    """Describes the implementation used on CUDA, and why."""
    if "cuda" in LIBRARIES:
        return "compiled" if torch.cuda.is_available() else "compiled, but this machine has no usable GPU"
    if find_library("_C_cuda") is None:
        return "reference, because no CUDA library was built (no GPU, no nvcc, a torch without CUDA, or FORCE_CUDA=0)"
    return "reference, because this torch has no CUDA" if torch.version.cuda is None else "reference"


def main() -> None:
    print(f"ms_deform_attn {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    for stem, content in (("_C", "CPU kernels"), ("_C_cuda", "CUDA kernels")):
        path = find_library(stem)
        print(f"{content}: {path if path else 'not built'}")
    print(f"CPU implementation: {cpu_path()}")
    print(f"CUDA implementation: {cuda_path()}")
    faster = "oneDNN" if onednn_is_faster() else "the BLAS library of PyTorch"
    why = "selected by MS_DEFORM_ATTN_ONEDNN" if os.environ.get("MS_DEFORM_ATTN_ONEDNN") else "measured"
    print(f"linear layers in float32 on the CPU: {faster} ({why})")
    print(f"threads: {torch.get_num_threads()}")


if __name__ == "__main__":
    main()
