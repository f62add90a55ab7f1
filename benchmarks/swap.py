#!/usr/bin/env python3
"""Benchmarks CPU time and memory of Detectron2's Faster R-CNN R50-FPN and this project's models on one image.

python benchmarks/swap.py [--rounds 5] [--height 800] [--width 1066] [--threads 1] [--train]

Each measurement runs in a new process, the runs of the models are interleaved, and weights are randomly initialized.
Time is the CPU time of all threads in the second pass, which is less affected by other programs than wall time. Memory
is the peak (ru_maxrss) minus the peak before the first pass. --train measures a forward and backward pass on an image
with 8 objects. An untrained Faster R-CNN has fewer boxes to suppress in its last NMS than a trained one.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from projects_deformable_detr.engine import is_installed

RCNN = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
MODELS = ("deformable_detr_r50_50ep", "deformable_detr_r50_two_stage_50ep", "detr_r50_500ep")


def measure(name: str, height: int, width: int, threads: int, train: bool) -> dict[str, float]:
    """Measures one model in this process."""
    import torch
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    from projects_deformable_detr import model_zoo

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if name == RCNN:
        from detectron2 import model_zoo as detectron2_model_zoo

        cfg = detectron2_model_zoo.get_config(RCNN)
        cfg.MODEL.DEVICE = "cpu"
        model = build_model(cfg)
    else:
        model = model_zoo.get(name, engine="detectron2")
    record: dict = {"image": torch.randint(0, 256, (3, height, width)).float(), "height": height, "width": width}
    corners = torch.rand(8, 2) * 0.5
    boxes = torch.cat((corners, corners + 0.1 + torch.rand(8, 2) * 0.4), dim=1) * torch.tensor([width, height] * 2)
    record["instances"] = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.arange(8))
    model.train(train)

    def one_pass() -> None:
        if not train:
            with torch.no_grad():
                model([record])
            return
        with EventStorage():
            sum(model([record]).values()).backward()
        model.zero_grad()

    return _timed(one_pass)


def _timed(one_pass: Callable[[], None]) -> dict[str, float]:
    before = _peak()
    one_pass()
    start = time.process_time()
    one_pass()
    return {"seconds": time.process_time() - start, "mib": _peak() - before}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # in KiB on Linux


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1066)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--only", help="measure one model in this process and print JSON")
    args = parser.parse_args()
    if not is_installed("detectron2"):
        parser.error("Detectron2 is not installed")
    if args.only:
        print(json.dumps(measure(args.only, args.height, args.width, args.threads, args.train)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in (RCNN, *MODELS)}
    for _ in range(args.rounds):
        for name, measured in results.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
            process = subprocess.run(command, check=True, capture_output=True, text=True)
            measured.append(json.loads(process.stdout.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(each[key] for each in measured) for key in ("seconds", "mib")}
        for name, measured in results.items()
    }
    print("| model | CPU seconds (ratio) | range | peak MiB (ratio) |\n|---|---|---|---|")
    for name, median in medians.items():
        times = [each["seconds"] for each in results[name]]
        seconds, mib = (median[key] / medians[RCNN][key] for key in ("seconds", "mib"))
        print(
            f"| `{name}` | {median['seconds']:.2f} ({seconds:.2f}) | {min(times):.2f} to {max(times):.2f} "
            f"| {median['mib']:.0f} ({mib:.2f}) |"
        )


if __name__ == "__main__":
    main()
