"""The Detectron2 engine, and the only folder that imports Detectron2.

Importing it registers the project's backbones, meta-architectures and data sets in Detectron2's registries.
"""

from . import backbones, checkpoint, data, meta_arch
from .launch import main
from .mapper import DetrDatasetMapper
from .meta_arch import DETR, DeformableDETR
from .trainer import Trainer

data.register_builtin()
checkpoint.register()

__all__ = ["DETR", "DeformableDETR", "DetrDatasetMapper", "Trainer", "backbones", "main", "meta_arch"]
