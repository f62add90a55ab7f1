"""The model of a recipe as a tree of ``LazyCall`` nodes."""

import re
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.config.instantiate import dump_dataclass
from detectron2.modeling import META_ARCH_REGISTRY
from omegaconf import DictConfig

from ..checkpoint import LoadOptions
from ..errors import UserError
from ..modeling import Detector, HungarianMatcher, LayerConfig, SetCriterion
from ..modeling.deformable_transformer import DeformableDecoder, DeformableEncoder
from ..modeling.fpn import BackboneWithFPN
from ..modeling.mask_head import MaskHead
from ..modeling.neck import Neck
from ..modeling.position_encoding import LearnedPositionEmbedding, SinePositionEmbedding
from ..modeling.queries import EncoderDetections, LearnedQueries, PositionQueries, ProposalQueries
from ..modeling.resnet import ResNet
from ..modeling.swin import SwinBackbone
from ..modeling.timm_backbone import TimmBackbone
from ..modeling.transformer import TransformerDecoder, TransformerEncoder
from .data import class_names


def lazy_model(cfg: CfgNode) -> DictConfig:
    """Returns the node of the meta-architecture that ``cfg`` describes; ``NUM_CLASSES`` must be set."""
    architecture: Any = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    with torch.device("meta"):  # checks the config and resolves what depends on the data set, without memory
        arguments = architecture.from_config(cfg)
    arguments["detector"] = _detector(cfg, arguments["detector"])
    arguments["criterion"] = _criterion(arguments["criterion"])
    train = "${dataloader.train.dataset.names" + ("[0]}" if len(cfg.DATASETS.TRAIN) > 1 else "}")
    arguments["load_options"] = L(LoadOptions)(
        allow_partial=cfg.MODEL.DETR.ALLOW_PARTIAL_WEIGHTS,
        keep_logits=cfg.MODEL.DETR.KEEP_CLASS_LOGITS,
        class_names=L(class_names)(dataset=train, panoptic=cfg.MODEL.DETR.PANOPTIC.ENABLED),
        input_format="${..input_format}",
    )
    return L(architecture)(**arguments)


def _detector(cfg: CfgNode, built: Detector) -> DictConfig:
    """``built``: the same detector on the meta device, for the channels of the backbone's features."""
    detr = cfg.MODEL.DETR
    shapes: Any = built.backbone.output_shape()  # type: ignore[operator]
    in_channels = {name: shapes[name].channels for name in detr.IN_FEATURES}
    parts = (_detr if isinstance(built.queries, PositionQueries) else _deformable)(detr, in_channels)
    if isinstance(built.mask_head, MaskHead):
        parts["mask_head"] = L(MaskHead)(
            d_model="${..neck.d_model}",
            num_heads="${..encoder.layer.num_heads}",
            level=built.mask_head.level,
            features=[(name, shapes[name].channels) for name in detr.MASKS.IN_FEATURES],
            box_positions=built.mask_head.position is not None,
        )
    return L(Detector)(
        backbone=_backbone(cfg), **parts, no_object=built.no_object, freeze_detector=built.freeze_detector
    )


def _deformable(detr: CfgNode, in_channels: dict[str, int]) -> dict[str, DictConfig | None]:
    """The parts of Deformable DETR between backbone and mask head."""
    neck = L(Neck)(
        in_channels=in_channels,
        d_model=detr.HIDDEN_DIM,
        num_levels=detr.NUM_FEATURE_LEVELS,
        position_embedding=_position_embedding(detr, centered=True),
    )
    encoder = L(DeformableEncoder)(
        layer=L(LayerConfig)(**_layer(detr), num_levels="${...neck.num_levels}", num_points=detr.ENC_N_POINTS),
        num_layers=detr.ENC_LAYERS,
        multi_scale=detr.MULTI_SCALE_ATTENTION,
        activation_checkpointing=detr.ACTIVATION_CHECKPOINTING,
    )
    if detr.DEC_LAYERS == 0:
        queries = L(EncoderDetections)(d_model="${..neck.d_model}", num_classes=detr.NUM_CLASSES)
        return {"neck": neck, "encoder": encoder, "queries": queries, "decoder": None}
    queries = L(LearnedQueries)(num_queries=detr.NUM_OBJECT_QUERIES, d_model="${..neck.d_model}")
    if detr.TWO_STAGE:
        queries = L(ProposalQueries)(
            num_queries=detr.NUM_OBJECT_QUERIES,
            d_model="${..neck.d_model}",
            num_classes="${..decoder.num_classes}",
        )
    layer: Any = "${..encoder.layer}"
    if detr.DEC_N_POINTS != detr.ENC_N_POINTS:
        layer = L(LayerConfig)(**_layer(detr), num_levels="${...neck.num_levels}", num_points=detr.DEC_N_POINTS)
    decoder = L(DeformableDecoder)(
        layer=layer,
        num_layers=detr.DEC_LAYERS,
        num_classes=detr.NUM_CLASSES,
        box_refine=detr.WITH_BOX_REFINE,
        two_stage=detr.TWO_STAGE,
        no_object="${..no_object}",
    )
    return {"neck": neck, "encoder": encoder, "queries": queries, "decoder": decoder}


