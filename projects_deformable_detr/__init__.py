"""Deformable DETR (arXiv 2010.04159), with or without Detectron2.

If Detectron2 is installed, importing the package registers meta-architectures, backbones, config keys and data sets.
Otherwise, PyTorch is imported when a public name is first used.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine import is_installed, register_engine
from .errors import missing_package
from .version import __version__

if TYPE_CHECKING:
    from .config import add_deformable_detr_config, build_criterion, build_detector, get_cfg
    from .inference import Detections, Detector

__all__ = [
    "Detections",
    "Detector",
    "__version__",
    "add_deformable_detr_config",
    "build_criterion",
    "build_detector",
    "get_cfg",
]

# Module of each public name.
_MODULES = {
    "Detections": "inference",
    "Detector": "inference",
    "add_deformable_detr_config": "config",
    "build_criterion": "config",
    "build_detector": "config",
    "get_cfg": "config",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _standalone_cfg() -> Any:
    return importlib.import_module(".standalone.config", __name__).default_cfg()


def _detectron2_cfg() -> Any:
    return importlib.import_module(".detectron2_plugin", __name__).get_cfg()


register_engine("standalone", _standalone_cfg)
register_engine("detectron2", _detectron2_cfg)

# The console script imports Detectron2 only when needed, so that --help is fast, and reports missing packages itself.
_is_module = sys.argv[0] == "-m" and any(argument.partition(".")[0] == __name__ for argument in sys.orig_argv)
_is_command = _is_module or Path(sys.argv[0]).name == "deformable-detr"
if importlib.util.find_spec("ms_deform_attn") is None and not _is_command:
    raise ImportError(f"{__name__} {missing_package('ms_deform_attn')}")
if is_installed("detectron2") and not _is_command:
    try:
        from . import detectron2_plugin as detectron2_plugin
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ImportError(f"{__name__} with Detectron2 {missing_package(package)}") from error
    except ImportError as error:
        if (error.name or "").startswith("ms_deform_attn"):
            raise ImportError(f"{__name__} and ms_deform_attn do not match: install both from one checkout") from error
        raise ImportError(
            f"detectron2 is installed but cannot be imported ({error}): build it against the torch that is installed, "
            "or uninstall it to use the standalone engine"
        ) from error
