"""What makes Detectron2's own scripts work with the project's models, after one import.

Detectron2 has registries for models and data sets, which need nothing here. In three places it has one fixed choice
instead of a registry; there `install` puts a function that chooses by the model, and leaves every other model what it
had:

- ``build_optimizer`` of ``detectron2.solver`` (and of ``DefaultTrainer``): the papers' optimizer with its three
  parameter groups, which clips gradients in its step;
- the mapper of ``build_detection_train_loader(cfg)`` and of the test loader where the caller names none: DETR's;
- ``GeneralizedRCNNWithTTA``: test-time augmentation for these models.

``DefaultTrainer``, and ``build_optimizer`` for other loops, refuse keys that only this project's trainer follows.

A script that has said ``from detectron2.solver import build_optimizer`` before it imported this project keeps the
function that it got then, which refuses CLIP_TYPE full_model: the import of the project must come first. Data loaders,
``DefaultTrainer`` and test-time augmentation do not mind the order.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import wraps
from typing import Any

import detectron2.data.build as data_build
import detectron2.engine.defaults as engine_defaults
import detectron2.solver as solver
import detectron2.solver.build as solver_build
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.engine import DefaultTrainer
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNNWithTTA
from torch import nn
from torch.optim import Optimizer

from .. import training
from ..config.training import optimizer_config
from .hooks import refuse_unsupported
from .mapper import DetrDatasetMapper
from .meta_arch import SetPredictionModel
from .tta import SetPredictionTTA

_MARK = "_projects_deformable_detr"
_follows_keys = ContextVar("_follows_keys", default=False)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """The papers' optimizer, clipping in its step: Detectron2's training loops do not clip themselves."""
    return training.build_optimizer(model, optimizer_config(cfg), clip_in_step=True)


@contextlib.contextmanager
def following_keys() -> Iterator[None]:
    """Switches `refuse_unsupported` off inside the context, for a trainer that follows these keys."""
    token = _follows_keys.set(True)
    try:
        yield
    finally:
        _follows_keys.reset(token)


def is_ours(model: nn.Module) -> bool:
    """Whether a model is one of the project's, or wraps one (distributed, compiled, inside a larger one)."""
    return any(isinstance(module, SetPredictionModel) for module in model.modules())


def names_ours(cfg: CfgNode) -> bool:
    """Whether ``MODEL.META_ARCHITECTURE`` is one of the project's, or a registered subclass of these."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        return False
    architecture = META_ARCH_REGISTRY.get(name)
    return isinstance(architecture, type) and issubclass(architecture, SetPredictionModel)


def install() -> None:
    """Puts the choices in place; a second call changes nothing."""
    if hasattr(solver_build.build_optimizer, _MARK):
        return
    choose = _choose_optimizer(solver_build.build_optimizer)
    for module in (solver_build, solver, engine_defaults):
        module.build_optimizer = choose
    DefaultTrainer.__init__ = _refusing(DefaultTrainer.__init__)
    data_build.DatasetMapper = _DefaultMapper
    GeneralizedRCNNWithTTA.__new__ = staticmethod(_choose_tta)


def _choose_optimizer(detectron2s: Any) -> Any:
    @wraps(detectron2s)
    def choose(cfg: CfgNode, model: nn.Module) -> Optimizer:
        if not is_ours(model):
            return detectron2s(cfg, model)
        if not _follows_keys.get():
            refuse_unsupported(cfg)
        return build_optimizer(cfg, model)

    setattr(choose, _MARK, True)
    return choose


def _refusing(detectron2s: Any) -> Any:
    """Of ``DefaultTrainer``; this project's trainer has its own. A subclass may build an optimizer of its own."""

    @wraps(detectron2s)
    def init(self: Any, cfg: CfgNode, *args: Any, **kwargs: Any) -> None:
        if names_ours(cfg):
            refuse_unsupported(cfg)
        detectron2s(self, cfg, *args, **kwargs)

    return init


class _DefaultMapper(DatasetMapper):
    """The name by which Detectron2's loaders make a mapper of their own accord."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is not _DefaultMapper:  # somebody's subclass
            return super().__new__(cls)
        cfg = args[0] if args else kwargs.get("cfg")
        ours = isinstance(cfg, CfgNode) and names_ours(cfg)
        return (DetrDatasetMapper if ours else DatasetMapper)(*args, **kwargs)


def _choose_tta(cls: type, cfg: Any = None, model: Any = None, *args: Any, **kwargs: Any) -> Any:
    if cls is GeneralizedRCNNWithTTA and isinstance(model, nn.Module) and is_ours(model):
        return SetPredictionTTA(cfg, model, *args, **kwargs)  # no instance of cls: not initialised a second time
    return object.__new__(cls)