def _detr(detr: CfgNode, in_channels: dict[str, int]) -> dict[str, DictConfig | None]:
    """The parts of DETR between backbone and mask head."""
    return {
        "neck": L(Neck)(
            in_channels=in_channels,
            d_model=detr.HIDDEN_DIM,
            num_levels=1,
            position_embedding=_position_embedding(detr, centered=False),
            norm=False,
            level_embed=False,
        ),
        "encoder": L(TransformerEncoder)(
            layer=L(LayerConfig)(**_layer(detr), pre_norm=detr.PRE_NORM),
            num_layers=detr.ENC_LAYERS,
            activation_checkpointing=detr.ACTIVATION_CHECKPOINTING,
        ),
        "queries": L(PositionQueries)(num_queries=detr.NUM_OBJECT_QUERIES, d_model="${..neck.d_model}"),
        "decoder": L(TransformerDecoder)(
            layer="${..encoder.layer}",
            num_layers=detr.DEC_LAYERS,
            num_classes=detr.NUM_CLASSES,
            no_object="${..no_object}",
        ),
    }


def _layer(detr: CfgNode) -> dict[str, Any]:
    """Arguments of `LayerConfig` that encoder and decoder share."""
    return {
        "d_model": "${...neck.d_model}",
        "num_heads": detr.NHEADS,
        "dim_feedforward": detr.DIM_FEEDFORWARD,
        "dropout": detr.DROPOUT,
        "activation": detr.ACTIVATION,
    }


def _position_embedding(detr: CfgNode, centered: bool) -> DictConfig:
    if detr.POSITION_EMBEDDING == "learned":
        return L(LearnedPositionEmbedding)(d_model="${..d_model}", size=detr.POSITION_EMBEDDING_SIZE)
    return L(SinePositionEmbedding)(d_model="${..d_model}", centered=centered)


def _backbone(cfg: CfgNode) -> DictConfig:
    backbone, resnets, fpn = cfg.MODEL.BACKBONE, cfg.MODEL.RESNETS, cfg.MODEL.FPN
    nodes = {
        "resnet": lambda: L(ResNet)(
            depth=resnets.DEPTH,
            out_features=resnets.OUT_FEATURES,
            norm=resnets.NORM,
            res5_dilation=resnets.RES5_DILATION,
            freeze_at=backbone.FREEZE_AT,
            stem_channels=resnets.STEM_OUT_CHANNELS,
            res2_channels=None if resnets.RES2_OUT_CHANNELS == 256 else resnets.RES2_OUT_CHANNELS,
            deform=resnets.DEFORM_ON_PER_STAGE,
            deform_modulated=resnets.DEFORM_MODULATED,
            deform_groups=resnets.DEFORM_NUM_GROUPS,
        ),
        "swin": lambda: L(SwinBackbone)(
            variant=backbone.VARIANT,
            out_features=backbone.OUT_FEATURES,
            drop_path_rate=backbone.DROP_PATH_RATE,
            freeze_at=backbone.FREEZE_AT,
        ),
        "timm": lambda: L(TimmBackbone)(variant=backbone.VARIANT, out_features=backbone.OUT_FEATURES),
    }
    match = re.fullmatch(r"build_deformable_detr_(resnet|swin|timm)(_fpn)?_backbone", backbone.NAME)
    if match is None:
        raise UserError(
            f"MODEL.BACKBONE.NAME {backbone.NAME!r} has no LazyConfig form here: set model.detector.backbone"
        )
    node = nodes[match[1]]()
    if match[2]:
        return L(BackboneWithFPN)(
            bottom_up=node, in_features=fpn.IN_FEATURES, out_channels=fpn.OUT_CHANNELS, norm=fpn.NORM
        )
    return node


def _criterion(built: SetCriterion) -> DictConfig:
    matcher = built.matcher
    return L(SetCriterion)(
        classification=dump_dataclass(built.classification),
        matcher=L(HungarianMatcher)(
            classification="${..classification}",
            cost_class=matcher.cost_class,
            cost_bbox=matcher.cost_bbox,
            cost_giou=matcher.cost_giou,
        ),
        weights=dict(built.weights),
        deep_supervision=built.deep_supervision,
        masks=None if built.masks is None else dump_dataclass(built.masks),
    )
