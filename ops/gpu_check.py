"""Runs all checks that need a GPU, and writes a JSON report.

    python3 ops/gpu_check.py                    # from the repository, on a machine with a GPU and nvcc
    python3 ops/gpu_check.py --only build,tests # steps: build, tests, memcheck, racecheck, benchmark
    python3 ops/gpu_check.py --bench "--original DIR --repeat 100"
    python3 ops/gpu_check.py --dry-run          # without a GPU: builds for sm_90, skips tests, tiny benchmark

Steps: build the library for the local GPU; run tests/ops; run a part of them under compute-sanitizer's memcheck and
racecheck; run benchmarks/bench_op_cuda.py. The folder --out (default: ops/build/gpu_check) receives the library, the
output of each step, and report.json with the GPU, versions, date, results and timings. Nothing is installed, and the
rest of the repository is not changed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OPS = Path(__file__).resolve().parent
ROOT = OPS.parent
TESTS = ROOT / "tests" / "ops"
STEPS = ("build", "tests", "memcheck", "racecheck", "benchmark")
# compute-sanitizer makes kernels about a hundred times slower: no large sizes, no torch.compile.
SANITIZED = "test_cuda.py and (test_against_reference or test_non_finite) and not 3000 and not opcheck"
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--confcutdir={TESTS}", "--import-mode=importlib"]


class Check:
    """Paths and results shared by the steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out: Path = args.out.resolve()
        self.package = self.out / "package"  # a copy of ops/ms_deform_attn with the library built here
        self.report: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        }
        self.report |= {"dry run": args.dry_run, "commit": _text(["git", "-C", str(ROOT), "rev-parse", "HEAD"])}
        self.report["steps"] = {}

    def run(self, name: str, command: Sequence[str], success: int = 0, **environment: str) -> bool:
        """Runs a command with its output in a file; records and prints its result."""
        log = self.out / f"{name}.log"
        env = os.environ | {"PYTHONPATH": str(self.package), "MS_DEFORM_ATTN_REQUIRE": "1"} | environment
        begin = time.monotonic()
        with log.open("w") as stream:
            stream.write(f"$ {shlex.join(command)}\n")
            stream.flush()
            done = subprocess.run(command, cwd=OPS, env=env, stdout=stream, stderr=subprocess.STDOUT, check=False)
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        step = {"exit status": done.returncode, "seconds": round(time.monotonic() - begin, 1), "last line": lines[-1]}
        self.report["steps"][name] = step
        passed = done.returncode == success
        print(f"{name}: {'ok' if passed else 'FAILED'} ({step['seconds']} s) {lines[-1][:150]}", flush=True)
        if not passed:
            print("  " + "\n  ".join(lines[-self.args.tail :]), flush=True)
        return passed

    def build(self) -> bool:
        shutil.rmtree(self.package, ignore_errors=True)
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(OPS / "ms_deform_attn", self.package / "ms_deform_attn", ignore=ignore)
        command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(self.package)]
        command += ["--build-temp", str(self.out / "objects")]
        arch = self.args.arch or ("90" if self.args.dry_run else _local_architecture())
        self.report["architecture"] = arch
        loads = "from ms_deform_attn.library import LIBRARIES as found; print(found); assert 'cuda' in found"
        return (
            self.run("build", command, FORCE_CUDA="1", MS_DEFORM_ATTN_CUDA_ARCH=arch)
            and self.run("load", [sys.executable, "-P", "-c", loads])
            and self.run("library", [sys.executable, "-P", "-m", "ms_deform_attn"])
        )

    def tests(self) -> bool:
        # In a dry run test_cuda.py must import and be skipped: pytest exits with 5 if no test ran.
        path, success = (TESTS / "test_cuda.py", 5) if self.args.dry_run else (TESTS, 0)
        return self.run("tests", [sys.executable, *PYTEST, "-rs", "-m", self.args.marks, str(path)], success)

    def _sanitize(self, tool: str) -> bool:
        found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        options = ["--tool", tool, "--error-exitcode", "9", "--kernel-name", "kernel_substring=msda"]
        command = [found or "compute-sanitizer", *options, sys.executable, *PYTEST, "-x", "-k", SANITIZED]
        command.append(str(TESTS / "test_cuda.py"))
        if found is None or self.args.dry_run:
            why = "a dry run" if self.args.dry_run else "compute-sanitizer is not installed"
            self.report["steps"][tool] = {"exit status": None, "last line": f"not run: {why}", "command": command}
            print(f"{tool}: NOT RUN ({why}): {shlex.join(command)}", flush=True)
            return self.args.dry_run
        # memcheck cannot detect overruns inside blocks of the caching allocator, so it is disabled.
        return self.run(tool, command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")

    def memcheck(self) -> bool:
        return self._sanitize("memcheck")

    def racecheck(self) -> bool:
        return self._sanitize("racecheck")

    def benchmark(self) -> bool:
        result = self.out / "benchmark.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "bench_op_cuda.py"), "--out", str(result)]
        command += shlex.split(self.args.bench) + (["--dry-run"] if self.args.dry_run else [])
        good = self.run("benchmark", command)
        if good:
            self.report["benchmark"] = json.loads(result.read_text())
            _print_table(self.report["benchmark"])
        return good


def _text(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _torch(expression: str) -> str:
    return _text([sys.executable, "-c", f"import torch; print({expression})"])


def _local_architecture() -> str:
    arch = _torch("'%d%d' % torch.cuda.get_device_capability() if torch.cuda.is_available() else ''")
    if not arch:
        raise SystemExit("no GPU found; use --dry-run to check this script without one")
    return arch


def _print_table(result: dict[str, Any]) -> None:
    for case, tables in result["cases"].items():
        for mode in ("forward", "forward + backward"):
            print(f"{case}, {mode}")
            for name, row in tables[mode].items():
                print(f"  {name:45s} {row['ms']:9.3f} ms  {row['ratio']:7.2f}x")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(STEPS), help="comma-separated steps")
    parser.add_argument("--arch", help="compute capability to build for, as MS_DEFORM_ATTN_CUDA_ARCH (default: local)")
    parser.add_argument("--marks", default="not slow", help="pytest's -m for the tests")
    parser.add_argument("--bench", default="", help="arguments for benchmarks/bench_op_cuda.py, as one string")
    parser.add_argument("--out", type=Path, default=OPS / "build" / "gpu_check")
    parser.add_argument("--tail", type=int, default=25, help="lines of a failed step's output to print")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    args.steps = [step for step in args.only.split(",") if step]
    for step in args.steps:
        if step not in STEPS:
            parser.error(f"--only: unknown step {step!r}: choose from {', '.join(STEPS)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    check = Check(parse(argv))
    check.out.mkdir(parents=True, exist_ok=True)
    check.report |= {"python": platform.python_version(), "torch": _torch("torch.__version__")}
    check.report["gpu"] = "" if check.args.dry_run else _torch("torch.cuda.get_device_name()")
    check.report["nvcc"] = (_text(["nvcc", "--version"]).splitlines() or [""])[-1]
    # The other steps are independent of each other, but need the build.
    results = []
    for step in check.args.steps:
        results.append(getattr(check, step)())
        if step == "build" and not results[-1]:
            break
    check.report["passed"] = all(results)
    path = check.out / "report.json"
    path.write_text(json.dumps(check.report, indent=1) + "\n")
    print(f"{'passed' if all(results) else 'FAILED'}; {path}")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
