"""Deformable DETR (arXiv 2010.04159) for Detectron2 and for machines without it.

Importing the package registers meta-architectures, backbones, config keys and data sets with Detectron2 if that is
installed.
"""

import importlib.util

if importlib.util.find_spec("ms_deform_attn") is None:
    raise ImportError(
        "ms_deform_attn, the attention operator, is not installed: build it with pip install -e . in the checkout"
    )

from . import standalone as standalone  # registers its default config
from .config import add_deformable_detr_config, build_criterion, build_detector, get_cfg
from .engine import is_installed
from .version import __version__

__all__ = ["__version__", "add_deformable_detr_config", "build_criterion", "build_detector", "get_cfg"]

if is_installed("detectron2"):
    try:
        from . import detectron2_plugin as detectron2_plugin
    except ImportError as error:
        raise ImportError(
            f"detectron2 is installed but cannot be imported ({error}): build it against the torch that is installed, "
            "or uninstall it to use the standalone engine"
        ) from error
