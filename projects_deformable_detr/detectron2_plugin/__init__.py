"""The Detectron2 engine, and the only folder that imports Detectron2.

Importing it registers the project's backbones, meta-architectures and data sets, adds the project's keys to the default
config, and installs the replacements listed in `patches`.
"""

import sys
import warnings

from ..engine import is_installed
from ..errors import missing_package

if sys.argv[0] == "-m":  # python -m projects_deformable_detr.detectron2_plugin.run
    for package in ("ms_deform_attn", "detectron2"):
        if not is_installed(package):
            print(f"run: {missing_package(package)}", file=sys.stderr)
            sys.exit(2)

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)  # used by fvcore
    from detectron2.config import get_cfg

    from . import backbones, checkpoint, config, data, meta_arch, patches
    from .launch import main
    from .mapper import DetrDatasetMapper
    from .meta_arch import DETR, DeformableDETR
    from .trainer import Trainer

data.register_builtin()
checkpoint.register()
config.extend_defaults()
patches.install()

__all__ = ["DETR", "DeformableDETR", "DetrDatasetMapper", "Trainer", "backbones", "get_cfg", "main", "meta_arch"]
