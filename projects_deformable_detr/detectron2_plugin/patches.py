"""Attributes of Detectron2 that the project replaces, because no registry covers them.

`PATCHES` has one row per replacement. Each of them dispatches on the model: models of other projects get Detectron2's
own behaviour. They are installed when the project is imported. The environment variable
``DEFORMABLE_DETR_DISABLE_PATCHES`` disables them by name (``optimizer,mapper``, or ``all``), and `uninstall` restores
Detectron2's attributes.

`numpy_names` replaces attributes of NumPy while an evaluator of Detectron2 runs.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import detectron2.data.build as data_build
import detectron2.engine.defaults as engine_defaults
import detectron2.solver as solver
import detectron2.solver.build as solver_build
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.engine import DefaultTrainer
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNNWithTTA
from torch import nn
from torch.optim import Optimizer

from .. import training
from ..config.training import optimizer_config
from ..errors import UserError
from .hooks import refuse_unsupported
from .mapper import DetrDatasetMapper
from .meta_arch import SetPredictionModel
from .tta import SetPredictionTTA

DISABLE = "DEFORMABLE_DETR_DISABLE_PATCHES"
_skips_refusal = ContextVar("_skips_refusal", default=False)


@dataclass(frozen=True)
class Patch:
    """A replaced attribute.

    Attributes:
        name: name that disables it.
        targets: owners and names of the attribute, which modules may have imported from each other.
        replace: function from the original value to its replacement.
        reason: what would happen without it.
    """

    name: str
    targets: tuple[tuple[Any, str], ...]
    replace: Callable[[Any], Any]
    reason: str


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """Builds the papers' optimizer, which clips gradients in its step, as Detectron2's training loops expect."""
    return training.build_optimizer(model, optimizer_config(cfg), clip_in_step=True)


@contextlib.contextmanager
def without_refusal() -> Iterator[None]:
    """Disables `refuse_unsupported` inside the context, for a trainer that supports these keys."""
    token = _skips_refusal.set(True)
    try:
        yield
    finally:
        _skips_refusal.reset(token)


def is_ours(model: nn.Module) -> bool:
    """Returns whether a model is, or contains, one of the project's meta-architectures."""
    return any(isinstance(module, SetPredictionModel) for module in model.modules())


def names_ours(cfg: CfgNode) -> bool:
    """Returns whether ``MODEL.META_ARCHITECTURE`` is one of the project's, or a registered subclass of one."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        return False
    architecture = META_ARCH_REGISTRY.get(name)
    return isinstance(architecture, type) and issubclass(architecture, SetPredictionModel)


def _replace_build_optimizer(original: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    @wraps(original)
    def build(cfg: CfgNode, model: nn.Module) -> Optimizer:
        if not is_ours(model):
            return original(cfg, model)
        if not _skips_refusal.get():
            refuse_unsupported(cfg)
        return build_optimizer(cfg, model)

    return build


def _replace_trainer_init(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def init(self: Any, cfg: CfgNode, *args: Any, **kwargs: Any) -> None:
        if names_ours(cfg):
            refuse_unsupported(cfg)
        original(self, cfg, *args, **kwargs)

    return init


class _DefaultMapper(DatasetMapper):
    """Creates DETR's mapper for the project's models, and Detectron2's for others."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is not _DefaultMapper:  # a subclass of the user
            return super().__new__(cls)
        cfg = args[0] if args else kwargs.get("cfg")
        ours = isinstance(cfg, CfgNode) and names_ours(cfg)
        return (DetrDatasetMapper if ours else DatasetMapper)(*args, **kwargs)


def _new_tta(cls: type, cfg: Any = None, model: Any = None, *args: Any, **kwargs: Any) -> Any:
    if cls is GeneralizedRCNNWithTTA and isinstance(model, nn.Module) and is_ours(model):
        return SetPredictionTTA(cfg, model, *args, **kwargs)  # not an instance of cls, so __init__ is not called again
    return object.__new__(cls)


PATCHES = (
    Patch(
        name="optimizer",
        targets=tuple((module, "build_optimizer") for module in (solver_build, solver, engine_defaults)),
        replace=_replace_build_optimizer,
        reason="Detectron2 would train with SGD and one parameter group, and refuse CLIP_TYPE full_model",
    ),
    Patch(
        name="mapper",
        targets=((data_build, "DatasetMapper"),),
        replace=lambda original: _DefaultMapper,
        reason="data loaders without an explicit mapper would train without DETR's crop augmentation",
    ),
    Patch(
        name="tta",
        targets=((GeneralizedRCNNWithTTA, "__new__"),),
        replace=lambda original: staticmethod(_new_tta),
        reason="test-time augmentation would call the model's proposal generator, which does not exist",
    ),
    Patch(
        name="trainer",
        targets=((DefaultTrainer, "__init__"),),
        replace=_replace_trainer_init,
        reason="DefaultTrainer would ignore SOLVER.EMA, TEST.BEST_CHECKPOINT and TEST.EARLY_STOPPING",
    ),
)
_MISSING = object()
_originals: dict[str, list[Any]] = {}  # values of each installed patch's targets


def install(disabled: str | None = None) -> None:
    """Installs all patches that are not disabled. Idempotent.

    Args:
        disabled: names separated by commas, or ``"all"``; by default the value of ``DEFORMABLE_DETR_DISABLE_PATCHES``.

    Raises:
        UserError: for an unknown name.
    """
    names = {name.strip() for name in (os.environ.get(DISABLE, "") if disabled is None else disabled).split(",")}
    if unknown := names - {"", "all", *(patch.name for patch in PATCHES)}:
        raise UserError(
            f"{DISABLE} must name {', '.join(patch.name for patch in PATCHES)} or all, got {', '.join(sorted(unknown))}"
        )
    for patch in PATCHES:
        if patch.name in _originals or names & {patch.name, "all"}:
            continue
        _originals[patch.name] = [vars(owner).get(attribute, _MISSING) for owner, attribute in patch.targets]
        replacement = patch.replace(_originals[patch.name][0])
        for owner, attribute in patch.targets:
            setattr(owner, attribute, replacement)


def uninstall() -> None:
    """Restores all attributes of Detectron2."""
    for patch in PATCHES:
        for (owner, attribute), value in zip(patch.targets, _originals.pop(patch.name, ()), strict=False):
            if value is _MISSING:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, value)


@contextlib.contextmanager
def numpy_names() -> Iterator[None]:
    """Restores ``numpy.float`` (removed in 1.24) and ``numpy.in1d`` (removed in 2.4) inside the context.

    The newest versions of ``lvis`` (0.5.3) and ``cityscapesscripts`` (2.3.0), which Detectron2's evaluators use, call
    them.
    """
    added = {name: value for name, value in (("float", float), ("in1d", np.isin)) if not hasattr(np, name)}
    for name, value in added.items():
        setattr(np, name, value)
    try:
        yield
    finally:
        for name in added:
            delattr(np, name)
