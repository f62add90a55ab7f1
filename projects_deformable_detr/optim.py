"""The papers' optimizer: parameter groups and gradient clipping, for both engines."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError

# Sampling offsets and the projection that tells reference points learn slower (arXiv 2010.04159, appendix A.4).
_SAMPLING_NAMES = ("sampling_offsets", "reference_points")

# Detectron2's keys that treat norms and biases apart, with its defaults, which every config carries. The papers decay
# every parameter alike; so here the defaults mean "as the papers do", WEIGHT_DECAY_NORM's 0.0 too, and any other
# value is refused.
_ALL_ALIKE = {"WEIGHT_DECAY_NORM": 0.0, "WEIGHT_DECAY_BIAS": None, "BIAS_LR_FACTOR": 1.0}


def parameter_groups(module: nn.Module, base_lr: float, backbone_lr: float, sampling_lr: float) -> list[dict]:
    """Trainable parameters in three groups, told by their names: backbone, sampling, the rest.

    Args:
        module: a detector, or anything that contains one.
        base_lr: learning rate of the rest.
        backbone_lr: of every parameter below an attribute ``backbone``.
        sampling_lr: of sampling offsets and the projection of reference points.

    Returns:
        Groups with ``params``, ``lr`` and ``name``, those without parameters left out.
    """
    groups: dict[str, list[nn.Parameter]] = {"rest": [], "backbone": [], "sampling": []}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        parts = name.split(".")
        if "backbone" in parts:
            groups["backbone"].append(parameter)
        elif any(part in _SAMPLING_NAMES for part in parts):
            groups["sampling"].append(parameter)
        else:
            groups["rest"].append(parameter)
    rates = {"rest": base_lr, "backbone": backbone_lr, "sampling": sampling_lr}
    return [{"name": name, "params": params, "lr": rates[name]} for name, params in groups.items() if params]


def build_optimizer(cfg: Any, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that ``cfg.SOLVER`` describes. Weight decay is on every parameter, as in the papers.

    Raises:
        UserError: for a ``SOLVER.OPTIMIZER`` other than ``ADAMW`` and ``SGD``, or a key that asks for what the
            optimizer does not do.
    """
    solver = cfg.SOLVER
    _check(solver)
    groups = parameter_groups(
        module,
        solver.BASE_LR,
        solver.BASE_LR * solver.BACKBONE_MULTIPLIER,
        solver.BASE_LR * solver.SAMPLING_MULTIPLIER,
    )
    if solver.OPTIMIZER == "ADAMW":
        # The fused step of mixed precision divides by the loss scale only inside, after gradients were clipped.
        fused = not solver.AMP.ENABLED
        return torch.optim.AdamW(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, fused=fused)
    if solver.OPTIMIZER == "SGD":
        return torch.optim.SGD(
            groups,
            lr=solver.BASE_LR,
            momentum=solver.MOMENTUM,
            nesterov=solver.NESTEROV,
            weight_decay=solver.WEIGHT_DECAY,
        )
    raise UserError(f"SOLVER.OPTIMIZER {solver.OPTIMIZER!r} is not known: choose ADAMW or SGD")


def _check(solver: Any) -> None:
    for key, default in _ALL_ALIKE.items():
        if solver[key] != default:
            raise UserError(
                f"SOLVER.{key} {solver[key]!r} is not followed here: rate and weight decay are the same for norms, "
                f"biases and weights, as in the papers; leave it at Detectron2's default {default!r}"
            )
    if solver.NESTEROV and not (solver.OPTIMIZER == "SGD" and solver.MOMENTUM > 0):
        raise UserError("SOLVER.NESTEROV True needs SOLVER.OPTIMIZER SGD and a SOLVER.MOMENTUM above 0")


def clip_gradients(cfg: Any, parameters: Iterable[Tensor]) -> Tensor | None:
    """Clips gradients in place as ``cfg.SOLVER.CLIP_GRADIENTS`` says.

    ``full_model`` scales all gradients so that their joint norm is at most CLIP_VALUE (both papers: 0.1);
    ``norm`` and ``value`` are Detectron2's, parameter by parameter.

    Returns:
        The joint norm before clipping for ``full_model``, else None.

    Raises:
        UserError: for another CLIP_TYPE.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    if clip.CLIP_TYPE == "full_model":
        return nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)
    if clip.CLIP_TYPE == "value":
        nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
    elif clip.CLIP_TYPE == "norm":
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)
    else:
        raise UserError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {clip.CLIP_TYPE!r} is not known: choose full_model, norm or value"
        )
    return None
