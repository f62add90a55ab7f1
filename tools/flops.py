#!/usr/bin/env python3
"""Parameters and FLOPs of the configs beside the paper's (arXiv 2010.04159, table 1).

tools/flops.py [--height 800 --width 1066] [CONFIG …]

A multiply-add counts as one FLOP, as in the papers. Matrix products, convolutions and the attention op are counted;
norms and activations are not.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from ms_deform_attn.flops import HANDLERS
from torch import Tensor, nn

from projects_deformable_detr import build_detector, get_cfg

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Config: (parameters in millions, FLOPs in billions) of the paper, for COCO's 91 logits.
PAPER = {
    "deformable_detr_r50_single_scale_50ep": (34, 78),
    "deformable_detr_r50_single_scale_dc5_50ep": (34, 128),
    "deformable_detr_r50_50ep": (40, 173),
    "deformable_detr_r50_box_refine_50ep": (41, 173),
    "deformable_detr_r50_two_stage_50ep": (41, 173),
}


class _Tensors(nn.Module):
    """The detector with plain tensors as its result, which is what tracing takes."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        predictions = self.detector(images, padding_mask)
        return predictions.logits, predictions.boxes


def _attention_products(inputs: Any, outputs: Any) -> int:
    """Multiply-adds of scaled_dot_product_attention: query by key, and weights by value."""
    batch, heads, queries, channels = inputs[0].type().sizes()
    keys = inputs[1].type().sizes()[-2]
    return 2 * batch * heads * queries * keys * channels


def count(config: Path, height: int, width: int, num_classes: int = 80) -> tuple[float, float]:
    """Parameters in millions and FLOPs in billions of one image (3, height, width)."""
    cfg = get_cfg("standalone")
    cfg.merge_from_file(str(config))
    cfg.MODEL.DETR.NUM_CLASSES = num_classes
    detector = build_detector(cfg).eval()
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    images = torch.zeros(1, 3, height, width)
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    with torch.no_grad():
        analysis = FlopCountAnalysis(_Tensors(detector), (images, mask))
        analysis.set_op_handle(**{"aten::scaled_dot_product_attention": _attention_products, **HANDLERS})
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        flops = sum(analysis.by_operator().values()) - _norms(analysis)
    return parameters / 1e6, flops / 1e9


def _norms(analysis: FlopCountAnalysis) -> int:
    return sum(value for name, value in analysis.by_operator().items() if "norm" in name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", type=Path, default=[CONFIGS / f"{name}.yaml" for name in PAPER])
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1066)
    args = parser.parse_args()
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    print(f"| config ({args.height} x {args.width}) | parameters, M | paper | FLOPs, G | paper |")
    print("|---|---|---|---|---|")
    for config in args.configs:
        parameters, flops = count(config, args.height, args.width)
        paper = PAPER.get(config.stem, ("", ""))
        print(f"| {config.stem} | {parameters:.1f} | {paper[0]} | {flops:.0f} | {paper[1]} |", flush=True)


if __name__ == "__main__":
    main()
