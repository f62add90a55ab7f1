"""Attributes of Detectron2 and NumPy that the project replaces, because no registry covers them.

`PATCHES` has one row per replacement. Those of Detectron2 dispatch on the model, except ``resize``, which applies to
all models: models of other projects get Detectron2's own behavior. They are installed when the project is imported;
rows with ``in_context`` are active only inside `applied`. The environment variable ``DEFORMABLE_DETR_DISABLE_PATCHES``
disables replacements by name (``optimizer,mapper``, or ``all``), and `uninstall` restores Detectron2's attributes.
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
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultTrainer
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNNWithTTA
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from .. import training
from ..config.training import optimizer_config
from ..errors import UserError
from .checkpoint import DetectorCheckpointer
from .data import resolve_num_classes
from .hooks import check_supported_keys
from .mapper import DetrDatasetMapper
from .meta_arch import SetPredictionModel
from .tta import SetPredictionTTA

DISABLE = "DEFORMABLE_DETR_DISABLE_PATCHES"
_MISSING = object()  # stands for an absent attribute
# CPython does not reset a type's constructor if an assigned `__new__` is deleted, and object's would reject arguments.
_DEFAULT_NEW = staticmethod(lambda cls, *args, **kwargs: object.__new__(cls))
_skips_key_checks = ContextVar("_skips_key_checks", default=False)


@dataclass(frozen=True)
class Patch:
    """A replaced attribute.

    Attributes:
        name: name for ``DEFORMABLE_DETR_DISABLE_PATCHES``.
        targets: owner and name of the attribute; several if modules import it from each other.
        replace: function that maps the original value to its replacement.
        reason: consequence of not replacing the attribute.
        in_context: whether to replace the attribute only inside `applied` instead of on import.
    """

    name: str
    targets: tuple[tuple[Any, str], ...]
    replace: Callable[[Any], Any]
    reason: str
    in_context: bool = False


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """Builds the papers' optimizer, which clips gradients in its step, as Detectron2's training loops expect."""
    return training.build_optimizer(model, optimizer_config(cfg), clip_in_step=True)


@contextlib.contextmanager
def without_key_checks() -> Iterator[None]:
    """Disables `check_supported_keys` inside the context, for a trainer that supports these keys."""
    token = _skips_key_checks.set(True)
    try:
        yield
    finally:
        _skips_key_checks.reset(token)


def contains_project_model(model: nn.Module) -> bool:
    """Returns whether a model is, or contains, one of the project's meta-architectures."""
    return any(isinstance(module, SetPredictionModel) for module in model.modules())


def selects_project_model(cfg: CfgNode) -> bool:
    """Returns whether ``MODEL.META_ARCHITECTURE`` is one of the project's, or a registered subclass of one."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        return False
    architecture = META_ARCH_REGISTRY.get(name)
    return isinstance(architecture, type) and issubclass(architecture, SetPredictionModel)


def _replace_build_optimizer(original: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    @wraps(original)
    def build(cfg: CfgNode, model: nn.Module) -> Optimizer:
        if not contains_project_model(model):
            return original(cfg, model)
        if not _skips_key_checks.get():
            check_supported_keys(cfg)
        return build_optimizer(cfg, model)

    return build


def _replace_trainer_init(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def init(self: Any, cfg: CfgNode, *args: Any, **kwargs: Any) -> None:
        if selects_project_model(cfg):
            check_supported_keys(cfg)
            # Data sets of a user-defined loader are not in a catalog.
            resolve_num_classes(cfg, allow_uncatalogued=True)  # raises if the config and the data sets disagree
        original(self, cfg, *args, **kwargs)

    return init


def _new_checkpointer(cls: type, model: Any = None, *args: Any, **kwargs: Any) -> Any:
    if isinstance(model, DistributedDataParallel | DataParallel):
        model = model.module
    is_project = cls is DetectionCheckpointer and isinstance(model, SetPredictionModel)
    return object.__new__(DetectorCheckpointer if is_project else cls)


def _replace_output_shape(original: Callable[..., tuple[int, int]]) -> Any:
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        if not (oldh and oldw):
            raise UserError(f"the image is {oldh} x {oldw} (height x width): it has no pixels")
        height, width = original(oldh, oldw, short_edge_length, max_size)
        return max(height, 1), max(width, 1)

    return staticmethod(get_output_shape)


class _DefaultMapper(DatasetMapper):
    """Creates DETR's mapper for the project's models, and Detectron2's for others."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is not _DefaultMapper:  # a user's subclass
            return super().__new__(cls)
        cfg = args[0] if args else kwargs.get("cfg")
        is_project = isinstance(cfg, CfgNode) and selects_project_model(cfg)
        return (DetrDatasetMapper if is_project else DatasetMapper)(*args, **kwargs)


