"""Behavior without a compiled library and with a broken one."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ms_deform_attn
import pytest

FOLDER = Path(ms_deform_attn.__file__).parent

USE = """
import warnings, torch
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import ms_deform_attn as m
    for _ in range(3):
        points = torch.rand(1, 5, 2, 1, 3, 2), torch.rand(1, 5, 2, 1, 3)
        out = m.ms_deform_attn(torch.rand(1, 6, 2, 4), [(2, 3)], None, *points)
    fused = m.MSDeformAttn(8, 1, 2, 3)(torch.rand(1, 5, 8), torch.rand(1, 5, 1, 2), torch.rand(1, 6, 8), [(2, 3)])
print(sum("reference is used" in str(w.message) for w in seen), tuple(out.shape), tuple(fused.shape))
"""
REPORT = "import runpy; runpy.run_module('ms_deform_attn', run_name='__main__')"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(FOLDER, tmp_path / "ms_deform_attn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def run(folder: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(folder)} | environment
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def test_without_library_the_reference_runs_with_one_warning(copy: Path) -> None:
    done = run(copy, USE + REPORT)
    assert done.stdout.split("\n")[0] == "1 (1, 5, 8) (1, 5, 8)", done.stdout + done.stderr
    assert "reference, because no library was built" in done.stdout


def test_reference_on_request() -> None:
    done = run(FOLDER.parent, USE, MS_DEFORM_ATTN_REFERENCE="1")
    assert done.stdout.startswith("1 (1, 5, 8)"), done.stderr


def test_compiled_library_is_silent() -> None:
    done = run(FOLDER.parent, USE + REPORT)
    assert done.stdout.startswith("0 (1, 5, 8)"), done.stdout + done.stderr
    assert "CPU implementation: compiled" in done.stdout


def test_broken_library_raises_and_names_the_file(copy: Path) -> None:
    broken = copy / "ms_deform_attn" / "_C.abi3.so"
    broken.write_bytes(b"not a library")
    done = run(copy, "import ms_deform_attn")
    assert done.returncode != 0
    assert "ImportError" in done.stderr and str(broken) in done.stderr and "Rebuild it" in done.stderr


def test_library_of_another_version_raises(copy: Path) -> None:
    (copy / "ms_deform_attn" / "_C.abi3.so").touch()
    code = """
import torch
library = torch.library.Library("ms_deform_attn", "DEF")
for name in ("forward", "fused_backward"):
    library.define(f"{name}(Tensor other_arguments) -> Tensor")
torch.ops.load_library = lambda path: None
import ms_deform_attn
"""
    done = run(copy, code)
    assert "ImportError" in done.stderr and "another version" in done.stderr and "rebuild" in done.stderr, done.stderr


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("objdump") is None,
    reason="requires Linux on x86-64 and objdump",
)
def test_library_requires_glibc_2_24_or_older() -> None:
    library, sources = FOLDER / "_C.abi3.so", [*(FOLDER.parent / "csrc").rglob("*.*")]
    if not (library.is_file() and sources) or max(p.stat().st_mtime for p in sources) > library.stat().st_mtime:
        pytest.skip("the library was not built from the current source")
    symbols = subprocess.run(["objdump", "-T", library], capture_output=True, text=True, check=True).stdout
    versions = {tuple(map(int, text.split("."))) for text in re.findall(r"GLIBC_([\d.]+)", symbols)}
    assert versions and max(versions) <= (2, 24), symbols


def test_unknown_instruction_set_is_an_error() -> None:
    done = run(FOLDER.parent, USE, MS_DEFORM_ATTN_ISA="altivec")
    assert done.returncode != 0 and "MS_DEFORM_ATTN_ISA is 'altivec'" in done.stderr
