#!/usr/bin/env python3
"""Compares time and memory of Deformable DETR's class loss with torchvision's sigmoid_focal_loss on the CPU.

benchmarks/focal_loss.py [--rounds 7] [--classes 80 1203] [--images 2] [--queries 300] [--layers 6] [--threads 1]

Each measurement runs in a new process; the two losses alternate. Time is the CPU time of all threads in the second
forward and backward pass, which is less affected by other programs than wall time. Memory is the peak (ru_maxrss) minus
the peak before the first pass. The table shows medians and, in parentheses, ratios to torchvision, whose targets are
one-hot. Eight queries per image are matched. The two losses must agree to 4 digits.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from projects_deformable_detr.modeling.losses import FocalClassification

NAMES = ("torchvision", "FocalClassification")
MATCHED = 8  # queries per image


def loss(name: str, logits: Tensor, matched: Tensor) -> Tensor:
    """Returns losses (layers,) for logits (layers, N, Q, classes) and matched classes (layers, N, Q), -1 for none."""
    count = (matched[0] >= 0).sum()
    if name == "FocalClassification":
        return FocalClassification().loss(logits, matched, count, count)
    classes = logits.shape[-1]
    targets = F.one_hot(matched.where(matched >= 0, classes), classes + 1)[..., :-1].to(logits.dtype)
    return sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0).sum((1, 2, 3)) / count


def measure(name: str, shape: tuple[int, int, int, int], threads: int) -> dict[str, float]:
    """Measures one of the losses in this process."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=generator) - 4).requires_grad_()
    matched = torch.full(shape[:3], -1)
    matched[..., :MATCHED] = torch.randint(0, shape[3], (*shape[:2], MATCHED), generator=generator)
    before, seconds, value = _peak(), 0.0, 0.0
    for _ in range(2):
        start = time.process_time()
        total = loss(name, logits, matched).sum()
        total.backward()
        seconds, value = time.process_time() - start, total.item()
        logits.grad = None
    return {"seconds": seconds, "mib": _peak() - before, "loss": value}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # in KiB on Linux


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--classes", type=int, nargs="+", default=[80, 1203])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=NAMES, help="measure one loss in this process and print JSON")
    args = parser.parse_args()
    if args.only:
        shape = (args.layers, args.images, args.queries, args.classes[0])
        print(json.dumps(measure(args.only, shape, args.threads)))
        return
    print("| classes | loss | CPU ms (ratio) | range | peak MiB (ratio) |\n|---|---|---|---|---|")
    for classes in args.classes:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
        for _ in range(args.rounds):
            for name, measured in found.items():
                command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--classes", str(classes)]
                result = subprocess.run(command, check=True, capture_output=True, text=True)
                measured.append(json.loads(result.stdout.splitlines()[-1]))
        report(classes, found)


def report(classes: int, found: dict[str, list[dict[str, float]]]) -> None:
    """Prints rows of the table; exits with an error if the two losses differ."""
    medians = {
        name: {key: statistics.median(each[key] for each in measured) for key in ("seconds", "mib", "loss")}
        for name, measured in found.items()
    }
    expected, found_loss = (medians[name]["loss"] for name in NAMES)
    if abs(expected - found_loss) > 1e-4 * abs(expected):
        raise SystemExit(f"the losses differ: {expected} and {found_loss}")
    for name, median in medians.items():
        times = [1000 * each["seconds"] for each in found[name]]
        seconds, mib = (median[key] / medians[NAMES[0]][key] for key in ("seconds", "mib"))
        print(
            f"| {classes} | {name} | {1000 * median['seconds']:.0f} ({seconds:.2f}) "
            f"| {min(times):.0f} to {max(times):.0f} | {median['mib']:.0f} ({mib:.2f}) |"
        )


if __name__ == "__main__":
    main()
