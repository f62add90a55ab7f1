"""Compiles the CUDA kernels for the host (tests/ops/emulation) and calls them with tensors."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from op_helpers import Size
from torch import Tensor

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "ops" / "csrc"
MAX_LEVELS = 64
TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_PAD = 64  # elements of NaN before and after every input: reads out of bounds make the result NaN


class Problem(ctypes.Structure):
    """Mirror of msda::Problem (ops/csrc/problem.h)."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "rows", "heads", "channels", "queries")),
        *((name, ctypes.c_int32) for name in ("levels", "points", "ref_width", "value_type", "point_type", "source")),
        *((name, ctypes.c_int64 * MAX_LEVELS) for name in ("height", "width", "start")),
        ("value", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("value_stride_n", "value_stride_s", "value_stride_m")),
        *((name, ctypes.c_void_p) for name in ("xy", "attention", "reference", "output", "grad_output")),
        *((name, ctypes.c_void_p) for name in ("grad_value", "grad_xy", "grad_attention", "grad_reference")),
    ]


class _Settings(ctypes.Structure):
    _fields_ = [
        ("shapes", ctypes.c_void_p),
        ("max_blocks", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("backward", "deterministic", "falling")),
    ]


@dataclass(frozen=True)
class Plan:
    vector: int
    lanes: int
    block: int
    queries_inner: bool
    stash_in_shared: bool
    blocks: int


def compiler() -> list[str] | None:
    """Returns the command of the C++ compiler, or None without a compiler or the source tree."""
    found = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or ""]
    return found if found[0] and CSRC.is_dir() else None


def guarded(t: Tensor, shift: int = 0) -> Tensor:
    """Returns a copy of t, 32-byte aligned plus `shift` elements, between two ranges of NaN."""
    whole = torch.full((t.numel() + 2 * _PAD + 32,), float("nan"), dtype=t.dtype)
    first = _PAD + shift
    while (whole.data_ptr() + (first - shift) * t.element_size()) % 32:
        first += 1
    inner = whole[first : first + t.numel()].view(t.shape)
    inner.copy_(t)
    return inner


class Emulation:
    """Library of the kernels compiled for the host."""

    def __init__(self, folder: Path) -> None:
        library = folder / "emulation.so"
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
        flags += [f"-I{CSRC}", "-isystem", str(Path(torch.__file__).parent / "include")]
        command = [*(compiler() or []), *flags, str(HERE / "emulation" / "emulation.cpp"), "-o", str(library)]
        subprocess.run(command, check=True)
        self._library = ctypes.CDLL(str(library))
        self._library.emulate.restype = ctypes.c_bool
        self._library.last_report.restype = ctypes.c_char_p
        self._library.problem_size.restype = ctypes.c_size_t
        assert self._library.problem_size() == ctypes.sizeof(Problem), "Problem here and in problem.h differ"

    def plan(
        self, size: Size, dtype: torch.dtype, *, fused: bool = False, backward: bool = False, aligned: bool = True
    ) -> Plan:
        p = _sizes(size, dtype, dtype)
        p.source = int(fused)
        out = (ctypes.c_int64 * 6)()
        self._library.plan_of(ctypes.byref(p), dtype.itemsize, dtype.itemsize, int(aligned), int(backward), out)
        return Plan(out[0], out[1], out[2], bool(out[3]), bool(out[4]), out[5])

    def run(
        self,
        size: Size,
        tensors: Sequence[Tensor],
        grad: Tensor,
        *,
        deterministic: bool = False,
        shapes_on_device: bool = False,
        max_blocks: int = 3,
        falling: bool = False,
        shapes: Sequence[tuple[int, int]] | None = None,
        want_reference: bool = True,
    ) -> list[Tensor]:
        """Returns output and gradients in the order of op_helpers.forward_backward(), and logs launches in self.report.

        shapes: level sizes in device memory, if they are to differ from those of `size`.
        """
        value, xy, attention = tensors[0], tensors[-2], tensors[-1]
        reference = tensors[1] if len(tensors) == 4 else None
        assert value.stride(3) == 1 and xy.is_contiguous() and attention.is_contiguous() and grad.is_contiguous()
        p = _sizes(size, value.dtype, xy.dtype)
        p.value_stride_n, p.value_stride_s, p.value_stride_m = value.stride()[:3]
        p.source, p.ref_width = int(reference is not None), 0 if reference is None else reference.shape[-1]
        wide = torch.float64 if value.dtype == torch.float64 else torch.float32
        levels = len(size.shapes)
        output, grad_value, grad_xy, grad_attention = (
            guarded(torch.full(t.shape, 777.0, dtype=t.dtype)) for t in (grad, value, xy, attention)
        )
        grad_reference = guarded(torch.full((size.n, size.m, size.q, levels, p.ref_width), 777.0, dtype=wide))
        held = {"value": value, "xy": xy, "attention": attention, "reference": reference, "output": output}
        held |= {"grad_output": grad, "grad_value": grad_value, "grad_xy": grad_xy, "grad_attention": grad_attention}
        held["grad_reference"] = grad_reference if reference is not None and want_reference else None
        for name, tensor in held.items():
            setattr(p, name, None if tensor is None else tensor.data_ptr())
        device_shapes = torch.tensor(shapes or size.shapes, dtype=torch.int64)
        address = device_shapes.data_ptr() if shapes_on_device else None
        self.report = ""
        for backward in (0, 1):
            if backward:  # as register_cuda.cpp does
                value = guarded(value) if value.stride(1) != size.m * size.d else value
                p.value = value.data_ptr()
                p.value_stride_n, p.value_stride_s, p.value_stride_m = value.stride()[:3]
            settings = _Settings(address, max_blocks, backward, int(deterministic), int(falling))
            good = self._library.emulate(ctypes.byref(p), ctypes.byref(settings))
            report = self._library.last_report().decode()
            if not good:
                raise RuntimeError(report)
            self.report += report
        grads = [grad_value, grad_xy, grad_attention]
        if reference is not None:
            grads.insert(1, grad_reference.sum(1).to(reference.dtype))
        return [output, *grads]


def _sizes(size: Size, value_dtype: torch.dtype, point_dtype: torch.dtype) -> Problem:
    p = Problem(size.n, size.rows, size.m, size.d, size.q, len(size.shapes), size.k)
    p.value_type, p.point_type = TYPES[value_dtype], TYPES[point_dtype]
    start = 0
    for level, (height, width) in enumerate(size.shapes):
        p.height[level], p.width[level], p.start[level] = height, width, start
        start += height * width
    return p
