"""Builds models and criteria from a config, and exports models to transformers."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from fvcore.common.config import CfgNode
from torch import nn

from .. import modeling
from ..checkpoint import load_weights, write_hugging_face
from ..errors import UserError
from ..modeling import CriterionConfig, Detector, DetectorConfig, SetCriterion
from ..modeling.fpn import BackboneWithFPN
from ..modeling.resnet import ResNet
from ..modeling.swin import SwinBackbone
from ..modeling.timm_backbone import TimmBackbone
from .checkpoint import LOADING_KEYS, load_options
from .reading import get, naming_keys, read

logger = logging.getLogger(__name__)

DETECTOR_KEYS = {
    "architecture": "MODEL.META_ARCHITECTURE",
    "class_loss": "MODEL.DETR.CLASS_LOSS",
    "num_classes": "MODEL.DETR.NUM_CLASSES",
    "num_queries": "MODEL.DETR.NUM_OBJECT_QUERIES",
    "in_features": "MODEL.DETR.IN_FEATURES",
    "num_levels": "MODEL.DETR.NUM_FEATURE_LEVELS",
    "d_model": "MODEL.DETR.HIDDEN_DIM",
    "num_heads": "MODEL.DETR.NHEADS",
    "dim_feedforward": "MODEL.DETR.DIM_FEEDFORWARD",
    "dropout": "MODEL.DETR.DROPOUT",
    "activation": "MODEL.DETR.ACTIVATION",
    "pre_norm": "MODEL.DETR.PRE_NORM",
    "encoder_layers": "MODEL.DETR.ENC_LAYERS",
    "decoder_layers": "MODEL.DETR.DEC_LAYERS",
    "encoder_points": "MODEL.DETR.ENC_N_POINTS",
    "decoder_points": "MODEL.DETR.DEC_N_POINTS",
    "multi_scale_attention": "MODEL.DETR.MULTI_SCALE_ATTENTION",
    "position_embedding": "MODEL.DETR.POSITION_EMBEDDING",
    "position_embedding_size": "MODEL.DETR.POSITION_EMBEDDING_SIZE",
    "box_refine": "MODEL.DETR.WITH_BOX_REFINE",
    "two_stage": "MODEL.DETR.TWO_STAGE",
    "activation_checkpointing": "MODEL.DETR.ACTIVATION_CHECKPOINTING",
    "mask_head": "MODEL.MASK_ON",
    "mask_attention_feature": "MODEL.DETR.MASKS.ATTENTION_FEATURE",
    "mask_features": "MODEL.DETR.MASKS.IN_FEATURES",
    "freeze_detector": "MODEL.DETR.MASKS.FREEZE_DETECTOR",
    "mask_padding": "MODEL.DETR.MASK_PADDING",
}
STEP_KEYS = {**DETECTOR_KEYS, "base_lr": "SOLVER.BASE_LR"}  # for errors in the forward pass
CRITERION_KEYS = {
    "class_loss": "MODEL.DETR.CLASS_LOSS",
    "focal_alpha": "MODEL.DETR.FOCAL_ALPHA",
    "focal_gamma": "MODEL.DETR.FOCAL_GAMMA",
    "no_object_weight": "MODEL.DETR.NO_OBJECT_WEIGHT",
    "cost_class": "MODEL.DETR.COST_CLASS",
    "cost_bbox": "MODEL.DETR.COST_BBOX",
    "cost_giou": "MODEL.DETR.COST_GIOU",
    "class_weight": "MODEL.DETR.CLASS_WEIGHT",
    "bbox_weight": "MODEL.DETR.L1_WEIGHT",
    "giou_weight": "MODEL.DETR.GIOU_WEIGHT",
    "deep_supervision": "MODEL.DETR.DEEP_SUPERVISION",
    "mask_loss": "MODEL.MASK_ON",
    "mask_weight": "MODEL.DETR.MASKS.MASK_WEIGHT",
    "dice_weight": "MODEL.DETR.MASKS.DICE_WEIGHT",
}
RESNET_KEYS = {
    "depth": "MODEL.RESNETS.DEPTH",
    "out_features": "MODEL.RESNETS.OUT_FEATURES",
    "norm": "MODEL.RESNETS.NORM",
    "res5_dilation": "MODEL.RESNETS.RES5_DILATION",
    "freeze_at": "MODEL.BACKBONE.FREEZE_AT",
    "stem_channels": "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "res2_channels": "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "groups": "MODEL.RESNETS.NUM_GROUPS",
    "width_per_group": "MODEL.RESNETS.WIDTH_PER_GROUP",
    "deform": "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
    "deform_modulated": "MODEL.RESNETS.DEFORM_MODULATED",
    "deform_groups": "MODEL.RESNETS.DEFORM_NUM_GROUPS",
}
TIMM_KEYS = {
    "variant": "MODEL.BACKBONE.VARIANT",
    "out_features": "MODEL.BACKBONE.OUT_FEATURES",
    "freeze_at": "MODEL.BACKBONE.FREEZE_AT",
}
SWIN_KEYS = {**TIMM_KEYS, "drop_path_rate": "MODEL.BACKBONE.DROP_PATH_RATE"}
FPN_KEYS = {
    "in_features": "MODEL.FPN.IN_FEATURES",
    "out_channels": "MODEL.FPN.OUT_CHANNELS",
    "norm": "MODEL.FPN.NORM",
    "fuse_type": "MODEL.FPN.FUSE_TYPE",
}


def build_detector(
    cfg: CfgNode,
    backbone: nn.Module | None = None,
    architecture: str | None = None,
    *,
    weights: str | Path | None = None,
) -> Detector:
    """Builds the detector of ``cfg.MODEL``; ``detector(images, padding_mask)`` returns predictions.

    ``cfg.MODEL.WEIGHTS`` is not loaded unless it is passed as ``weights``.

    Args:
        cfg: config of either engine, with ``MODEL.DETR.NUM_CLASSES`` set.
        backbone: see `modeling.build_detector`. Default: built from ``cfg.MODEL.BACKBONE``.
        architecture: ``"DETR"`` or ``"DeformableDETR"``. Default: ``cfg.MODEL.META_ARCHITECTURE``.
        weights: file, ``zoo://NAME`` or ``torchvision://NAME`` to load, see `load_weights`; ``""``: none. The default
            loads none, with a warning if ``cfg.MODEL.WEIGHTS`` is set.

    Raises:
        UserError: for invalid values, or weights that cannot be loaded; the message contains the key.
    """
    detector = detector_of(detector_config(cfg, architecture), build_backbone(cfg) if backbone is None else backbone)
    if weights:
        with naming_keys(LOADING_KEYS):
            load_weights(detector, weights, load_options(cfg))
    elif weights is None and cfg.MODEL.WEIGHTS:
        logger.warning(
            "MODEL.WEIGHTS %s is not loaded: the detector has random weights. To load them, pass "
            "weights=cfg.MODEL.WEIGHTS to build_detector; weights='' disables this warning.",
            cfg.MODEL.WEIGHTS,
        )
    return detector


def build_criterion(cfg: CfgNode, architecture: str | None = None) -> SetCriterion:
    """Builds the criterion of ``cfg.MODEL.DETR``; ``criterion(predictions, targets)`` returns weighted losses.

    Args:
        cfg: config of either engine.
        architecture: as in `build_detector`.

    Raises:
        UserError: for invalid values; the message contains the key.
    """
    return criterion_of(criterion_config(cfg, architecture))


def detector_of(config: DetectorConfig, backbone: nn.Module) -> Detector:
    """Builds a detector; errors refer to config keys."""
    with naming_keys(DETECTOR_KEYS):
        return modeling.build_detector(config, backbone)


def criterion_of(config: CriterionConfig) -> SetCriterion:
    """Builds a criterion; errors refer to config keys."""
    with naming_keys(CRITERION_KEYS):
        return modeling.build_criterion(config)


def detector_config(cfg: CfgNode, architecture: str | None = None) -> DetectorConfig:
    """Reads the configuration of the detector; see `build_detector` for arguments and errors."""
    detr = cfg.MODEL.DETR
    if detr.PANOPTIC.ENABLED and not cfg.MODEL.MASK_ON:
        raise UserError("MODEL.DETR.PANOPTIC.ENABLED True requires a mask head: set MODEL.MASK_ON True")
    if detr.WITH_BOX_REFINE and not detr.DEEP_SUPERVISION and detr.DEC_LAYERS > 1:
        # Boxes are detached before the next layer.
        raise UserError(
            "MODEL.DETR.WITH_BOX_REFINE True requires MODEL.DETR.DEEP_SUPERVISION True: otherwise, the heads of "
            "earlier decoder layers would not be trained"
        )
    if detr.NUM_CLASSES == 0:
        raise UserError(
            "MODEL.DETR.NUM_CLASSES is 0: set it to the number of classes of the model; only train_net.py replaces 0 "
            "with the number of classes in the data sets"
        )
    architecture = architecture or cfg.MODEL.META_ARCHITECTURE
    return read(
        DetectorConfig, cfg, DETECTOR_KEYS, architecture=architecture, class_loss=_class_loss(cfg, architecture)
    )


def criterion_config(cfg: CfgNode, architecture: str | None = None) -> CriterionConfig:
    """Reads the configuration of the criterion; see `build_criterion` for arguments and errors."""
    return read(CriterionConfig, cfg, CRITERION_KEYS, class_loss=_class_loss(cfg, architecture))


def _class_loss(cfg: CfgNode, architecture: str | None) -> str:
    """Resolves ``MODEL.DETR.CLASS_LOSS auto``: softmax in DETR, focal in Deformable DETR."""
    name, choices = cast(str, cfg.MODEL.DETR.CLASS_LOSS), ("auto", "softmax", "focal")
    if name not in choices:
        raise UserError(f"MODEL.DETR.CLASS_LOSS must be one of {', '.join(choices)}, got {name!r}")
    if name != "auto":
        return name
    return "softmax" if (architecture or cfg.MODEL.META_ARCHITECTURE) == "DETR" else "focal"


def build_backbone(cfg: CfgNode) -> nn.Module:
    """Builds the backbone of ``cfg.MODEL.BACKBONE.NAME``; see `backbone_config` for errors."""
    return backbone_config(cfg).build()


@dataclass(frozen=True)
class BackboneConfig:
    """Constructor of a backbone and its arguments.

    Attributes:
        constructor: class of the backbone.
        keys: config key of each argument, for errors.
        arguments: keyword arguments.
        bottom_up: argument ``bottom_up`` of a feature pyramid; None for other backbones.
    """

    constructor: Callable[..., nn.Module]
    keys: Mapping[str, str]
    arguments: Mapping[str, object]
    bottom_up: "BackboneConfig | None" = None

    def build(self) -> nn.Module:
        """Builds the backbone; errors refer to config keys."""
        others = {} if self.bottom_up is None else {"bottom_up": self.bottom_up.build()}
        with naming_keys(self.keys):
            return self.constructor(**self.arguments, **others)


def backbone_config(cfg: CfgNode) -> BackboneConfig:
    """Reads the backbone of ``cfg.MODEL.BACKBONE.NAME``.

    Raises:
        UserError: for an unknown name or an unsupported key.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name not in BACKBONES:
        raise UserError(
            f"MODEL.BACKBONE.NAME must be one of {', '.join(BACKBONES)}, got {name!r}; backbones of Detectron2's "
            "registry require --engine detectron2"
        )
    return BACKBONES[name](cfg)


