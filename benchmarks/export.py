#!/usr/bin/env python3
"""Compares exported models with PyTorch: time of a forward pass, size of the file, AP.

benchmarks/export.py model_final.pth val.json images/ --calibration train/ --output /tmp/exports [--sizes 128 512]
benchmarks/export.py --random deformable_detr_r50_two_stage_50ep --sizes 800x1066 --formats pytorch:bfloat16 --rounds 3

Prints the table of docs/export.md. Times are medians of the CPU time of all threads; the models alternate, so that
other programs affect all of them. PyTorch uses one thread, and other runtimes one for each processor: ``taskset -c 0``
limits them to one. Files in the output folder are reused.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import torch

from projects_deformable_detr import build_detector, get_cfg, model_zoo
from projects_deformable_detr.config.inference import ModelMetadata
from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.export import GraphSpec, calibration_images, export_model, suffix
from projects_deformable_detr.inference import Detector
from projects_deformable_detr.inference.evaluation import evaluate

FORMATS = (
    "pytorch:bfloat16", "aoti:float32", "aoti:bfloat16", "aoti:int8", "onnx:float32", "onnx:int8",
    "openvino:float32", "openvino:float16", "openvino:bfloat16", "openvino:int8",
)  # fmt: skip


def parse_size(text: str) -> tuple[int, int]:
    """Parses "SIDE" or "HxW"."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def load(args: argparse.Namespace) -> Detector:
    """Loads the model, or builds one with random weights."""
    if args.random is None:
        return Detector.load(args.weights, device="cpu")
    cfg = get_cfg("standalone")
    cfg.merge_from_file(model_zoo.get_config_file(args.random))
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DETR.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES or 80
    model = build_detector(cfg)
    names = tuple(str(index) for index in range(cfg.MODEL.DETR.NUM_CLASSES))
    return Detector(model, ModelMetadata(names, model.no_object, cfg.MODEL.MASK_ON), device="cpu")


def export(base: Detector, name: str, args: argparse.Namespace) -> tuple[Detector, float]:
    """Exports the model; returns it and the size of its files in MB."""
    format, precision = name.split(":")
    if format == "pytorch":
        return Detector(base.model, base.metadata, device="cpu", dtype=precision), 0.0
    path = args.output / f"{format}_{precision}{suffix(format)}"
    if not path.exists():
        images = calibration_images(args.calibration, base.metadata) if precision == "int8" else None
        export_model(base.model, base.metadata, path, GraphSpec(format, precision), calibration=images)
    files = [path, path.with_suffix(".bin")] if format == "openvino" else [path]
    return Detector.load(path, device="cpu"), sum(file.stat().st_size for file in files) / 1e6


@torch.no_grad()
def measure(detectors: dict[str, Detector], size: tuple[int, int], rounds: int) -> dict[str, float]:
    """Returns the median CPU time of a forward pass of each model in milliseconds."""
    inputs = torch.randn(1, 3, *size), torch.zeros(1, *size, dtype=torch.bool)
    times: dict[str, list[float]] = {name: [] for name in detectors}
    for _ in range(rounds + 1):  # the first round is a warm-up
        for name, detector in detectors.items():
            is_mixed = detector.dtype != torch.float32
            with torch.autocast("cpu", detector.dtype) if is_mixed else contextlib.nullcontext():
                start = time.process_time()
                detector.model(*inputs)
                times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Runs the benchmark and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", help="checkpoint")
    parser.add_argument("data", nargs="?", help="annotations in COCO format, for AP")
    parser.add_argument("images", nargs="?", help="folder of the images")
    parser.add_argument("--random", metavar="CONFIG", help="recipe of a model with random weights, without AP")
    parser.add_argument("--calibration", type=Path, help="folder of images for int8")
    parser.add_argument("--output", type=Path, help="folder of the exported files (default: temporary)")
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[(128, 128), (512, 512)], metavar="SIZE")
    parser.add_argument("--formats", nargs="+", default=FORMATS, metavar="FORMAT:PRECISION")
    parser.add_argument("--rounds", type=int, default=15, help="measured passes (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        args.output = args.output or Path(temporary)
        base = load(args)
        found = {name: export(base, name, args) for name in args.formats}
        detectors = {"pytorch:float32": base} | {name: detector for name, (detector, _) in found.items()}
        times = [measure(detectors, size, args.rounds) for size in args.sizes]
        records = None
        if args.data is not None:
            records = load_dataset(DatasetSpec("val", args.data, args.images), "drop_many", for_evaluation=True)
        header = ["format", "precision", *(f"ratio, {height} × {width}" for height, width in args.sizes), "MB", "AP"]
        print("|", " | ".join(header), "|")
        print("|" + "---|" * len(header))
        for name, detector in detectors.items():
            ratios = [f"{part['pytorch:float32'] / part[name]:.2f} ({part[name]:.0f} ms)" for part in times]
            ap = ""
            if records is not None:
                ap = f"{evaluate(detector, records, Path(temporary)).metrics['bbox']['AP']:.2f}"
            megabytes = f"{found[name][1]:.1f}" if name in found and found[name][1] else ""
            print("|", " | ".join([*name.split(":"), *ratios, megabytes, ap]), "|", flush=True)


if __name__ == "__main__":
    main()
