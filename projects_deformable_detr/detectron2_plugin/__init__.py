"""The Detectron2 engine, and the only folder that imports Detectron2.

Importing it registers the project's backbones, meta-architectures and data sets in Detectron2's registries, adds the
project's keys to its default config, and lets its builders choose by the model where it has no registry: see
`integration`.
"""

from . import backbones, checkpoint, config, data, integration, meta_arch
from .launch import main
from .mapper import DetrDatasetMapper
from .meta_arch import DETR, DeformableDETR
from .trainer import Trainer

data.register_builtin()
checkpoint.register()
config.extend_defaults()
integration.install()

__all__ = ["DETR", "DeformableDETR", "DetrDatasetMapper", "Trainer", "backbones", "main", "meta_arch"]
