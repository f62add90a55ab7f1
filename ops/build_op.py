"""Builds the compiled operator with plain setuptools.

The library uses PyTorch's stable C ABI and does not link Python: one binary works with every Python and every torch
from 2.11 on. PyTorch loads it; it is not a Python module. CUDA kernels are in a second library, so that the first one
also loads under a torch without CUDA. Without a compiler the wheel contains Python code only and is tagged
py3-none-any.

Environment: CXX, CXXFLAGS, LDFLAGS and MAX_JOBS as usual; FORCE_CUDA=1 requires the CUDA kernels and FORCE_CUDA=0 omits
them (default: built if this machine has nvidia-smi and nvcc, and torch has CUDA); MS_DEFORM_ATTN_CUDA_ARCH lists
compute capabilities ("80;90;90+PTX"); MS_DEFORM_ATTN_REQUIRE=1 makes a missing compiler an error.
"""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CSRC = Path(__file__).resolve().parent / "csrc"
TARGET_TORCH = "0x020b000000000000"  # 2.11: the oldest torch whose stable ABI has all functions that the operator uses
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Contraction is off so that pixel coordinates round as in the reference; the inner loops use fused multiply-adds
# explicitly. Without the other two flags floor() and comparisons would not vectorize.
KERNEL_FLAGS = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
ISA_FLAGS = {
    "plain": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"],
}
CUDA_ARCH = "75;80;86;89;90;100;120;120+PTX"


class CannotBuild(Exception):
    """Raised if a requirement of the build is missing."""


@dataclass(frozen=True)
class Tools:
    """Requirements of the build: folder of the torch package, command of the C++ compiler, nvcc or None (no CUDA)."""

    torch: Path
    compiler: list[str]
    nvcc: str | None


@functools.cache
def find_tools() -> Tools:
    """Finds the requirements of the build.

    Raises:
        CannotBuild: if one is missing.
    """
    if sys.platform == "win32":
        raise CannotBuild("Windows is not supported")
    torch = find_torch()
    if torch is None:
        raise CannotBuild("torch >= 2.11 with its headers is not installed")
    return Tools(torch, find_compiler(), find_nvcc(torch))


def find_torch() -> Path | None:
    """Returns the folder of the torch package that the library will run under, without importing it.

    Under pip's build isolation torch is not on sys.path; a new interpreter with -I uses the environment that pip
    installs into.
    """
    code = (
        "import importlib.metadata as m, importlib.util as u; s = u.find_spec('torch'); "
        "print(m.version('torch'), list(s.submodule_search_locations)[0])"
    )
    for flags in ([], ["-I"]):
        done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode:
            continue
        version, _, folder = done.stdout.strip().partition(" ")
        major, minor = (int(number) for number in version.split(".")[:2])
        if (major, minor) >= (2, 11) and (Path(folder) / "include/torch/csrc/stable/library.h").is_file():
            return Path(folder)
    return None


def find_compiler() -> list[str]:
    """Returns the command of the first C++17 compiler that works: CXX, or c++, g++ or clang++."""
    given = os.environ.get("CXX")
    candidates = [shlex.split(given)] if given else [[name] for name in ("c++", "g++", "clang++") if shutil.which(name)]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <string_view>\nint size(std::string_view text) { return text.size(); }\n")
        for compiler in candidates:
            command = [*compiler, "-std=c++17", "-c", str(source), "-o", f"{source}.o"]
            try:
                if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                    return compiler
            except OSError:
                continue
    tried = ", ".join(map(shlex.join, candidates)) or "c++, g++ and clang++ are not on PATH"
    raise CannotBuild(f"there is no working C++17 compiler ({tried}); the variable CXX selects one")


def find_nvcc(torch: Path) -> str | None:
    """Returns the path of nvcc, or None if CUDA is not to be built."""
    wanted = os.environ.get("FORCE_CUDA", "")
    if wanted == "0" or not list((CSRC / "cuda").glob("*.cu")):
        return None
    if not wanted and shutil.which("nvidia-smi") is None:  # compiling takes minutes, for a GPU that is not there
        return None
    if not list((torch / "lib").glob("libtorch_cuda.*")):
        if wanted:
            raise RuntimeError(f"ms_deform_attn: FORCE_CUDA={wanted} is set but the torch in {torch} has no CUDA")
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc") or (shutil.which(f"{home}/bin/nvcc") if home else None)
    found = found or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None and wanted:
        raise RuntimeError(f"ms_deform_attn: FORCE_CUDA={wanted} is set but there is no nvcc (PATH, CUDA_HOME)")
    return found


