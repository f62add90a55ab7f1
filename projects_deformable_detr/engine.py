"""Selects the engine: Detectron2 if it is installed, otherwise the standalone engine."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import UserError

ENGINES = ("auto", "detectron2", "standalone")
_DEFAULT_CFGS: dict[str, Callable[[], Any]] = {}


@dataclass(frozen=True)
class EngineChoice:
    """A selected engine.

    Attributes:
        name: ``"detectron2"`` or ``"standalone"``.
        reason: reason for the selection, for messages.
    """

    name: str
    reason: str


def is_installed(package: str) -> bool:
    """Returns whether a package is installed; namespace packages, such as the folder of a clone, do not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def is_main_process() -> bool:
    """Returns whether this process is rank 0 of its job, even before the process group exists."""
    return os.environ.get("RANK", "0") == "0"


def choose_engine(wanted: str = "auto") -> EngineChoice:
    """Selects an engine by name; ``"auto"`` selects Detectron2 if it is installed.

    Raises:
        UserError: for an unknown name, or for ``"detectron2"`` if it is not installed.
    """
    if wanted not in ENGINES:
        raise UserError(f"unknown engine {wanted!r}: choose one of {', '.join(ENGINES)}")
    has_detectron2 = is_installed("detectron2")
    if wanted == "auto" and has_detectron2:
        return EngineChoice("detectron2", "detectron2 is installed")
    if wanted == "auto":
        return EngineChoice("standalone", "detectron2 is not installed")
    if wanted == "detectron2" and not has_detectron2:
        raise UserError(
            "engine 'detectron2' requires detectron2, which is not installed: install it from its repository, or use "
            "--engine standalone"
        )
    return EngineChoice(wanted, "selected by name")


def check_can_train(engine: EngineChoice) -> None:
    """Raises `UserError` if a package that the engine requires for training and evaluation is not installed."""
    if engine.name == "standalone" and not is_installed("lightning"):
        raise UserError(
            f"the standalone engine ({engine.reason}) requires lightning, which is not installed: pip install lightning"
        )


def register_engine(name: str, defaults: Callable[[], Any]) -> None:
    """Registers the function that returns a new config with the default values of an engine."""
    _DEFAULT_CFGS[name] = defaults


def default_cfg(name: str) -> Any:
    """Returns a new config with the default values of a registered engine."""
    return _DEFAULT_CFGS[name]()
