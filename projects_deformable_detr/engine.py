"""Which engine runs: Detectron2's where it is importable, else the standalone one."""

import importlib.util
from dataclasses import dataclass

from .errors import UserError

ENGINES = ("auto", "detectron2", "standalone")


@dataclass(frozen=True)
class EngineChoice:
    """The engine that runs, ``"detectron2"`` or ``"standalone"``, and why, in a few words."""

    name: str
    reason: str


def is_installed(package: str) -> bool:
    """Whether a package can be imported. A mere folder of that name, such as a clone beside us, is not one."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def choose_engine(wanted: str = "auto") -> EngineChoice:
    """Resolves ``auto`` and checks that a named engine can run.

    Raises:
        UserError: if ``wanted`` is none of ``auto``, ``detectron2``, ``standalone``, or Detectron2 was named and
            is not installed.
    """
    if wanted not in ENGINES:
        raise UserError(f"unknown engine {wanted!r}: choose one of {', '.join(ENGINES)}")
    has_detectron2 = is_installed("detectron2")
    if wanted == "auto":
        if has_detectron2:
            return EngineChoice("detectron2", "detectron2 is importable")
        wanted, reason = "standalone", "detectron2 is not installed"
    else:
        reason = "asked for by name"
    if wanted == "detectron2" and not has_detectron2:
        raise UserError(
            "engine 'detectron2' was asked for, but detectron2 is not installed: install it from its "
            "repository, or use --engine standalone"
        )
    return EngineChoice(wanted, reason)


def check_can_train(engine: EngineChoice) -> None:
    """Checks for what training and evaluating need beyond the config and the model.

    Raises:
        UserError: if the standalone engine is to run and lightning is not installed.
    """
    if engine.name == "standalone" and not is_installed("lightning"):
        raise UserError(
            f"the standalone engine ({engine.reason}) needs lightning, which is not installed: pip install lightning"
        )
