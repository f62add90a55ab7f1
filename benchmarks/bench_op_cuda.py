"""Benchmarks the CUDA kernels and other implementations in one run and prints JSON.

    python3 benchmarks/bench_op_cuda.py                 # on a GPU
    python3 benchmarks/bench_op_cuda.py --original DIR --mmcv DIR --dcnv4 DIR
    python3 benchmarks/bench_op_cuda.py --dry-run       # tiny sizes on the CPU, to test this file

Sizes: levels 100x134, 50x67, 25x34, 13x17, 8 heads of 32 channels, 4 points. ENC: one query per position, batch 1, 4
and 16; DEC: 300 and 900 queries, batch 1; points about 3 pixels around their reference point. Each figure is the median
of interleaved calls (one of each candidate in turn), timed with CUDA events; calls cycle through several input
sets, so that none stays in the cache. DIR is the folder of MultiScaleDeformableAttention, mmcv, or DCNv4.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "ops"))  # at the end: an installed operator, or one on PYTHONPATH, has priority
import ms_deform_attn as msda  # noqa: E402

# isort: split
import bench_op  # noqa: E402

Inputs = dict[str, Tensor]
FULL = ((100, 134), (50, 67), (25, 34), (13, 17))
TINY = ((6, 8), (3, 4))
HEADS, CHANNELS, POINTS = 8, 32, 4


@dataclass(frozen=True)
class Case:
    name: str
    batch: int
    queries: int | None  # None: one per position


CASES = [Case(f"ENC batch {n}", n, None) for n in (1, 4, 16)] + [Case(f"DEC {q} queries", 1, q) for q in (300, 900)]


@dataclass(frozen=True)
class Candidate:
    """A function of the inputs, the names of the inputs that get gradients, and the supported dtypes."""

    function: Callable[[Inputs], Tensor]
    leaves: tuple[str, ...] = ("value", "loc", "weights")
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)


def make_inputs(case: Case, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Returns the inputs of a call, created on the device."""
    g = torch.Generator(device).manual_seed(seed)
    rows, levels, n = sum(h * w for h, w in shapes), len(shapes), case.batch
    if case.queries is None:
        axes = [((torch.arange(w) + 0.5) / w, (torch.arange(h) + 0.5) / h) for h, w in shapes]
        grids = [torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2) for x, y in axes]
        reference = torch.cat(grids).to(device)[None].expand(n, -1, -1)
    else:
        reference = torch.rand(n, case.queries, 2, generator=g, device=device)
    q = reference.shape[1]
    reference = reference[:, :, None].expand(n, q, levels, 2).contiguous()
    offsets = 3 * torch.randn(n, q, HEADS, levels, POINTS, 2, generator=g, device=device)
    logits = torch.randn(n, q, HEADS, levels, POINTS, generator=g, device=device)
    loc, weights = msda.reference.locations_and_weights(list(shapes), reference, offsets, logits)
    made = {"value": torch.randn(n, rows, HEADS, CHANNELS, generator=g, device=device), "loc": loc, "weights": weights}
    made |= {"reference": reference, "offsets": offsets, "logits": logits}
    made["grad"] = torch.randn(n, q, HEADS * CHANNELS, generator=g, device=device)
    made = {name: t.to(dtype).contiguous() for name, t in made.items()}
    made |= {"loc32": made["loc"].float(), "weights32": made["weights"].float()}
    sizes = torch.tensor(shapes, device=device)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    return made | {"shapes": sizes, "starts": starts}


def project_candidates(shapes: Sequence[tuple[int, int]], dry_run: bool) -> dict[str, Candidate]:
    sizes = list(shapes)
    fused = ("value", "offsets", "logits")

    def fallback(x: Inputs) -> Tensor:
        return bench_op.grid_sample_fallback(x["value"], sizes, x["loc"], x["weights"])

    found = {
        "op": Candidate(lambda x: msda.ms_deform_attn(x["value"], sizes, None, x["loc"], x["weights"])),
        "op, shapes on the device": Candidate(
            lambda x: msda.ms_deform_attn(x["value"], sizes if dry_run else x["shapes"], None, x["loc"], x["weights"])
        ),
        "op, float32 points": Candidate(
            lambda x: msda.ms_deform_attn(x["value"], sizes, None, x["loc32"], x["weights32"]),
            ("value", "loc32", "weights32"),
            (torch.bfloat16,),
        ),
        "op fused": Candidate(
            lambda x: msda.ms_deform_attn_fused(x["value"], sizes, None, x["reference"], x["offsets"], x["logits"]),
            fused,
        ),
        "grid_sample": Candidate(fallback),
    }
    if not dry_run:
        found["grid_sample compiled"] = Candidate(torch.compile(fallback, dynamic=False))
        if importlib.util.find_spec("triton") is not None:
            from triton_op import TritonOp

            found["triton"] = Candidate(lambda x: TritonOp.apply(x["value"], x["shapes"], x["loc"], x["weights"]))
    return found


