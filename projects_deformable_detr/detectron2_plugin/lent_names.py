"""Names that Detectron2's main branch and the packages of its evaluators use and that are gone, or never were public.

Since 2026 its Cityscapes loader and evaluators import ``deeplearning.projects.cityscapesApi.cityscapesscripts``, and
``demo/demo.py`` imports ``vision.fair.detectron2.demo.predictor``, so that both fail everywhere else, with any model.
`lend` makes these names stand for the public modules, where nothing else has them.

``lvis`` 0.5.3 and ``cityscapesscripts`` 2.3.0, the newest ones, call functions that NumPy has removed; `numpy_names`
gives them back while such an evaluator runs.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import numpy as np

_PUBLIC = {
    "deeplearning.projects.cityscapesApi.cityscapesscripts": "cityscapesscripts",
    "vision.fair.detectron2.demo.predictor": "predictor",  # beside demo.py, whose folder Python puts on its path
}


class _Finder(MetaPathFinder):
    """Stands first on ``sys.meta_path``: Python's own would look into a lent package and load its modules once more."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of one of the names, of a module below it, or of a package above it.

        None where something of that name is really there, and where the public module is not.
        """
        for lent, public in _PUBLIC.items():
            below, above = name.startswith(f"{lent}."), f"{lent}.".startswith(f"{name}.")
            if not (below or above):
                continue
            real = public + name.removeprefix(lent) if below else public
            if PathFinder.find_spec(lent.partition(".")[0]) or not importlib.util.find_spec(real):
                return None
            return (
                ModuleSpec(name, _Lender(real))
                if below or name == lent
                else ModuleSpec(name, _Above(), is_package=True)
            )
        return None


class _Above(Loader):
    """An empty package."""

    def create_module(self, spec: ModuleSpec) -> None:
        """As any module."""

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


class _Lender(Loader):
    """Gives the public module itself, not a second copy: the evaluators set options in it."""

    def __init__(self, real: str) -> None:
        self._real = real
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module under its public name."""
        module = importlib.import_module(self._real)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run; importing wrote the lent name's spec into it."""
        module.__spec__ = self._spec


def lend() -> None:
    """Puts the finder in place; a second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextlib.contextmanager
def numpy_names() -> Iterator[None]:
    """``numpy.float`` (gone since 1.24) and ``numpy.in1d`` (since 2.4), where NumPy has them no more."""
    given = [(name, value) for name, value in (("float", float), ("in1d", np.isin)) if not hasattr(np, name)]
    for name, value in given:
        setattr(np, name, value)
    try:
        yield
    finally:
        for name, _ in given:
            delattr(np, name)
