#!/usr/bin/env python3
"""Measures time and memory from process start to the first image of a training run on a COCO-size annotation file.

    python benchmarks/data_startup.py --data DIR [--before CHECKOUT] [--engine ENGINE] [--masks] [--runs N]
    python benchmarks/data_startup.py --data DIR --mappers [--runs N]

The data set is generated in DIR once: 118,000 images (empty files) with 860,000 annotations, whose polygons have the
lengths of those in COCO, in about 450 MB of JSON, and a validation set of 5,000 images with 36,500 annotations. Every
run is a new process that executes ``train_net.py`` of the checkout on the CPU: config, checks of both data sets,
records, model, optimizer, sampler and two loader workers. It ends when a worker opens the first image file; the worker
then stores the time since process start, and the CPU time and peak resident memory (VmHWM) of the training process.
With ``--before``, the two checkouts alternate, and the ratios of their fastest runs and smallest peaks are printed.
Compare wall times on an idle machine only, CPU times otherwise.

``--mappers`` measures images per CPU second of the mappers of both engines, and of Detectron2's ``DatasetMapper`` with
the augmentations of ``deformable_detr_r50_50ep``. The mappers alternate. The images are generated: 640 x 480 pixels,
about 120 KB, 7 objects.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from projects_deformable_detr.engine import is_installed

ENGINES = {"standalone": "lightning", "detectron2": "detectron2"}  # engine: package
KEYS = ("seconds", "cpu_seconds", "megabytes")
SPLITS = {"train": (118_000, 860_000), "val": (5_000, 36_500)}
# Executed in place of train_net.py: a worker's first Image.open ends the run.
PROBE = """
import json, os, runpy, sys, time
from PIL import Image
started, out, script = float(sys.argv[1]), sys.argv[2], sys.argv[3]
main = os.getpid()
def stop(*_, **__):
    parent = os.getppid() if os.getpid() != main else main
    status = dict(line.split(":", 1) for line in open(f"/proc/{parent}/status") if ":" in line)
    try:
        with open(out, "x") as file:
            ticks = open(f"/proc/{parent}/stat").read().rsplit(")", 1)[1].split()[11:13]
            values = {"seconds": time.time() - started, "megabytes": int(status["VmHWM"].split()[0]) / 1024}
            json.dump(values | {"cpu_seconds": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")}, file)
    except FileExistsError:
        pass
    os._exit(0)
Image.open = stop
sys.argv = sys.argv[3:]
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name="__main__")
"""


def generate(folder: Path) -> None:
    """Writes ``{train,val}.json`` and folders of empty image files."""
    random = np.random.default_rng(0)
    pool = [_shape(random) for _ in range(5_000)]
    for split, (num_images, num_annotations) in SPLITS.items():
        images = folder / split
        images.mkdir(parents=True, exist_ok=True)
        records = []
        for image_id in range(1, num_images + 1):
            name = f"{image_id:012d}.jpg"
            (images / name).touch()
            records.append(
                f'{{"license":3,"file_name":"{name}","coco_url":"http://images.example/{split}/{name}","height":480,'
                f'"width":640,"date_captured":"2013-11-14 17:02:52","flickr_url":"http://f.example/{name}",'
                f'"id":{image_id}}}'
            )
        owners = random.integers(1, num_images + 1, num_annotations)
        categories = random.integers(1, 81, num_annotations)
        chosen = random.integers(0, len(pool), num_annotations)
        rows = (
            f'{{{pool[shape]},"image_id":{owner},"category_id":{category},"id":{index}}}'
            for index, (shape, owner, category) in enumerate(
                zip(chosen.tolist(), owners.tolist(), categories.tolist(), strict=True), 1
            )
        )
        classes = ",".join(f'{{"supercategory":"thing","id":{i},"name":"class {i}"}}' for i in range(1, 81))
        with open(folder / f"{split}.partial", "w") as file:
            file.write(f'{{"info":{{}},"licenses":[],"images":[{",".join(records)}],"annotations":[')
            for index, row in enumerate(rows):
                file.write("," * (index > 0) + row)
            file.write(f'],"categories":[{classes}]}}')
        os.replace(folder / f"{split}.partial", folder / f"{split}.json")


def _shape(random: np.random.Generator) -> str:
    """Returns segmentation, area, iscrowd and box of an annotation as JSON; one percent are crowds with RLE."""
    width, height = random.uniform(10, 300, 2)
    x, y = random.uniform(0, 640 - width), random.uniform(0, 480 - height)
    box = f'"bbox":[{x:.2f},{y:.2f},{width:.2f},{height:.2f}]'
    if random.random() < 0.01:
        runs = random.multinomial(640 * 480, np.ones(201) / 201).tolist()
        return f'"segmentation":{{"counts":{json.dumps(runs)},"size":[480,640]}},"area":900,"iscrowd":1,{box}'
    points = int(np.clip(random.lognormal(2.9, 0.75), 4, 400))
    corners = random.uniform((x, y), (x + width, y + height), (points, 2)).ravel()
    polygon = ",".join(f"{value:.2f}" for value in corners)
    return f'"segmentation":[[{polygon}]],"area":{width * height / 2:.4f},"iscrowd":0,{box}'


def measure(checkout: Path, engine: str, data: Path, masks: bool) -> dict[str, float]:
    """Runs one training up to its first image and returns the values of `KEYS`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "result.json")
        recipe = "deformable_detr_r50_instance" if masks else "deformable_detr_r50_50ep"
        command = [
            sys.executable, "-c", PROBE, str(time.time()), str(out), str(checkout / "train_net.py"),
            "--config-file", str(checkout / f"configs/{recipe}.yaml"), "--engine", engine, "--num-gpus", "0",
            "--register", "big_train", str(data / "train.json"), str(data / "train"),
            "--register", "big_val", str(data / "val.json"), str(data / "val"),
            "DATASETS.TRAIN", "('big_train',)", "DATASETS.TEST", "('big_val',)", "MODEL.WEIGHTS", "",
            "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "2",
            "OUTPUT_DIR", f"{folder}/output",
        ]  # fmt: skip
        if "CHECK_IMAGES" in (checkout / "projects_deformable_detr/config/keys.py").read_text():
            command += ["DATASETS.CHECK_IMAGES", "none"]  # the image files are empty
        paths = os.pathsep.join((str(checkout), str(checkout / "ops")))
        log = Path(folder, "log")
        with open(log, "w") as file:
            subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, cwd=folder, stdout=file, stderr=file)
        if not out.exists():
            sys.exit(f"{checkout} ({engine}): training ended before it read an image:\n{log.read_text()[-3000:]}")
        return dict(json.loads(out.read_text()))