def _arguments(cfg: CfgNode, keys: Mapping[str, str]) -> dict[str, object]:
    return {argument: get(cfg, key) for argument, key in keys.items()}


def _resnet(cfg: CfgNode) -> BackboneConfig:
    resnets = cfg.MODEL.RESNETS
    if resnets.STRIDE_IN_1X1:
        raise UserError(
            "MODEL.RESNETS.STRIDE_IN_1X1 must be False: torchvision's ResNet has its strides in the 3x3 convolutions"
        )
    # Detectron2's default, 256, selects the standard width of each depth.
    width = None if resnets.RES2_OUT_CHANNELS == 256 else resnets.RES2_OUT_CHANNELS
    return BackboneConfig(ResNet, RESNET_KEYS, _arguments(cfg, RESNET_KEYS) | {"res2_channels": width})


# Options that only ResNets support, with their default values.
_RESNET_DEFAULTS: dict[str, object] = {
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (False, False, False, False),
}


def _other(constructor: Callable[..., nn.Module], keys: Mapping[str, str], cfg: CfgNode) -> BackboneConfig:
    for key, value in _RESNET_DEFAULTS.items():
        if (found := get(cfg, key)) != value:
            raise UserError(f"{key} must be {value} for {cfg.MODEL.BACKBONE.NAME}, which is not a ResNet, got {found}")
    return BackboneConfig(constructor, keys, _arguments(cfg, keys))


def _with_fpn(bottom_up: Callable[[CfgNode], BackboneConfig], cfg: CfgNode) -> BackboneConfig:
    return BackboneConfig(BackboneWithFPN, FPN_KEYS, _arguments(cfg, FPN_KEYS), bottom_up(cfg))


_BOTTOM_UP: dict[str, Callable[[CfgNode], BackboneConfig]] = {
    "resnet": _resnet,
    "swin": partial(_other, SwinBackbone, SWIN_KEYS),
    "timm": partial(_other, TimmBackbone, TIMM_KEYS),
}
# Maps MODEL.BACKBONE.NAME to the function that reads the configuration, for backbones of both engines.
BACKBONES: dict[str, Callable[[CfgNode], BackboneConfig]] = {
    **{f"build_deformable_detr_{name}_backbone": read for name, read in _BOTTOM_UP.items()},
    **{f"build_deformable_detr_{name}_fpn_backbone": partial(_with_fpn, read) for name, read in _BOTTOM_UP.items()},
}


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