def architecture_flags(text: str) -> list[str]:
    """Returns nvcc flags for a list such as "80;90+PTX"; dots are allowed ("8.0")."""
    flags = []
    for item in text.replace(",", ";").replace(" ", ";").split(";"):
        if not item:
            continue
        number = item.replace(".", "").removesuffix("+PTX")
        kind = "compute" if item.endswith("+PTX") else "sm"
        flags += ["-gencode", f"arch=compute_{number},code={kind}_{number}"]
    return flags


def supported_architectures(nvcc: str) -> str:
    """Returns the architectures of `CUDA_ARCH` that nvcc can compile; CUDA 12.6 lacks 100 and 120, CUDA 13 lacks 70."""
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout.split()
    items = CUDA_ARCH.split(";")
    return ";".join(item for item in items if not known or f"compute_{item.removesuffix('+PTX')}" in known)


def _is_x86_64() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if output.strip():
        sys.stderr.write(output)
    if done.returncode:
        raise RuntimeError(f"building ms_deform_attn failed (exit status {done.returncode}): {shlex.join(command)}")


class BuildWheel(bdist_wheel):
    """bdist_wheel that omits the extension, and with it the platform tag, if the operator cannot be compiled."""

    def finalize_options(self) -> None:
        try:
            find_tools()
        except CannotBuild as reason:
            if os.environ.get("MS_DEFORM_ATTN_REQUIRE", "0") not in ("", "0"):
                raise RuntimeError(f"ms_deform_attn: {reason}") from None
            print(f"ms_deform_attn: no compiled operator, the slow reference will be used: {reason}", file=sys.stderr)
            self.distribution.ext_modules = []
            self.py_limited_api = False
        super().finalize_options()


class BuildOp(build_ext):
    """build_ext that compiles the operator."""

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build_operator(Path(self.get_ext_fullpath(ext.name)), find_tools())
        except CannotBuild as reason:
            raise RuntimeError(f"ms_deform_attn: {reason}") from None

    def copy_extensions_to_source(self) -> None:
        """Copies the CUDA library too, in an editable installation; setuptools only copies the extension."""
        super().copy_extensions_to_source()
        folder = Path(self.get_finalized_command("build_py").get_package_dir("ms_deform_attn"))
        for library in (Path(self.build_lib) / "ms_deform_attn").glob("_C_cuda.*"):
            shutil.copy2(library, folder / library.name)

    def _build_operator(self, library: Path, tools: Tools) -> None:
        torch, compiler, nvcc = tools.torch, tools.compiler, tools.nvcc
        objects = Path(self.build_temp) / "ms_deform_attn"
        objects.mkdir(parents=True, exist_ok=True)
        library.parent.mkdir(parents=True, exist_ok=True)
        isas = list(ISA_FLAGS) if _is_x86_64() else ["plain"]
        flags = [
            *CXX_FLAGS,
            "-include",
            str(CSRC / "glibc.h"),
            *KERNEL_FLAGS,
            *_common_flags(torch),
            *shlex.split(os.environ.get("CXXFLAGS", "")),
        ]
        # The linker keeps the first copy of an inline function of a header: the baseline instruction set must be first.
        sources = [CSRC / "register.cpp", CSRC / "call.cpp", CSRC / "cpu" / "runtime.cpp"]
        jobs = [([*compiler, *flags, "-c", str(source)], objects / f"{source.stem}.o") for source in sources]
        for isa in isas:
            command = [*compiler, *flags, *ISA_FLAGS[isa], f"-DMSDA_ISA={isa}"]
            jobs.append(([*command, "-c", str(CSRC / "cpu" / "kernels.cpp")], objects / f"kernels_{isa}.o"))
        cuda_jobs = _cuda_jobs(nvcc, compiler, torch, objects) if nvcc else []
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            list(pool.map(lambda job: self._compile(*job), [*cuda_jobs, *jobs]))
        link = [*shlex.split(os.environ.get("LDFLAGS", "")), *_link_flags(torch)]
        _run([*compiler, "-shared", *(str(o) for _, o in jobs), "-o", str(library), *link])
        cuda_library = library.with_name(library.name.replace("_C.", "_C_cuda."))
        cuda_library.unlink(missing_ok=True)  # left by an earlier build
        if nvcc:
            objects_cuda = [str(o) for _, o in cuda_jobs]
            command = [nvcc, "-shared", "-cudart", "static", "-ccbin", compiler[0], *objects_cuda]
            _run([*command, "-o", str(cuda_library), *_link_flags(torch, ["torch_cuda"], nvcc=True)])

    def _compile(self, command: list[str], target: Path) -> None:
        newest = max(f.stat().st_mtime for f in CSRC.rglob("*") if f.is_file())
        note = target.with_suffix(".command")
        text = shlex.join(command)
        fresh = not self.force and target.is_file() and target.stat().st_mtime > newest
        if fresh and note.is_file() and note.read_text() == text:
            return
        _run([*command, "-o", str(target)])
        note.write_text(text)