def measure_mappers(folder: Path, runs: int) -> None:
    """Prints images per second of CPU time of each mapper, the median of the runs."""
    import torch

    from projects_deformable_detr import model_zoo
    from projects_deformable_detr.config.training import augmentation_policy
    from projects_deformable_detr.standalone.data import DetectionDataset

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    policy = augmentation_policy(model_zoo.get_config("deformable_detr_r50_50ep", engine="standalone"), is_train=True)
    records = _photographs(folder / "photographs")
    dataset, positions = DetectionDataset(records, policy), itertools.count()
    mappers: dict[str, Callable[[int], object]] = {"standalone": lambda index: dataset[next(positions), index]}
    if is_installed("detectron2"):
        from detectron2.data import DatasetMapper
        from detectron2.structures import BoxMode

        from projects_deformable_detr.detectron2_plugin.mapper import DetrDatasetMapper, build_augmentations

        for item in itertools.chain(*(record["annotations"] for record in records)):
            item["bbox_mode"] = BoxMode.XYWH_ABS
        options = {"is_train": True, "augmentations": build_augmentations(policy), "image_format": "RGB"}
        for name, kind in (("detectron2", DetrDatasetMapper), ("Detectron2's DatasetMapper", DatasetMapper)):
            mapper = kind(**options)
            mappers[name] = lambda index, mapper=mapper: mapper(records[index])  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in mappers}
    for _ in range(runs):
        for name, read in mappers.items():
            np.random.seed(0)
            start = time.process_time()
            for index in range(len(records)):
                read(index)
            seconds[name].append(time.process_time() - start)
    for name, values in seconds.items():
        print(f"{name:27} {len(records) / statistics.median(values):6.1f} images per CPU second")


def _photographs(folder: Path, count: int = 64) -> list[dict[str, Any]]:
    """Writes images with structure at all scales, as photographs have, and returns their records."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(count):
        pixels = np.full((480, 640, 3), 128.0)
        for step in (1, 2, 4, 8, 16, 32, 64):
            noise = random.normal(0, 7 * step**0.4, (-(-480 // step), -(-640 // step), 3))
            pixels += cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
        path = folder / f"{index}.jpg"
        cv2.imwrite(str(path), pixels.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
        items = [json.loads(f"{{{_shape(random)}}}") | {"category_id": 0} for _ in range(7)]
        size = {"height": 480, "width": 640, "image_id": index}
        records.append({"file_name": str(path), "annotations": items, **size})
    return records


def main() -> None:
    """Prints the values of `KEYS` for each checkout and engine, and the ratios after / before."""
    parser = argparse.ArgumentParser(description="Measures the start of a training run on a COCO-size annotation file.")
    parser.add_argument("--data", required=True, type=Path, help="folder of the generated data set")
    parser.add_argument("--checkout", type=Path, default=Path(__file__).parents[1], help="default: this one")
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: all that are installed")
    parser.add_argument("--masks", action="store_true", help="also train masks")
    parser.add_argument("--mappers", action="store_true", help="measure images per second of the mappers instead")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    if args.mappers:
        measure_mappers(args.data, args.runs)
        return
    if not (args.data / "val.json").is_file():
        generate(args.data)
    checkouts = {"after": args.checkout.resolve()} | ({"before": args.before.resolve()} if args.before else {})
    for engine in args.engine or [name for name, package in ENGINES.items() if is_installed(package)]:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
        for _ in range(args.runs):
            for name, checkout in checkouts.items():
                found[name].append(measure(checkout, engine, args.data.resolve(), args.masks))
        best = {name: {key: min(run[key] for run in runs) for key in KEYS} for name, runs in found.items()}
        for name, values in best.items():
            print(f"{engine:11} {name:7}", *(f"{values[key]:8.1f} {key}" for key in KEYS), flush=True)
        if args.before:
            ratios = [best["after"][key] / best["before"][key] for key in KEYS]
            print(f"{engine:11} ratio  ", *(f"{ratio:8.2f} {key}" for ratio, key in zip(ratios, KEYS, strict=True)))


if __name__ == "__main__":
    main()
