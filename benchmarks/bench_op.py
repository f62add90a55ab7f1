"""Benchmarks CPU time and memory of the operator against a grid_sample fallback.

    python3 benchmarks/bench_op.py            # every table, in fresh processes
    python3 benchmarks/bench_op.py --worker   # one run of the times in this process and environment

Sizes: levels 100x134, 50x67, 25x34, 13x17, 8 heads of 32 channels, 4 points. ENC: one query per position, DEC: 300
queries. Sampling points scatter by about 3 pixels around their reference point. Each figure is the median of
interleaved runs (one call of each candidate, in random order), so that background load affects all candidates equally.
Compare ratios, not times.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ops"))
import ms_deform_attn as msda

SHAPES = [(100, 134), (50, 67), (25, 34), (13, 17)]
HEADS, CHANNELS, POINTS = 8, 32, 4
# BENCH_CLOCK=cpu with OMP_NUM_THREADS=1 measures CPU time, which depends less on background load.
CLOCK = time.thread_time if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter
# malloc settings under which freed memory is reused instead of returned to the system.
RETAINING = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


def grid_sample_fallback(value: Tensor, shapes: list[tuple[int, int]], loc: Tensor, weights: Tensor) -> Tensor:
    """Calls grid_sample once per level for all heads and sums the weighted samples, as most fallbacks do."""
    n, _, m, d = value.shape
    q, levels, k = loc.shape[1], loc.shape[3], loc.shape[4]
    samples = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        image = part.permute(0, 2, 3, 1).reshape(n * m, d, *shapes[level])
        grid = (2 * loc[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weight = weights.transpose(1, 2).reshape(n * m, 1, q, levels * k)
    output = (torch.stack(samples, dim=-2).flatten(-2) * weight).sum(-1)
    return output.view(n, m * d, q).transpose(1, 2).contiguous()


def make_inputs(queries: int | None, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Returns realistic inputs; queries=None means one query per position."""
    generator = torch.Generator().manual_seed(0)
    rows = sum(h * w for h, w in SHAPES)
    if queries is None:
        grids = [
            torch.stack(torch.meshgrid((torch.arange(w) + 0.5) / w, (torch.arange(h) + 0.5) / h, indexing="xy"), -1)
            for h, w in SHAPES
        ]
        reference = torch.cat([g.reshape(-1, 2) for g in grids])
    else:
        reference = torch.rand(queries, 2, generator=generator)
    q, levels = reference.shape[0], len(SHAPES)
    offsets = 3 * torch.randn(1, q, HEADS, levels, POINTS, 2, generator=generator)
    logits = torch.randn(1, q, HEADS, levels, POINTS, generator=generator)
    reference = reference[None, :, None].expand(1, q, levels, 2).contiguous()
    loc, weights = msda.reference.locations_and_weights(SHAPES, reference, offsets, logits)
    value = torch.randn(1, rows, HEADS, CHANNELS, generator=generator)
    made = {"value": value, "loc": loc, "weights": weights}
    made |= {"reference": reference, "offsets": offsets, "logits": logits}
    return {name: t.to(dtype).contiguous() for name, t in made.items()}


def fallback_points(x: dict[str, Tensor]) -> Tensor:
    return grid_sample_fallback(x["value"], SHAPES, x["loc"], x["weights"])


def op(x: dict[str, Tensor]) -> Tensor:
    return msda.ms_deform_attn(x["value"], SHAPES, None, x["loc"], x["weights"])


def op_from_offsets(x: dict[str, Tensor]) -> Tensor:
    """Computes softmax and locations with separate operations, then calls the operator."""
    loc, weights = msda.reference.locations_and_weights(SHAPES, x["reference"], x["offsets"], x["logits"])
    return msda.ms_deform_attn(x["value"], SHAPES, None, loc, weights)


def op_fused(x: dict[str, Tensor]) -> Tensor:
    return msda.ms_deform_attn_fused(x["value"], SHAPES, None, x["reference"], x["offsets"], x["logits"])


def backward_of(function: Callable[[dict[str, Tensor]], Tensor], names: tuple[str, ...]) -> Callable[..., Tensor]:
    def run(x: dict[str, Tensor]) -> Tensor:
        leaves = {k: (t.detach().requires_grad_() if k in names else t) for k, t in x.items()}
        output = function(leaves)
        output.backward(x.get("grad_output", torch.empty(0)))
        return output

    return run