def _common_flags(torch: Path) -> list[str]:
    return [
        f"-DTORCH_TARGET_VERSION={TARGET_TORCH}",
        "-isystem",
        str(torch / "include"),
        f"-ffile-prefix-map={CSRC}=csrc",
    ]


def _cuda_jobs(nvcc: str, compiler: list[str], torch: Path, objects: Path) -> list[tuple[list[str], Path]]:
    host_flags = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off"]
    host_flags += [f"-ffile-prefix-map={CSRC}=csrc", f"-ffile-prefix-map={torch}=torch"]
    host = ["-Xcompiler", ",".join(host_flags)]
    arch = architecture_flags(os.environ.get("MS_DEFORM_ATTN_CUDA_ARCH") or supported_architectures(nvcc))
    flags = ["-std=c++17", "-O3", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TARGET_TORCH}", "--expt-relaxed-constexpr"]
    flags += ["-isystem", str(torch / "include"), "-ccbin", compiler[0], "--threads", "0"]
    flags += _cuda_include(nvcc, torch)
    sources = [*sorted((CSRC / "cuda").glob("*.cu")), *(CSRC / "cuda").glob("*.cpp"), CSRC / "call.cpp"]
    jobs = []
    for source in sources:
        extra = arch if source.suffix == ".cu" else ["-x", "cu", *arch[:2]]
        jobs.append(([nvcc, *flags, *host, *extra, "-c", str(source)], objects / f"{source.stem}.cuda.o"))
    return jobs


def _cuda_include(nvcc: str, torch: Path) -> list[str]:
    """Returns flags for the CUDA headers among torch's dependencies, if nvcc is installed without headers."""
    beside_nvcc = Path(shutil.which(nvcc) or nvcc).resolve().parent.parent / "include" / "cuda_runtime.h"
    if beside_nvcc.is_file():
        return []
    return [f"-I{folder}" for folder in sorted((torch.parent / "nvidia").glob("cu*/include"))]


def _link_flags(torch: Path, extra: list[str] | None = None, nvcc: bool = False) -> list[str]:
    libraries = [f"-l{name}" for name in ("torch", "torch_cpu", *(extra or []))]
    if sys.platform == "darwin":
        return [f"-L{torch / 'lib'}", *libraries]
    keep = ["-Xlinker=--no-as-needed"] if nvcc else ["-Wl,--no-as-needed"]
    return [f"-L{torch / 'lib'}", *keep, *libraries]


def extension_kwargs() -> dict[str, Any]:
    """Returns keyword arguments for setuptools.setup(): the extension, its build commands and the wheel's abi3 tag."""
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    options = {} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}}
    extension = Extension("ms_deform_attn._C", sources=[], py_limited_api=not free_threaded)
    commands = {"build_ext": BuildOp, "bdist_wheel": BuildWheel}
    return {"ext_modules": [extension], "cmdclass": commands, "options": options}