def other_candidates(args: argparse.Namespace) -> dict[str, Candidate]:
    """Returns the operators of other projects, from the folders on the command line."""
    found: dict[str, Candidate] = {}
    plain = ("value", "shapes", "starts", "loc", "weights")
    if args.original:
        extension = _import_from(args.original, "MultiScaleDeformableAttention")

        class Original(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Tensor) -> Tensor:  # type: ignore[override]
                ctx.save_for_backward(*inputs)
                return extension.ms_deform_attn_forward(*inputs, 64)

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
                grads = extension.ms_deform_attn_backward(*ctx.saved_tensors, grad.contiguous(), 64)
                return grads[0], None, None, grads[1], grads[2]

        found["original"] = Candidate(lambda x: Original.apply(*(x[k] for k in plain)), dtypes=(torch.float32,))
    if args.mmcv:
        mmcv = _import_from(args.mmcv, "mmcv.ops.multi_scale_deform_attn").MultiScaleDeformableAttnFunction
        found["mmcv"] = Candidate(lambda x: mmcv.apply(*(x[k] for k in plain), 64), dtypes=(torch.float32,))
    if args.dcnv4:
        flash = _import_from(args.dcnv4, "DCNv4.functions").FlashDeformAttnFunction

        def flash_deform_attn(x: Inputs) -> Tensor:
            # FlashDeformAttn takes locations followed by logits and applies the softmax itself.
            points = torch.cat([x["loc"].flatten(-3), x["logits"].flatten(-2)], -1).contiguous()
            return flash.apply(x["value"], x["shapes"], x["starts"], points, 64, POINTS)

        found["FlashDeformAttn"] = Candidate(flash_deform_attn, ("value", "loc", "logits"))
    return found


def _import_from(folder: str, name: str) -> Any:
    if not Path(folder).is_dir():
        raise SystemExit(f"{folder}: no such folder (to import {name} from)")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"cannot import {name} from {folder}: {error}") from error


def call_of(candidate: Candidate, sets: Sequence[Inputs], backward: bool) -> Callable[[int], object]:
    """Returns a function of the call index that uses the next input set."""

    def run(i: int) -> object:
        x = sets[i % len(sets)]
        if not backward:
            with torch.no_grad():
                return candidate.function(x)
        leaves = {k: x[k].detach().requires_grad_() for k in candidate.leaves}
        output = candidate.function(x | leaves)
        return torch.autograd.grad(output, list(leaves.values()), x["grad"].view_as(output))

    return run