POINTS_NAMES, OFFSET_NAMES = ("value", "loc", "weights"), ("value", "offsets", "logits")
CANDIDATES: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "fallback": fallback_points,
    "op": op,
    "op_from_offsets": op_from_offsets,
    "op_fused": op_fused,
}


def with_grad_output(x: dict[str, Tensor]) -> dict[str, Tensor]:
    n, q = x["loc"].shape[:2]
    return x | {"grad_output": torch.ones(n, q, HEADS * CHANNELS, dtype=x["value"].dtype)}


def measure(functions: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Returns the median milliseconds of each function; calls are interleaved.

    The order is random, because a call is slower after one that evicts the inputs from the caches.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    shuffle = random.Random(0).shuffle
    names = list(functions)
    for i in range(repeat + 2):
        shuffle(names)
        for name in names:
            begin = CLOCK()
            functions[name]()
            if i >= 2:
                times[name].append(1e3 * (CLOCK() - begin))
    return {name: statistics.median(t) for name, t in times.items()}


def _runs(x: dict[str, Tensor], bf16: dict[str, Tensor], backward: bool) -> dict[str, Callable[[], object]]:
    runs: dict[str, Callable[[], object]] = {}
    for name, function in CANDIDATES.items():
        names = OFFSET_NAMES if name in ("op_from_offsets", "op_fused") else POINTS_NAMES
        runs[name] = functools.partial(backward_of(function, names) if backward else function, x)
    runs["op_bf16"] = functools.partial(backward_of(op, POINTS_NAMES) if backward else op, bf16)
    return runs


def worker(repeat: int) -> dict[str, dict[str, float]]:
    results = {}
    for case, queries in (("ENC", None), ("DEC", 300)):
        x, b = with_grad_output(make_inputs(queries)), with_grad_output(make_inputs(queries, torch.bfloat16))
        count = repeat if case == "ENC" else 10 * repeat
        with torch.no_grad():
            results[f"{case} forward"] = measure(_runs(x, b, False), count)
        results[f"{case} forward + backward"] = measure(_runs(x, b, True), count)
    return results


def peak_memory(name: str, backward: bool) -> float:
    """Returns the peak resident memory of ENC in MB, excluding inputs. Must run in a new process."""
    small = {k: t for k, t in make_inputs(2).items()}
    names = OFFSET_NAMES if name in ("op_from_offsets", "op_fused") else POINTS_NAMES
    function = backward_of(CANDIDATES[name], names) if backward else CANDIDATES[name]
    function(with_grad_output(small))  # loads libraries and starts threads
    x = with_grad_output(make_inputs(None))
    keep = ("value", "grad_output", *(names if "offsets" in names else POINTS_NAMES), "reference")
    x = {k: t for k, t in x.items() if k in keep}
    with torch.set_grad_enabled(backward):
        return peak_of(functools.partial(function, x))


def peak_of(function: Callable[[], object]) -> float:
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still resident would hide allocations
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the current size
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 1e6 * 1024


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(key)).split()[1])


def _spawn(arguments: list[str], environment: dict[str, str]) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True).stdout


def _table(title: str, results: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n| case | " + " | ".join(next(iter(results.values()))) + " |")
    for case, row in results.items():
        base = row["fallback"]
        print(f"| {case} | " + " | ".join(f"{ms:.2f} ms ({base / ms:.1f}x)" for ms in row.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "forward|both"))
    parser.add_argument("--only", help="run only the tables whose title contains this text")
    parser.add_argument("--repeat", type=int, default=7, help="interleaved runs of ENC; DEC takes ten times as many")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args.repeat)))
        return
    if args.memory:
        print(peak_memory(args.memory[0], args.memory[1] == "both"))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds and ratio to the fallback")
    runs = {"default malloc": {}, "retaining malloc": RETAINING}
    runs |= {"default malloc, AVX2": {"MS_DEFORM_ATTN_ISA": "avx2"}, "plain": {"MS_DEFORM_ATTN_ISA": "plain"}}
    for title, environment in runs.items():
        if args.only and args.only not in title:
            continue
        _table(title, json.loads(_spawn(["--worker", "--repeat", str(args.repeat)], environment)))
    print("\npeak memory excluding inputs, ENC, MB (forward / forward + backward)")
    for name in CANDIDATES:
        numbers = [float(_spawn(["--memory", name, mode], {})) for mode in ("forward", "both")]
        print(f"| {name} | {numbers[0]:.0f} | {numbers[1]:.0f} |")


if __name__ == "__main__":
    main()
