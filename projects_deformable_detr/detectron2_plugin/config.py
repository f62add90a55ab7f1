"""Detectron2's own default config; the project's keys are added on top by ``projects_deformable_detr.get_cfg``."""

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg


def get_cfg() -> CfgNode:
    """Detectron2's defaults, as a copy that may be changed."""
    return get_detectron2_cfg()
