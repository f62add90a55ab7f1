"""The Detectron2 engine, and the only folder that imports Detectron2.

Importing it registers the project's backbone, meta-architectures and data sets in Detectron2's registries.
"""

from . import backbone, data, meta_arch
from .launch import main
from .mapper import DetrDatasetMapper
from .meta_arch import DeformableDETR
from .trainer import Trainer

data.register_builtin()

__all__ = ["DeformableDETR", "DetrDatasetMapper", "Trainer", "backbone", "main", "meta_arch"]
