"""The papers' optimizer: parameter groups and gradient clipping, for both engines."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

# Sampling offsets and the projection that tells reference points learn slower (arXiv 2010.04159, appendix A.4).
_SAMPLING_NAMES = ("sampling_offsets", "reference_points")

# Detectron2's keys that treat norms and biases apart, with its defaults, which every config carries. The papers decay
# every parameter alike; so here the defaults mean "as the papers do", WEIGHT_DECAY_NORM's 0.0 too, and any other
# value is refused.
_ALL_ALIKE = {"WEIGHT_DECAY_NORM": 0.0, "WEIGHT_DECAY_BIAS": None, "BIAS_LR_FACTOR": 1.0}


def parameter_groups(model: nn.Module, base_lr: float, backbone_lr: float, sampling_lr: float) -> list[dict]:
    """Trainable parameters in three groups, told by their names: backbone, sampling, the rest.

    Args:
        model: a detector, or anything that contains one.
        base_lr: learning rate of the rest.
        backbone_lr: of every parameter below an attribute ``backbone``.
        sampling_lr: of sampling offsets and the projection of reference points.

    Returns:
        Groups with ``params``, ``lr`` and ``name``, those without parameters left out.
    """
    groups: dict[str, list[nn.Parameter]] = {"rest": [], "backbone": [], "sampling": []}
    for name, parameter in model.named_parameters():
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


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that ``cfg.SOLVER`` describes. Weight decay is on every parameter, as in the papers.

    Raises:
        UserError: for a ``SOLVER.OPTIMIZER`` other than ``ADAMW`` and ``SGD``, or a key that asks for what the
            optimizer does not do.
    """
    solver = cfg.SOLVER
    _check(solver)
    groups = parameter_groups(
        model,
        solver.BASE_LR,
        solver.BASE_LR * solver.BACKBONE_MULTIPLIER,
        solver.BASE_LR * solver.SAMPLING_MULTIPLIER,
    )
    return make_optimizer(
        groups,
        solver.OPTIMIZER,
        lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        # The fused step of mixed precision divides by the loss scale only inside, after gradients were clipped.
        fused=not solver.AMP.ENABLED,
    )


def make_optimizer(
    params: list[dict],
    name: str = "ADAMW",
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    fused: bool = False,
    clip: "GradientClip | None" = None,
) -> torch.optim.Optimizer:
    """An optimizer by explicit arguments.

    Args:
        params: groups, as `parameter_groups` makes them.
        name: ``"ADAMW"`` or ``"SGD"``.
        lr: of groups that have none.
        weight_decay: of every parameter.
        momentum, nesterov: of SGD.
        fused: AdamW's fused step; not together with a gradient scaler, whose scale clipping would not see.
        clip: clip gradients at the start of each step, see `clip_in_step`; None: the caller does, if anyone.

    Raises:
        UserError: for another name.
    """
    if name == "ADAMW":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=fused)
    elif name == "SGD":
        optimizer = torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    else:
        raise UserError(f"SOLVER.OPTIMIZER {name!r} is not known: choose ADAMW or SGD")
    if clip is not None:
        clip_in_step(optimizer, clip)
    return optimizer


def _check(solver: Any) -> None:
    for key, default in _ALL_ALIKE.items():
        if solver[key] != default:
            raise UserError(
                f"SOLVER.{key} {solver[key]!r} is not followed here: rate and weight decay are the same for norms, "
                f"biases and weights, as in the papers; leave it at Detectron2's default {default!r}"
            )
    if solver.NESTEROV and not (solver.OPTIMIZER == "SGD" and solver.MOMENTUM > 0):
        raise UserError("SOLVER.NESTEROV True needs SOLVER.OPTIMIZER SGD and a SOLVER.MOMENTUM above 0")


@dataclass(frozen=True)
class GradientClip:
    """How gradients are clipped, in place.

    Attributes:
        kind: ``full_model`` scales all gradients so that their joint norm is at most ``value`` (both papers: 0.1);
            ``norm`` and ``value`` are Detectron2's, parameter by parameter.
        value: the largest norm, or with ``value`` the largest number.
        norm_type: p of the norm.

    Raises:
        UserError: for another kind.
    """

    kind: str = "full_model"
    value: float = 0.1
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in ("full_model", "norm", "value"):
            raise UserError(
                f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {self.kind!r} is not known: choose full_model, norm or value"
            )

    @classmethod
    def of(cls, cfg: Any) -> "GradientClip | None":
        """That of ``cfg.SOLVER.CLIP_GRADIENTS``; None where it is switched off."""
        clip = cfg.SOLVER.CLIP_GRADIENTS
        return cls(clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE) if clip.ENABLED else None

    def __call__(self, parameters: Iterable[Tensor]) -> Tensor | None:
        """Clips; returns the joint norm before clipping for ``full_model``, else None."""
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        if self.kind == "full_model":
            return nn.utils.clip_grad_norm_(parameters, self.value, self.norm_type)
        if self.kind == "value":
            nn.utils.clip_grad_value_(parameters, self.value)
        else:
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, self.value, self.norm_type)
        return None


def clip_gradients(cfg: Any, parameters: Iterable[Tensor]) -> Tensor | None:
    """Clips gradients in place as ``cfg.SOLVER.CLIP_GRADIENTS`` says; see `GradientClip`."""
    clip = GradientClip.of(cfg)
    return None if clip is None else clip(parameters)


def clip_in_step(optimizer: torch.optim.Optimizer, clip: GradientClip) -> None:
    """Lets the optimizer clip at the start of each step, for training loops that do not clip, such as Detectron2's.

    In the step, as Detectron2 does it: mixed precision's scaler has then removed its scale from the gradients, and
    has skipped the step where they overflowed.
    """

    def before(stepping: torch.optim.Optimizer, *_: Any) -> None:
        if getattr(stepping, "grad_scale", None) is not None:
            raise UserError(
                "a gradient scaler leaves its scale to the fused optimizer, after gradients were clipped: build it "
                "with fused=False to train in mixed precision"
            )
        clip(parameter for group in stepping.param_groups for parameter in group["params"])

    optimizer.register_step_pre_hook(before)
