"""Optimizer with separate learning rates for parameter groups, and gradient clipping."""

import logging
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ..errors import ArgumentError, NonNegative, Positive, Range, UserError, check_choice, check_ranges

logger = logging.getLogger(__name__)

# Submodules that train with a smaller learning rate (arXiv 2010.04159, appendix A.4).
_SAMPLING_NAMES = ("sampling_offsets", "reference_points")
OPTIMIZERS = ("ADAMW", "SGD")


@dataclass(frozen=True)
class GradientClip:
    """Clips gradients in place.

    Attributes:
        kind: ``"full_model"`` limits the joint norm of all gradients, as in both papers; ``"norm"`` limits the norm of
            each parameter's gradient, and ``"value"`` its elements, as in Detectron2.
        value: maximum norm or absolute value; 0: no clipping.
        norm_type: p of the p-norm.
    """

    kind: str = "full_model"
    value: NonNegative = 0.1
    norm_type: Annotated[float, Range(1, math.inf)] = 2.0

    def __post_init__(self) -> None:
        check_ranges(GradientClip, vars(self))
        check_choice("kind", self.kind, ("full_model", "norm", "value"))

    def __call__(self, parameters: Iterable[Tensor]) -> Tensor | None:
        """Clips the gradients of ``parameters``; returns their joint norm before clipping for ``"full_model"``."""
        if self.value == 0:
            return None
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        if self.kind == "full_model":
            return nn.utils.clip_grad_norm_(parameters, self.value, self.norm_type)
        if self.kind == "value":
            nn.utils.clip_grad_value_(parameters, self.value)
        else:
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, self.value, self.norm_type)
        return None


@dataclass(frozen=True)
class OptimizerConfig:
    """Configuration of `build_optimizer`.

    Attributes:
        name: ``"ADAMW"`` or ``"SGD"``.
        base_lr: learning rate of all parameters without a multiplier.
        backbone_multiplier: multiplies ``base_lr`` for the backbone.
        sampling_multiplier: multiplies ``base_lr`` for sampling offsets and the projection of reference points.
        weight_decay: weight decay of all parameters, including norms and biases, as in the papers.
        momentum, nesterov: options of SGD.
        fused: whether to use the fused implementation of AdamW. Must be False with a gradient scaler, which would defer
            unscaling to the fused step, after clipping.
        clip: gradient clipping, or None.
    """

    name: str = "ADAMW"
    base_lr: Positive = 2e-4
    backbone_multiplier: NonNegative = 0.1
    sampling_multiplier: NonNegative = 0.1
    weight_decay: NonNegative = 1e-4
    momentum: Annotated[float, Range(0, below=1)] = 0.9
    nesterov: bool = False
    fused: bool = True
    clip: GradientClip | None = GradientClip()

    def __post_init__(self) -> None:
        check_ranges(OptimizerConfig, vars(self))
        check_choice("name", self.name, OPTIMIZERS)
        if self.nesterov and not (self.name == "SGD" and self.momentum > 0):
            raise ArgumentError(
                "nesterov", "must be False unless the optimizer is SGD with a momentum above 0, got True"
            )


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Splits the trainable parameters of a detector, or of a module that contains one, by name.

    Returns:
        Non-empty groups with ``name``, ``params`` and ``lr``: ``"backbone"`` (all parameters below an attribute
        ``backbone``), ``"sampling"`` (sampling offsets and the projection of reference points) and ``"rest"``.
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
    factors = {"rest": 1.0, "backbone": config.backbone_multiplier, "sampling": config.sampling_multiplier}
    return [
        {"name": name, "params": params, "lr": config.base_lr * factors[name]}
        for name, params in groups.items()
        if params
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, clip_in_step: bool = False) -> torch.optim.Optimizer:
    """Builds the optimizer of a detector, or of a module that contains one; see `make_optimizer`."""
    return make_optimizer(parameter_groups(model, config), config, clip_in_step=clip_in_step)


def make_optimizer(
    params: list[dict[str, Any]], config: OptimizerConfig, *, clip_in_step: bool = False
) -> torch.optim.Optimizer:
    """Builds an optimizer from parameter groups.

    With ``clip_in_step``, gradients are clipped at the start of each step, see `clip_before_step`; otherwise, the
    training loop must call ``config.clip``.
    """
    options: dict[str, Any] = {"lr": config.base_lr, "weight_decay": config.weight_decay}
    optimizer: torch.optim.Optimizer
    if config.name == "ADAMW":
        optimizer = torch.optim.AdamW(params, **options, fused=config.fused)
    else:
        optimizer = torch.optim.SGD(params, **options, momentum=config.momentum, nesterov=config.nesterov)
    if clip_in_step and config.clip is not None:
        clip_before_step(optimizer, config.clip)
    return optimizer


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Checks that an optimizer can continue from the state in a checkpoint.

    Raises:
        UserError: if the state is that of another optimizer or of other parameters.
    """
    here, stored = optimizer.param_groups, state["param_groups"]
    options = [set().union(*(group.keys() for group in groups)) for groups in (here, stored)]
    if (options[0] ^ options[1]) & {"betas", "momentum"}:
        raise UserError(
            "the checkpoint has the state of another optimizer: resume with the same `name`, or start a new run from "
            "its weights in another `output_dir`"
        )
    counts = [{group.get("name", ""): len(group["params"]) for group in groups} for groups in (here, stored)]
    for name in dict.fromkeys([*counts[1], *counts[0]]):
        now, before = (found.get(name, 0) for found in counts)
        if now != before:
            raise UserError(
                f"the checkpoint has the optimizer state of {before} trained parameters in group {name!r}, but the "
                f"model has {now}: resume with the same `freeze_at` and `freeze_detector`, or start a new run from its "
                "weights in another `output_dir`"
            )


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Returns the options of each parameter group."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def set_hyperparameters(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, groups: list[dict[str, Any]]) -> None:
    """Sets the options of a resumed optimizer to those of the run, and logs differences from the checkpoint.

    Args:
        optimizer, scheduler: with the state of the checkpoint.
        groups: `hyperparameters` before the state was loaded.
    """
    for group, wanted in zip(optimizer.param_groups, groups, strict=True):
        for name, value in wanted.items():
            if name != "lr" and group.get(name) != value:
                text = "learning rate" if name == "initial_lr" else name
                logger.warning(
                    "Resuming with the config's %s %s, not the checkpoint's %s, in parameter group %r",
                    text, value, group.get(name), group.get("name"),
                )  # fmt: skip
                group[name] = value
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "use get_last_lr()", which is the rate of the checkpoint
        rates = scheduler.get_lr()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def clip_before_step(optimizer: torch.optim.Optimizer, clip: GradientClip) -> None:
    """Registers gradient clipping as a pre-hook of the optimizer's step, which sets the attribute ``grad_norm``.

    Intended for training loops that do not clip gradients, such as Detectron2's. The hook runs after the gradient
    scaler of mixed precision has unscaled the gradients.
    """

    def clip_gradients(stepping: Any, *_: Any) -> None:
        if getattr(stepping, "grad_scale", None) is not None:
            raise UserError(
                "the fused optimizer would unscale gradients after they are clipped: build it with fused=False to use "
                "a gradient scaler"
            )
        stepping.grad_norm = clip(parameter for group in stepping.param_groups for parameter in group["params"])

    optimizer.register_step_pre_hook(clip_gradients)
