"""Exports the detector of a config to Hugging Face transformers."""

from pathlib import Path

from fvcore.common.config import CfgNode
from torch import nn

from ..checkpoint import write_hugging_face
from .model import DETECTOR_KEYS, criterion_config, detector_config
from .reading import naming_keys


def export_hugging_face(
    cfg: CfgNode, folder: str | Path, detector: nn.Module, class_names: tuple[str, ...] | None = None
) -> None:
    """Writes the detector of a config with `write_hugging_face`; errors refer to config keys."""
    with naming_keys(DETECTOR_KEYS):
        write_hugging_face(
            folder,
            detector,
            detector_config(cfg),
            criterion_config(cfg),
            resnet_depth=cfg.MODEL.RESNETS.DEPTH,
            image_size=(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            class_names=class_names,
        )