def measure(calls: dict[str, Callable[[int], object]], repeat: int, device: str) -> dict[str, float]:
    """Returns the median milliseconds of each call; calls are interleaved."""
    for call in calls.values():
        for i in range(2):
            call(i)
    times: dict[str, list[float]] = {name: [] for name in calls}
    events = [] if device == "cpu" else [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    for i in range(repeat):
        for name, call in calls.items():
            if device == "cpu":
                begin = time.perf_counter()
                call(i)
                times[name].append(1e3 * (time.perf_counter() - begin))
                continue
            torch.cuda._sleep(1_000_000)  # fills the queue, so that host time is not measured
            events[0].record()
            call(i)
            events[1].record()
            torch.cuda.synchronize()
            times[name].append(events[0].elapsed_time(events[1]))
    return {name: round(statistics.median(t), 5) for name, t in times.items()}


def peak_memory(call: Callable[[int], object], device: str) -> float | None:
    """Returns the peak memory in MB, excluding inputs."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(0)
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 2)


def gather_limit(sets: Sequence[Inputs], shapes: Sequence[tuple[int, int]], repeat: int) -> dict[str, float]:
    """Returns time and bandwidth of gathering the same rows with precomputed indices."""
    from triton_op import gather_rows

    calls = []
    for x in sets:
        n, rows = x["value"].shape[:2]
        scale = torch.tensor([(w, h) for h, w in shapes], device=x["loc"].device)[:, None]
        corner = (x["loc"].float() * scale - 0.5).floor().long()  # (N, Q, M, L, K, 2)
        corners = torch.stack([corner + corner.new_tensor(step) for step in ((0, 0), (1, 0), (0, 1), (1, 1))], -2)
        corners = torch.minimum(corners.clamp_min(0), scale[:, None] - 1)
        row = corners[..., 1] * scale[:, None, 0] + corners[..., 0] + x["starts"][:, None, None]  # (N, Q, M, L, K, 4)
        head = torch.arange(HEADS, device=row.device).view(1, 1, -1, 1, 1, 1)
        image = torch.arange(n, device=row.device).view(-1, 1, 1, 1, 1, 1)
        index = ((image * rows + row) * HEADS + head).permute(0, 2, 1, 3, 4, 5).reshape(-1, row[0, 0, 0].numel())
        table = x["value"].reshape(-1, CHANNELS)
        calls.append((table, index.int().contiguous()))
    ms = measure({"gather": lambda i: gather_rows(*calls[i % len(calls)])}, repeat, "cuda")["gather"]
    gathered = calls[0][1].numel() * CHANNELS * calls[0][0].element_size()
    return {"ms": ms, "GB/s": round(gathered / ms / 1e6, 1)}


def copy_bandwidth() -> float:
    """Returns the GB/s of a large copy on the device, counting bytes read and written."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    ms = measure({"copy": lambda i: target.copy_(source)}, 10, "cuda")["copy"]
    return round(2 * source.numel() * 4 / ms / 1e6, 1)


def run_case(case: Case, shapes: Sequence[tuple[int, int]], args: argparse.Namespace, device: str) -> dict[str, Any]:
    candidates = project_candidates(shapes, args.dry_run) | other_candidates(args)
    result: dict[str, Any] = {}
    for backward in (False, True):
        calls: dict[str, Callable[[int], object]] = {}
        for dtype in (torch.float32, torch.bfloat16):
            sets = [make_inputs(case, shapes, dtype, device, seed) for seed in range(args.sets)]
            for name, candidate in candidates.items():
                if dtype in candidate.dtypes:
                    calls[f"{name} {str(dtype).removeprefix('torch.')}"] = call_of(candidate, sets, backward)
            if not backward and device == "cuda" and importlib.util.find_spec("triton") is not None:
                result[f"gather limit {str(dtype).removeprefix('torch.')}"] = gather_limit(sets, shapes, args.repeat)
        ms = measure(calls, args.repeat, device)
        base = ms.get("original float32", ms["grid_sample float32"])
        result["forward + backward" if backward else "forward"] = {
            name: {"ms": t, "ratio": round(base / t, 3), "MB": peak_memory(calls[name], device)}
            for name, t in ms.items()
        }
    return result


def describe(device: str) -> dict[str, Any]:
    about: dict[str, Any] = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    about |= {"torch": torch.__version__, "cuda": torch.version.cuda, "ms_deform_attn": msda.__version__}
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
        about |= {"gpu": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
        about["driver, clocks"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        about["copy GB/s"] = copy_bandwidth()
    return about


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("original", "mmcv", "dcnv4"):
        parser.add_argument(f"--{name}", metavar="DIR")
    parser.add_argument("--repeat", type=int, default=50)
    parser.add_argument("--sets", type=int, default=3, help="number of input sets that calls cycle through")
    parser.add_argument("--cases", default="", help="only cases whose name contains this text")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    if not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("no GPU; --dry-run runs tiny sizes on the CPU")
    device = "cpu" if args.dry_run else "cuda"
    shapes = TINY if args.dry_run else FULL
    if args.dry_run:
        args.repeat, args.sets = 2, 2
    result: dict[str, Any] = {"about": describe(device), "dry run": args.dry_run, "cases": {}}
    for case in CASES:
        if args.cases not in case.name:
            continue
        if args.dry_run:
            case = Case(case.name, min(case.batch, 2), case.queries and 5)
        result["cases"][case.name] = run_case(case, shapes, args, device)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return result


if __name__ == "__main__":
    main()
