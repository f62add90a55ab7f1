#!/usr/bin/env python3
"""Benchmarks CPU time and memory of this project's models, Hugging Face transformers' and Detectron2's Faster R-CNN.

    python3 benchmarks/bench_model.py                 # inference on one image of 800 x 1066
    python3 benchmarks/bench_model.py --train         # forward and backward pass on an image with 8 objects
    python3 benchmarks/bench_model.py --only bf16     # models whose name contains "bf16", and the baseline
    python3 benchmarks/bench_model.py --folder DIR    # detection in image files, from reading to boxes
    python3 benchmarks/bench_model.py --train --busy 1  # beside a process that occupies a core
    python3 benchmarks/bench_model.py --train --operations  # CPU time by kind of operation

Each measurement runs in a new process, the runs of the models are interleaved, and weights are randomly initialized.
Times are medians of the second pass (of the folder: after a pass with its first image): CPU time of all threads, which
is less affected by other programs, and wall time. Memory is the peak (ru_maxrss) minus the peak before the first pass.
``--operations`` measures the second pass with PyTorch's profiler. "bf16" is autocast, "checkpointing" is activation
checkpointing of the encoder, "operator" is ms_deform_attn.integrations.transformers. An untrained Faster R-CNN has
fewer boxes to suppress in its last NMS than a trained one.
"""

import argparse
import contextlib
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from projects_deformable_detr.engine import is_installed

BASELINE = "transformers deformable_detr"
RCNN = "Detectron2 faster_rcnn_R_50_FPN_3x"
MODELS = {  # package that must be installed
    BASELINE: "transformers",
    "transformers deformable_detr, operator": "transformers",
    "transformers detr": "transformers",
    RCNN: "detectron2",
    "deformable_detr_r50_50ep": "torch",
    "deformable_detr_r50_50ep, bf16": "torch",
    "deformable_detr_r50_50ep, checkpointing": "torch",
    "deformable_detr_r50_two_stage_50ep": "torch",
    "detr_r50_500ep": "torch",
    "detr_r50_500ep, bf16": "torch",
}
# Names of PyTorch's operations, by kind. The feed-forward network is one autograd function.
KINDS = {
    "convolution": "conv",
    "matrix product": r"mm$|linear|matmul",
    "attention": "attention",
    "operator": "ms_deform_attn",
}


