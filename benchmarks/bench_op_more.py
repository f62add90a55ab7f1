"""More CPU benchmarks of the operator: other sizes and element types, few heads, and the MSDeformAttn module.

python3 benchmarks/bench_op_more.py
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from collections.abc import Callable

import torch
from bench_op import CHANNELS, HEADS, POINTS, POINTS_NAMES, SHAPES, backward_of, make_inputs, measure, msda, peak_of
from torch import Tensor


def make_general(
    channels: int = 32, points: int = 4, levels: int = 4, dtype: torch.dtype = torch.float32, heads: int = 8
) -> tuple[list[tuple[int, int]], dict[str, Tensor]]:
    """Returns level sizes and inputs of one query per position, with uniformly distributed points."""
    shapes = [(50, 67), (25, 34), (13, 17), (7, 9), (4, 5)][:levels]
    rows = sum(h * w for h, w in shapes)
    g = torch.Generator().manual_seed(0)
    value = torch.randn(1, rows, heads, channels, generator=g)
    loc = torch.rand(1, rows, heads, levels, points, 2, generator=g)
    weights = torch.rand(1, rows, heads, levels, points, generator=g)
    made = {"value": value, "loc": loc, "weights": weights, "grad_output": torch.ones(1, rows, heads * channels)}
    return shapes, {name: t.to(dtype) for name, t in made.items()}


GENERAL: dict[str, dict[str, object]] = {
    "D 32, K 4, L 4, float32": {},
    "D 30": {"channels": 30},
    "D 36": {"channels": 36},
    "D 71": {"channels": 71},
    "K 1": {"points": 1},
    "K 3": {"points": 3},
    "K 5": {"points": 5},
    "L 1": {"levels": 1},
    "L 5": {"levels": 5},
    "float64": {"dtype": torch.float64},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
}


def general(repeat: int) -> None:
    """Prints the time per gathered byte (four rows per point) of other sizes and types, relative to the first row."""
    results = []
    for backward in (False, True):
        runs: dict[str, Callable[[], object]] = {}
        gathered = {}
        for name, arguments in GENERAL.items():
            shapes, x = make_general(**arguments)  # type: ignore[arg-type]

            def call(x: dict[str, Tensor], shapes: list[tuple[int, int]] = shapes) -> Tensor:
                return msda.ms_deform_attn(x["value"], shapes, None, x["loc"], x["weights"])

            runs[name] = functools.partial(backward_of(call, POINTS_NAMES) if backward else call, x)
            gathered[name] = x["weights"].numel() * 4 * x["value"].shape[3] * x["value"].element_size()
        times = measure(runs, repeat)
        results.append({name: 1e9 * ms / gathered[name] for name, ms in times.items()})
    print("\ngeneral sizes: picoseconds per gathered byte (multiple of the first row), forward, forward + backward")
    for name in GENERAL:
        print(f"| {name} | " + " | ".join(f"{r[name]:.1f} ({r[name] / next(iter(r.values())):.2f}x)" for r in results))


def few_heads(repeat: int) -> None:
    """Prints times on one thread and on all threads for small batch x heads."""
    print("\nfew heads: ms on one thread and on all, forward, forward + backward")
    threads = torch.get_num_threads()
    for heads in (1, 2, 3):
        shapes, x = make_general(heads=heads)
        numbers = []

        def call(x: dict[str, Tensor], shapes: list[tuple[int, int]] = shapes) -> Tensor:
            return msda.ms_deform_attn(x["value"], shapes, None, x["loc"], x["weights"])

        for run in (call, backward_of(call, POINTS_NAMES)):
            for count in (1, threads):
                torch.set_num_threads(count)
                numbers.append(measure({"": functools.partial(run, x)}, 5 * repeat)[""])
        print(f"| {heads} | {numbers[0]:.2f}, {numbers[1]:.2f} | {numbers[2]:.2f}, {numbers[3]:.2f} |")


def module_run(fused: bool, queries: int | None, backward: bool) -> Callable[[], object]:
    """Returns a call of MSDeformAttn with random offsets, through the fused operator or as separate operations."""
    torch.manual_seed(0)
    module = msda.MSDeformAttn(HEADS * CHANNELS, len(SHAPES), HEADS, POINTS)
    torch.nn.init.normal_(module.sampling_offsets.weight, std=3 / (HEADS * CHANNELS) ** 0.5)
    x = make_inputs(queries)
    rows, q = x["value"].shape[1], x["loc"].shape[1]
    tokens, query = torch.randn(1, rows, 256, requires_grad=backward), torch.randn(1, q, 256, requires_grad=backward)
    reference, grad = x["reference"], torch.ones(1, q, 256)
    separate = functools.partial(_separate, msda.ms_deform_attn)

    def run() -> None:
        msda.module.ms_deform_attn_fused = msda.ms_deform_attn_fused if fused else separate
        with torch.set_grad_enabled(backward):
            output = module(query, reference, tokens, SHAPES)
        if backward:
            output.backward(grad)

    return run


def _separate(op: Callable[..., Tensor], value: Tensor, shapes: list[tuple[int, int]], start: None, *points: Tensor):
    return op(value, shapes, start, *msda.reference.locations_and_weights(shapes, *points))


def module_tables(repeat: int) -> None:
    print("\nMSDeformAttn, fused and as separate operations: ms, and peak MB excluding inputs")
    for case, queries in (("ENC", None), ("DEC", 300)):
        for backward in (False, True):
            runs = {name: module_run(name == "fused", queries, backward) for name in ("fused", "separate")}
            times = measure(runs, repeat if queries is None else 10 * repeat)
            memory = [_memory_of(name, case, backward) for name in runs]
            text = f"{times['fused']:.2f} ms, {times['separate']:.2f} ms | {memory[0]:.0f} MB, {memory[1]:.0f} MB"
            print(f"| {case} {'forward + backward' if backward else 'forward'} | {text} |")


def _memory_of(kind: str, case: str, backward: bool) -> float:
    """Returns the peak memory of one call in MB, measured in a new process."""
    command = [sys.executable, __file__, "--memory", kind, case, "both" if backward else "forward"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def module_memory(kind: str, case: str, backward: bool) -> float:
    module_run(kind == "fused", 2, backward)()  # loads libraries and starts threads
    return peak_of(module_run(kind == "fused", None if case == "ENC" else 300, backward))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", nargs=3, metavar=("fused|separate", "ENC|DEC", "forward|both"))
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    if args.memory:
        kind, case, mode = args.memory
        print(module_memory(kind, case, mode == "both"))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    general(args.repeat)
    few_heads(args.repeat)
    module_tables(args.repeat)


if __name__ == "__main__":
    main()