def _new_tta(cls: type, cfg: Any = None, model: Any = None, *args: Any, **kwargs: Any) -> Any:
    if cls is GeneralizedRCNNWithTTA and isinstance(model, nn.Module) and contains_project_model(model):
        return SetPredictionTTA(cfg, model, *args, **kwargs)  # not an instance of cls, so __init__ is not called again
    return object.__new__(cls)


PATCHES = (
    Patch(
        name="optimizer",
        targets=tuple((module, "build_optimizer") for module in (solver_build, solver, engine_defaults)),
        replace=_replace_build_optimizer,
        reason="Detectron2 would train with SGD and one parameter group, and reject CLIP_TYPE full_model",
    ),
    Patch(
        name="mapper",
        targets=((data_build, "DatasetMapper"),),
        replace=lambda original: _DefaultMapper,
        reason="data loaders without an explicit mapper would train without DETR's crop augmentation",
    ),
    Patch(
        name="resize",
        targets=((ResizeShortestEdge, "get_output_shape"),),
        replace=_replace_output_shape,
        reason="very long images, such as 10,000 x 1 pixels, would be resized to a side of 0 pixels, which is an error",
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
        reason="DefaultTrainer would ignore SOLVER.EMA, TEST.BEST_CHECKPOINT and TEST.EARLY_STOPPING, and train with a "
        "number of classes other than that of the data sets",
    ),
    Patch(
        name="checkpointer",
        targets=((DetectionCheckpointer, "__new__"),),
        replace=lambda original: staticmethod(_new_checkpointer),
        reason="weights of other projects would not be loaded, logits would be mapped to classes by position although "
        "the file has the names of its classes, and pickles would run code",
    ),
    Patch(
        name="numpy",
        targets=((np, "float"),),
        replace=lambda original: float if original is _MISSING else original,
        reason="cityscapesscripts 2.3.0 uses numpy.float, which NumPy 1.24 has removed",
        in_context=True,
    ),
    Patch(
        name="numpy",
        targets=((np, "in1d"),),
        replace=lambda original: np.isin if original is _MISSING else original,
        reason="cityscapesscripts 2.3.0 uses numpy.in1d, which NumPy 2.4 has removed",
        in_context=True,
    ),
)
_originals: dict[int, list[Any]] = {}  # index of each installed patch: previous values of its targets


def install(disabled: str | None = None) -> None:
    """Installs all patches that are neither disabled nor limited to a context. Idempotent.

    Args:
        disabled: names separated by commas, or ``"all"``. Default: the value of ``DEFORMABLE_DETR_DISABLE_PATCHES``.

    Raises:
        UserError: for an unknown name.
    """
    names = _disabled(disabled)
    for index, patch in enumerate(PATCHES):
        if not (index in _originals or patch.in_context or names & {patch.name, "all"}):
            _originals[index] = _replace(patch)


def uninstall() -> None:
    """Restores all attributes."""
    for index in sorted(_originals, reverse=True):
        _restore(PATCHES[index], _originals.pop(index))


@contextlib.contextmanager
def applied(name: str) -> Iterator[None]:
    """Installs the patches of one name inside the context, unless they are disabled."""
    chosen = [patch for patch in PATCHES if patch.name == name and not _disabled() & {name, "all"}]
    originals = [_replace(patch) for patch in chosen]
    try:
        yield
    finally:
        for patch, values in zip(chosen, originals, strict=True):
            _restore(patch, values)


def _disabled(names: str | None = None) -> set[str]:
    found = {name.strip() for name in (os.environ.get(DISABLE, "") if names is None else names).split(",")} - {""}
    known = list(dict.fromkeys(patch.name for patch in PATCHES))
    if unknown := found - {"all", *known}:
        raise UserError(f"{DISABLE} must name {', '.join(known)} or all, got {', '.join(sorted(unknown))}")
    return found


def _replace(patch: Patch) -> list[Any]:
    """Replaces the attributes and returns their previous values."""
    originals = [vars(owner).get(attribute, _MISSING) for owner, attribute in patch.targets]
    originals = [_MISSING if value is _DEFAULT_NEW else value for value in originals]
    replacement = patch.replace(originals[0])
    for owner, attribute in patch.targets:
        setattr(owner, attribute, replacement)
    return originals


def _restore(patch: Patch, originals: list[Any]) -> None:
    for (owner, attribute), value in zip(patch.targets, originals, strict=True):
        if value is _MISSING and attribute == "__new__":
            setattr(owner, attribute, _DEFAULT_NEW)
        elif value is _MISSING:
            delattr(owner, attribute)
        else:
            setattr(owner, attribute, value)