def measure(
    name: str, height: int, width: int, threads: int, train: bool, operations: bool = False
) -> dict[str, float]:
    """Measures one model in this process; with ``operations``, returns the CPU seconds of each kind of operation."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    centers, sides = 0.3 + 0.4 * torch.rand(8, 2), 0.05 + 0.4 * torch.rand(8, 2)
    boxes = torch.cat((centers, sides), dim=1)  # normalized (cx, cy, w, h)
    build = _build_rcnn if name == RCNN else _build_transformers if "transformers" in name else _build_detector
    one_pass = build(name, torch.randn(1, 3, height, width), boxes, train)
    autocast = torch.autocast("cpu", torch.bfloat16) if "bf16" in name else contextlib.nullcontext()

    def run() -> None:
        with torch.set_grad_enabled(train):
            with autocast:
                losses = one_pass()
            if train:
                sum(losses).backward()

    return _kinds(run) if operations else _timed(run, run)


def _build_detector(name: str, images: Any, boxes: Any, train: bool) -> Callable[[], Any]:
    import torch

    from projects_deformable_detr import build_criterion, build_detector, model_zoo
    from projects_deformable_detr.modeling import Targets

    cfg = model_zoo.get_config(name.partition(",")[0], engine="standalone")
    cfg.MODEL.DETR.NUM_CLASSES = 80
    cfg.MODEL.DETR.ACTIVATION_CHECKPOINTING = "checkpointing" in name
    detector, criterion = build_detector(cfg, weights="").train(train), build_criterion(cfg)
    mask = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    targets = [Targets(torch.arange(8), boxes)]
    if not train:
        return lambda: detector(images, mask)
    return lambda: criterion(detector(images, mask), targets).values()


def _transformers_model(name: str) -> Any:
    import transformers
    from ms_deform_attn.integrations.transformers import enable

    if "operator" in name:
        enable()
    deformable = "deformable" in name
    backbone = transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"] if deformable else ["stage4"])
    kind = "DeformableDetr" if deformable else "Detr"
    config = getattr(transformers, f"{kind}Config")(backbone_config=backbone, num_labels=80, auxiliary_loss=True)
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


def _build_transformers(name: str, images: Any, boxes: Any, train: bool) -> Callable[[], Any]:
    import torch

    model = _transformers_model(name).train(train)
    # With this backbone, transformers freezes all of ResNet; here, its stem and first stage, as in this project.
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(".embedder." not in parameter_name and ".stages.0." not in parameter_name)
    mask = torch.ones(len(images), *images.shape[2:], dtype=torch.long)
    labels = [{"class_labels": torch.arange(8), "boxes": boxes}]
    if not train:
        return lambda: model(images, mask)
    return lambda: [model(images, mask, labels=labels).loss]


def _build_rcnn(name: str, images: Any, boxes: Any, train: bool) -> Callable[[], Any]:
    import torch
    from detectron2 import model_zoo
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage
    from torchvision.ops import box_convert

    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).train(train)
    height, width = images.shape[2:]
    corners = box_convert(boxes, "cxcywh", "xyxy") * torch.tensor([width, height] * 2)
    instances = Instances((height, width), gt_boxes=Boxes(corners), gt_classes=torch.arange(8))
    record = {"image": images[0], "height": height, "width": width, "instances": instances}

    def one_pass() -> Any:
        with EventStorage():
            outputs = model([record])
        return outputs.values() if train else outputs

    return one_pass


def measure_folder(name: str, folder: str, threads: int) -> dict[str, float]:
    """Measures detection in the files of a folder, resized to 800 pixels, in this process."""
    import torch

    torch.set_num_threads(threads)
    paths = sorted(str(path) for path in Path(folder).iterdir())
    build = _rcnn_predictor if name == RCNN else _transformers_pipeline if "transformers" in name else _load_detector
    detect = build(name)
    return _timed(lambda: detect(paths[:1]), lambda: detect(paths))


def _load_detector(name: str) -> Callable[[list[str]], Any]:
    import torch

    from projects_deformable_detr import Detector, build_detector, model_zoo

    recipe, dtype = name.partition(",")[0], "bfloat16" if "bf16" in name else "float32"
    cfg = model_zoo.get_config(recipe, engine="standalone")
    cfg.MODEL.DETR.NUM_CLASSES = 80
    with tempfile.TemporaryDirectory() as folder:
        torch.save(build_detector(cfg, weights="").state_dict(), f"{folder}/model.pth")
        names = [str(index) for index in range(80)]
        return Detector.load(f"{folder}/model.pth", config=cfg, class_names=names, device="cpu", dtype=dtype)


def _transformers_pipeline(name: str) -> Callable[[list[str]], Any]:
    import transformers

    model = _transformers_model(name)
    processor = transformers.DeformableDetrImageProcessor()
    pipeline = transformers.pipeline("object-detection", model=model.eval(), image_processor=processor, device="cpu")
    return lambda paths: pipeline(paths)


def _rcnn_predictor(name: str) -> Callable[[list[str]], Any]:
    from detectron2 import model_zoo
    from detectron2.data.detection_utils import read_image
    from detectron2.engine import DefaultPredictor

    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    predictor = DefaultPredictor(cfg)
    return lambda paths: [predictor(read_image(path, "BGR")) for path in paths]


def _timed(warm_up: Callable[[], object], one_pass: Callable[[], object]) -> dict[str, float]:
    before = _peak()
    warm_up()
    cpu, wall = time.process_time(), time.perf_counter()
    one_pass()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "mib": _peak() - before}


def _kinds(one_pass: Callable[[], object]) -> dict[str, float]:
    from torch.profiler import ProfilerActivity, profile

    one_pass()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        one_pass()
    seconds = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.key)), "other")
        seconds[kind] += event.self_cpu_time_total / 1e6
    return seconds


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # in KiB on Linux


def _plot(medians: dict[str, dict[str, float]], file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.4 * len(medians) + 1), layout="constrained")
    for axes, (key, title) in zip(
        figure.subplots(1, 2, sharey=True), (("wall", "seconds"), ("mib", "peak MiB")), strict=True
    ):
        bars = axes.barh(list(medians), [each[key] for each in medians.values()])
        axes.bar_label(bars, fmt="{:.4g}", padding=2)
        axes.margins(x=0.25)
        axes.set_xlabel(title)
    axes.invert_yaxis()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1066)
    parser.add_argument("--threads", type=int, default=2)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--train", action="store_true")
    mode.add_argument("--folder", metavar="DIR", help="measure detection in the images of this folder")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="number of other processes that occupy a core")
    parser.add_argument("--operations", action="store_true", help="print CPU seconds by kind of operation")
    parser.add_argument("--plot", metavar="FILE", help="save a bar chart of the wall times and peaks")
    parser.add_argument("--only", default="", help="measure models whose name contains this, and the baseline")
    parser.add_argument("--baseline", default=BASELINE, help="model to which ratios refer (default: %(default)s)")
    parser.add_argument("--measure", metavar="MODEL", help="measure one model in this process and print JSON")
    args = parser.parse_args()
    if args.measure:
        if args.folder:
            result = measure_folder(args.measure, args.folder, args.threads)
        else:
            result = measure(args.measure, args.height, args.width, args.threads, args.train, args.operations)
        print(json.dumps(result))
        return
    names = [name for name in MODELS if args.only in name or name == args.baseline]
    for name in [name for name in names if not is_installed(MODELS[name])]:
        print(f"Skipped {name}: {MODELS[name]} is not installed")
        names.remove(name)
    if args.baseline not in names:
        parser.error(f"the baseline {args.baseline} cannot be measured")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with contextlib.ExitStack() as others:
        for _ in range(args.busy):
            other = others.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            others.callback(other.kill)
        for name, measured in list(results.items()) * args.rounds:
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
            process = subprocess.run(command, check=True, capture_output=True, text=True)
            measured.append(json.loads(process.stdout.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(each[key] for each in measured) for key in measured[0]}
        for name, measured in results.items()
    }
    if args.operations:
        for name, seconds in medians.items():
            total = sum(seconds.values())
            print(
                f"{name}: {total:.2f} s,", *(f"{kind} {each / total:.1%}" for kind, each in seconds.items()), sep="  "
            )
        return
    if args.plot:
        _plot(medians, args.plot)
    base = medians[args.baseline]
    print("| model | CPU seconds (speedup) | wall seconds (speedup) | peak MiB (ratio) |\n|---|---|---|---|")
    for name, median in medians.items():
        cpu, wall = (f"{median[key]:.2f} ({base[key] / median[key]:.2f}x)" for key in ("cpu", "wall"))
        print(f"| {name} | {cpu} | {wall} | {median['mib']:.0f} ({median['mib'] / base['mib']:.2f}) |")


if __name__ == "__main__":
    main()
