"""The Detectron2 engine, and the only folder that imports Detectron2.

Importing it registers the project's backbones, meta-architectures and data sets in Detectron2's registries, adds the
project's keys to its default config, lets its builders choose by the model where it has no registry (`integration`),
and mends imports of its main branch that fail outside Facebook (`lent_names`).
"""

from detectron2.config import get_cfg

from ..config import register_engine
from . import backbones, checkpoint, config, data, integration, lent_names, meta_arch
from .launch import main
from .mapper import DetrDatasetMapper
from .meta_arch import DETR, DeformableDETR
from .trainer import Trainer

register_engine("detectron2", get_cfg)
data.register_builtin()
checkpoint.register()
config.extend_defaults()
integration.install()
lent_names.lend()

__all__ = ["DETR", "DeformableDETR", "DetrDatasetMapper", "Trainer", "backbones", "main", "meta_arch"]
