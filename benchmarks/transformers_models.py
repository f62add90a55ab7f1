#!/usr/bin/env python3
"""Compares the models of Hugging Face transformers before and after ms_deform_attn.integrations.transformers.enable().

benchmarks/transformers_models.py [MODEL ...] [--rounds 3] [--backward deformable_detr mask2former rt_detr]

Default configs with random weights, one random image, float32. Time is the median CPU time of one thread of a forward
pass; both variants alternate. The difference is the largest of all floating-point outputs; with backward, that of the
gradients of the parameters and the image, relative to the largest gradient. Prints a table in Markdown.
"""

import argparse
import importlib
import statistics
import time
import warnings
from typing import Any

import ms_deform_attn.integrations.transformers as integration
import torch
from torch import Tensor, nn

SIZES = {"lw_detr": 640, "omdet_turbo": 640, "pp_doclayout_v2": 640, "rf_detr": 448}  # other models: 480
HEADS = "ForObjectDetection", "ForUniversalSegmentation"


def build(name: str) -> nn.Module:
    """Builds a model with the default config and random weights."""
    torch.manual_seed(0)
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    kind = next(getattr(module, item) for item in module.__all__ if item.endswith(HEADS))
    config = kind.config_class()
    if name == "pp_doclayout_v2":  # the default has no values for its classes
        config.class_thresholds, config.class_order = [0.5] * config.num_labels, list(range(config.num_labels))
    if name == "lw_detr":  # the defaults of the projector and the decoder have different numbers of levels
        config.projector_scale_factors, config.num_feature_levels = [1.0], 1
    model: nn.Module = kind(config).eval()
    for key, parameter in model.named_parameters():
        if "sampling_offsets" in key or "attention_weights" in key:  # zero initial weights would hide errors
            with torch.no_grad():
                parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.uniform_(-3, 3)
    return model


def inputs(name: str, size: int) -> dict[str, Tensor]:
    """Returns random inputs of a model."""
    found = {"pixel_values": torch.randn(1, 3, size, size)}
    if name.endswith("grounding_dino"):
        text = torch.tensor([[101, 4937, 1012, 3899, 1012, 102]])  # "cat. dog."
        found |= {"input_ids": text, "attention_mask": torch.ones_like(text)}
    if name == "omdet_turbo":
        text = torch.randint(1, 1000, (3, 16))
        found |= {"classes_input_ids": text, "classes_attention_mask": torch.ones_like(text)}
        found |= {"tasks_input_ids": text[:1], "tasks_attention_mask": torch.ones_like(text[:1])}
        found |= {"classes_structure": torch.tensor([3])}
    if name == "oneformer":
        found["task_inputs"] = torch.randint(1, 1000, (1, 77))
    return found


def floats(output: Any) -> dict[str, Tensor]:
    """Returns the floating-point tensors of an output, without infinite values."""
    found = {name: value for name, value in output.items() if torch.is_tensor(value) and value.is_floating_point()}
    return {name: value.clamp(-1e4, 1e4).nan_to_num() for name, value in found.items()}


def run(model: nn.Module, values: dict[str, Tensor], *, backward: bool) -> tuple[float, dict[str, Tensor]]:
    """Runs a model; returns CPU seconds, and outputs or, with backward, gradients relative to the largest one."""
    model.zero_grad()
    values = values | {"pixel_values": values["pixel_values"].clone().requires_grad_(backward)}
    start = time.process_time()
    with torch.set_grad_enabled(backward):
        output = floats(model(**values))
        if backward:
            sum(value.square().mean() for value in output.values() if value.requires_grad).backward()
    seconds = time.process_time() - start
    if backward:
        tensors = dict(model.named_parameters()) | {"pixel_values": values["pixel_values"]}
        output = {name: item.grad for name, item in tensors.items() if item.grad is not None}
        largest = max(float(item.abs().max()) for item in output.values())
        output = {name: item / largest for name, item in output.items()}
    return seconds, output


def compare(name: str, size: int, rounds: int, *, backward: bool) -> str:
    """Returns a row of the table."""
    model, values = build(name), inputs(name, size)
    run(model, values, backward=False)  # warm-up
    before, after, difference = [], [], 0.0
    for _ in range(rounds):
        seconds, expected = run(model, values, backward=backward)
        before.append(seconds)
        integration.enable(name)
        seconds, found = run(model, values, backward=backward)
        after.append(seconds)
        integration.disable()
        difference = max(difference, *(float((found[key] - expected[key]).abs().max()) for key in expected))
    old, new = statistics.median(before), statistics.median(after)
    label = f"`{name}`" + ", with backward" * backward
    return f"| {label} | {size} | {old:.2f} s | {new:.2f} s ({old / new:.2f}x) | {difference:.1e} |"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of models (default: all)")
    parser.add_argument("--size", type=int, help="side of the image (default: 480, or what the model needs)")
    parser.add_argument("--rounds", type=int, default=3, help="measured passes (default: %(default)s)")
    parser.add_argument("--backward", nargs="*", default=[], metavar="MODEL", help="models also run with backward")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print("| model | image | before | after | difference |\n|---|---|---|---|---|")
    for name in args.models or integration.find_models():
        for backward in [False, True][: 1 + (name in args.backward)]:
            print(compare(name, args.size or SIZES.get(name, 480), args.rounds, backward=backward), flush=True)


if __name__ == "__main__":
    main()
