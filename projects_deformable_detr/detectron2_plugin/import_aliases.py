"""Aliases of public modules for the Meta-internal names that Detectron2's main branch imports.

Since 2026 its Cityscapes loaders and evaluators import ``deeplearning.projects.cityscapesApi.cityscapesscripts``, and
``demo/demo.py`` imports ``vision.fair.detectron2.demo.predictor``. Both fail outside Meta, with any model.

The finder on ``sys.meta_path`` is installed by ``python -m projects_deformable_detr.detectron2_plugin.run``, by a call
to `install`, and by ``train_net.py`` while it runs on Cityscapes, never by importing the project.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_ALIASES = {
    "deeplearning.projects.cityscapesApi.cityscapesscripts": "cityscapesscripts",
    "vision.fair.detectron2.demo.predictor": "predictor",  # next to demo.py, whose folder is on sys.path
}


def install() -> None:
    """Puts the finder on ``sys.meta_path``. Idempotent."""
    if not any(isinstance(finder, _AliasFinder) for finder in sys.meta_path):
        # First, because Python's own finder would load submodules of an aliased package a second time.
        sys.meta_path.insert(0, _AliasFinder())


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Context manager in which the finder is on ``sys.meta_path``."""
    before = list(sys.meta_path)
    install()
    try:
        yield
    finally:
        sys.meta_path[:] = before


class _AliasFinder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns the spec of an alias, of a module below it, or of a package above it.

        None if the first package of the alias exists, or if the public module does not.
        """
        for alias, public in _ALIASES.items():
            is_above = alias.startswith(f"{name}.")
            if not (is_above or name == alias or name.startswith(f"{alias}.")):
                continue
            target_name = public if is_above else public + name.removeprefix(alias)
            if PathFinder.find_spec(alias.partition(".")[0]) or not importlib.util.find_spec(target_name):
                return None
            loader = _EmptyPackageLoader() if is_above else _AliasLoader(target_name)
            return ModuleSpec(name, loader, is_package=is_above)
        return None


class _EmptyPackageLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        """Uses default module creation."""

    def exec_module(self, module: ModuleType) -> None:
        """Leaves the package empty."""


class _AliasLoader(Loader):
    """Returns the public module itself, because evaluators set options in it."""

    def __init__(self, public: str) -> None:
        self._public = public
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Imports the module under its public name."""
        module = importlib.import_module(self._public)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restores the module's own spec, which the import system has replaced."""
        module.__spec__ = self._spec
