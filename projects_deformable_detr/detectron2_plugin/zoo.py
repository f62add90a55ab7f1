"""Detectron2's part of ``projects_deformable_detr.model_zoo``."""

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, LazyConfig
from detectron2.modeling import build_model
from torch import nn


def load(path: Path) -> Any:
    """A LazyConfig file."""
    return LazyConfig.load(str(path))


def build(cfg: CfgNode) -> nn.Module:
    """The meta-architecture that a config names, in training mode, as Detectron2 builds it."""
    return build_model(cfg)
