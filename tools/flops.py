#!/usr/bin/env python3
"""Counts parameters and FLOPs of configs, next to those in table 1 of arXiv 2005.12872 and 2010.04159.

tools/flops.py [--sizes 800x1066 800x1120] [--classes 91] [CONFIG …]

A multiply-add counts as one FLOP (see projects_deformable_detr/inference/flops.py). The papers average over the
first 100 images of COCO val2017, resized to a shorter side of 800 pixels. Most are wider than 4:3, hence the second
default size. Their models have 91 logits. Without CONFIG, all configs for COCO are counted, and Detectron2's Faster
R-CNN R50-FPN if Detectron2 is installed.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

try:
    from projects_deformable_detr import build_detector, get_cfg
    from projects_deformable_detr.config import merge
    from projects_deformable_detr.errors import run_command
    from projects_deformable_detr.inference.flops import Size, count_detector, count_flops, count_parameters
except ImportError as error:  # the operator is missing
    sys.exit(f"flops: {error}")

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FASTER_RCNN = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
# Parameters in millions and FLOPs in billions of the papers, by config.
PAPER = {
    "detr_r50_500ep": (41, 86),
    "detr_r50_300ep": (41, 86),
    "detr_r50_dc5_500ep": (41, 187),
    "detr_r50_dc5_plus_50ep": (41, 187),
    "detr_r101_500ep": (60, 152),
    "detr_r101_dc5_500ep": (60, 253),
    "deformable_detr_r50_single_scale_50ep": (34, 78),
    "deformable_detr_r50_single_scale_dc5_50ep": (34, 128),
    "deformable_detr_r50_50ep": (40, 173),
    "deformable_detr_r50_box_refine_50ep": (41, 173),
    "deformable_detr_r50_two_stage_50ep": (41, 173),
    FASTER_RCNN: (42, 180),
}


def count(cfg: Any, sizes: list[Size], num_classes: int = 91) -> tuple[float, list[float]]:
    """Returns parameters in millions, and FLOPs in billions for one image of each size (height, width)."""
    cfg.MODEL.DETR.NUM_CLASSES = num_classes
    with torch.device("meta"):
        detector = build_detector(cfg, weights="")
    return count_parameters(detector), count_detector(detector, sizes)


def count_faster_rcnn(sizes: list[Size]) -> tuple[float, list[float]]:
    """Returns the same numbers for Detectron2's Faster R-CNN with random weights and COCO's 80 classes."""
    from detectron2 import model_zoo
    from detectron2.export import TracingAdapter
    from detectron2.modeling import build_model

    cfg = model_zoo.get_config(FASTER_RCNN)
    cfg.MODEL.DEVICE = "cpu"
    # Without suppression, the number of proposals is POST_NMS_TOPK_TEST, as in a trained model.
    cfg.MODEL.RPN.NMS_THRESH = 1.0
    model = build_model(cfg).eval()
    nn.init.zeros_(model.proposal_generator.rpn_head.anchor_deltas.weight)
    flops = []
    for height, width in sizes:
        adapter = TracingAdapter(model, [{"image": torch.zeros(3, height, width)}], allow_non_tensor=True)
        flops.append(count_flops(adapter, *adapter.flattened_inputs))
    return count_parameters(model), flops


def coco_configs() -> list[Path]:
    """Returns the configs for COCO that start from ImageNet weights, which excludes the small ones."""
    paths = {path: _read(path) for path in sorted(CONFIGS.rglob("*.yaml")) if not path.name.startswith("Base-")}
    return [path for path, cfg in paths.items() if cfg.MODEL.WEIGHTS and cfg.DATASETS.TRAIN[0].startswith("coco_")]


def _read(path: Path) -> Any:
    cfg = get_cfg("standalone")
    merge(cfg, str(path), [])
    return cfg


def _size(text: str) -> Size:
    height, _, width = text.partition("x")
    return int(height), int(width)


def _row(name: str, parameters: float, flops: list[float]) -> None:
    paper = PAPER.get(name.rpartition("/")[2] if name not in PAPER else name, ("–", "–"))
    cells = [f"`{name}`", f"{parameters:.1f}", paper[0], *(f"{value:.0f}" for value in flops), paper[1]]
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(800, 1066), (800, 1120)], metavar="HxW")
    parser.add_argument("--classes", type=int, default=91)
    args = parser.parse_args()
    sizes = " | ".join(f"FLOPs, G, {height} x {width}" for height, width in args.sizes)
    print(f"| config ({args.classes} classes) | parameters, M | paper | {sizes} | paper |")
    print("|---|---|---|" + "---|" * (len(args.sizes) + 1))
    known: dict[str, tuple[float, list[float]]] = {}  # configs that differ only in their recipe have the same model
    for path in map(Path.resolve, args.configs or coco_configs()):
        name = str(path.relative_to(CONFIGS).with_suffix("")) if path.is_relative_to(CONFIGS) else path.stem
        cfg = _read(path)
        model = cfg.MODEL.dump()
        if model not in known:
            known[model] = count(cfg, args.sizes, args.classes)
        _row(name, *known[model])
    if not args.configs and importlib.util.find_spec("detectron2"):
        _row(FASTER_RCNN, *count_faster_rcnn(args.sizes))


if __name__ == "__main__":
    sys.exit(run_command("flops", main))
