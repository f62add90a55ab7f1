#!/usr/bin/env python3
"""Repeats a failed training step and prints which values are not finite.

tools/replay_step.py OUTPUT_DIR/failed_step_0000123_rank0.pth [--config-file F] [--weights W]

The file contains the batch and the random state, not the weights: pass the last checkpoint before the failure. By
default, the config is config.yaml next to the file, and the weights are initialized with the seed of the run. With an
exponential moving average (SOLVER.EMA), the trained weights of the checkpoint are used, not the averaged ones.

The step runs on the GPU if it was recorded on one and one is available, otherwise on the CPU (--device). With
SOLVER.AMP.ENABLED it runs in float16 on a GPU and in bfloat16 on a CPU. Repeated exactly: images, targets, random
numbers, micro-batches and, on the same kind of device, the precision. Not repeated: the weights between the checkpoint
and the failed iteration, the gradient scaler of float16, images of other processes and the state of the optimizer.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

try:
    from projects_deformable_detr import build_criterion, build_detector, get_cfg
    from projects_deformable_detr.checkpoint import LoadOptions, Weights, fit, load_weights
    from projects_deformable_detr.checkpoint.files import read_checkpoint
    from projects_deformable_detr.config.loading import merge
    from projects_deformable_detr.errors import UserError, run_command
    from projects_deformable_detr.modeling import BatchSize, Targets, batch_images
except ImportError as error:  # the operator is missing
    sys.exit(f"replay_step: {error}")

# Required; optional are accumulation_steps and cuda_rng_state.
_KEYS = {"boxes", "images", "iteration", "labels", "masks", "names", "num_classes", "rank", "rng_state", "seed"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("step", type=Path, help="failed_step_….pth")
    parser.add_argument("--config-file", help="config of the run; default: config.yaml next to the step")
    parser.add_argument("--weights", default="", help="checkpoint to start from")
    parser.add_argument("--device", default="", help="cpu or cuda; default: that of the failed step, if available")
    args = parser.parse_args()
    config_file = args.config_file or str(args.step.parent / "config.yaml")
    if replay(args.step, config_file, args.weights, args.device):
        raise FloatingPointError("the step has values that are not finite")


def replay(path: Path, config_file: str, weights: str, device: str = "") -> int:
    """Repeats the step and returns 1 if a value is not finite, otherwise 0."""
    step = read_checkpoint(path)
    if not (isinstance(step, dict) and step.keys() >= _KEYS):
        raise UserError(f"{path} is not a failed_step file")
    was_on_gpu = "cuda_rng_state" in step
    device = device or ("cuda" if was_on_gpu and torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: no GPU is available")
    is_gpu = device.startswith("cuda")
    print(f"device {device}; the step failed on {'a GPU' if was_on_gpu else 'the CPU'}")
    if is_gpu != was_on_gpu:
        print("random numbers of the device and the precision differ from those of the failed step")
    cfg = get_cfg()
    merge(cfg, config_file, [])
    cfg.MODEL.DETR.NUM_CLASSES = step["num_classes"]
    torch.manual_seed(max(step["seed"], 0))
    detector, criterion = build_detector(cfg).train(), build_criterion(cfg)
    if weights:
        load_trained(detector, weights)
    detector, criterion = detector.to(device), criterion.to(device)
    print(f"iteration {step['iteration']}, seed {step['seed']}, rank {step['rank']}: {', '.join(step['names'])}")
    found: list[str] = []
    for name, module in detector.named_modules():
        module.register_forward_hook(_report(name, found))

    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    images = [((image.float() - mean) / std).to(device) for image in step["images"]]
    sizes = [tuple(image.shape[-2:]) for image in step["images"]]
    parts = zip(step["labels"], step["boxes"], step["masks"], sizes, step["names"], strict=True)
    targets = [Targets(*part).to(device) for part in parts]
    count = step.get("accumulation_steps", 1)
    length, whole = len(images) // count, (BatchSize(len(images), sum(map(len, targets))),) if count > 1 else ()
    torch.set_rng_state(step["rng_state"])
    if is_gpu and was_on_gpu:
        torch.cuda.set_rng_state(step["cuda_rng_state"], device)
    precision = torch.float16 if is_gpu else torch.bfloat16
    losses: dict[str, Tensor] = {}
    for start in range(0, len(images), length):
        micro_batch = slice(start, start + length)
        with torch.autocast("cuda" if is_gpu else "cpu", precision, enabled=cfg.SOLVER.AMP.ENABLED):
            predictions = detector(*batch_images(images[micro_batch]))
            if found:
                print(f"first value that is not finite: {found[0]}")
            outputs = criterion(predictions, targets[micro_batch], *whole)
        torch.stack(list(outputs.values())).sum().backward()
        losses = {name: losses.get(name, 0.0) + value.detach() for name, value in outputs.items()}
    for name, value in {**losses, "total_loss": torch.stack(list(losses.values())).sum()}.items():
        print(f"{name}: {value.item():.6g}")
    found += [f"loss {name}" for name, value in losses.items() if not value.isfinite()]
    found += [
        f"gradient of {name}"
        for name, parameter in detector.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    if not found:
        print("all values are finite with these weights")
        return 0
    print(f"values that are not finite: {', '.join(found[:5])}")
    return 1


def load_trained(detector: nn.Module, path: str) -> None:
    """Loads the weights of a checkpoint; with an exponential moving average, the trained ones."""
    content: Any = read_checkpoint(Path(path)) if Path(path).suffix in (".pth", ".ckpt") else {}
    trained = content.get("current_model_state") or content.get("ema", {}).get("model")  # Lightning; Detectron2
    if not trained:
        load_weights(detector, path)
        return
    state, _ = fit(detector, Weights(trained), path, LoadOptions())
    detector.load_state_dict(state)


def _report(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    """Returns a hook that adds ``name`` to ``found`` if an output of the module is not finite."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = output if isinstance(output, list | tuple) else [output]
        if any(isinstance(item, Tensor) and not item.isfinite().all() for item in tensors):
            found.append(f"output of {name or 'the detector'} ({type(module).__name__})")

    return hook


if __name__ == "__main__":
    sys.exit(run_command("replay_step", main))
