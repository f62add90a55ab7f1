"""The model of a recipe as a tree of ``LazyCall`` nodes: `modeling.build_detector` and `build_criterion`, deferred."""

import re
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.config.instantiate import dump_dataclass
from detectron2.modeling import META_ARCH_REGISTRY
from omegaconf import DictConfig
from torch import nn

from ..config.model import FPN_KEYS, RESNET_KEYS, SWIN_KEYS, TIMM_KEYS, detector_config
from ..config.reading import read
from ..errors import UserError
from ..modeling import Detector, DetectorConfig, HungarianMatcher, SetCriterion
from ..modeling.deformable_transformer import DeformableDecoder, DeformableEncoder
from ..modeling.fpn import BackboneWithFPN
from ..modeling.mask_head import MaskHead
from ..modeling.neck import Neck
from ..modeling.position_encoding import LearnedPositionEmbedding, SinePositionEmbedding
from ..modeling.queries import EncoderDetections, LearnedQueries, PositionQueries, ProposalQueries
from ..modeling.resnet import ResNet
from ..modeling.structures import output_shape
from ..modeling.swin import SwinBackbone
from ..modeling.timm_backbone import TimmBackbone
from ..modeling.transformer import TransformerDecoder, TransformerEncoder
from .data import class_names

_BACKBONES: dict[str, tuple[type[nn.Module], dict[str, str]]] = {
    "resnet": (ResNet, RESNET_KEYS),
    "swin": (SwinBackbone, SWIN_KEYS),
    "timm": (TimmBackbone, TIMM_KEYS),
}


def lazy_model(cfg: CfgNode) -> DictConfig:
    """Returns the node of the meta-architecture that ``cfg`` describes; ``MODEL.DETR.NUM_CLASSES`` must be set."""
    architecture: Any = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    with torch.device("meta"):  # checks the config and resolves what depends on the data set, without memory
        arguments = architecture.from_config(cfg)
    config = detector_config(cfg, architecture.architecture)
    train = "${dataloader.train.dataset.names" + ("[0]}" if len(cfg.DATASETS.TRAIN) > 1 else "}")
    nodes = {
        "detector": L(Detector)(backbone=_backbone(cfg), **_parts(config, arguments["detector"].backbone)),
        "criterion": _criterion(arguments["criterion"]),
        "load_options": {
            **dump_dataclass(arguments["load_options"]),
            "class_names": L(class_names)(dataset=train, panoptic=arguments["panoptic"] is not None),
            "input_format": "${..input_format}",
        },
    }
    return L(architecture)(**arguments | nodes)


def _parts(config: DetectorConfig, backbone: nn.Module) -> dict[str, Any]:
    """Returns the detector's arguments except ``backbone``, which is used for the channels of its feature maps."""
    shapes, deformable = output_shape(backbone), config.architecture == "DeformableDETR"
    if config.position_embedding == "sine":
        embedding = L(SinePositionEmbedding)(d_model="${..d_model}", centered=deformable)
    else:
        embedding = L(LearnedPositionEmbedding)(d_model="${..d_model}", size=config.position_embedding_size)
    neck = L(Neck)(
        in_channels={name: shapes[name].channels for name in config.in_features},
        d_model=config.d_model,
        num_levels=config.num_levels,
        position_embedding=embedding,
        norm=deformable,
        level_embed=deformable,
    )
    mask_head = None
    if config.mask_head:
        mask_head = L(MaskHead)(
            d_model="${..neck.d_model}",
            num_heads="${..encoder.layer.num_heads}",
            level=config.in_features.index(config.mask_attention_feature or config.in_features[-1]),
            features=[(name, shapes[name].channels) for name in config.mask_features],
            box_positions=deformable,
        )
    return {
        "neck": neck,
        **(_deformable_transformer if deformable else _transformer)(config),
        "no_object": config.no_object,
        "mask_head": mask_head,
        "freeze_detector": config.freeze_detector,
    }


def _layer(config: DetectorConfig) -> dict[str, Any]:
    shared = {"d_model": "${...neck.d_model}", "num_levels": "${...neck.num_levels}"}
    return {**dump_dataclass(config.layer(config.encoder_points)), **shared}


def _transformer(config: DetectorConfig) -> dict[str, Any]:
    return {
        "encoder": L(TransformerEncoder)(
            layer=_layer(config),
            num_layers=config.encoder_layers,
            activation_checkpointing=config.activation_checkpointing,
        ),
        "queries": L(PositionQueries)(num_queries=config.num_queries, d_model="${..neck.d_model}"),
        "decoder": L(TransformerDecoder)(
            layer="${..encoder.layer}",
            num_layers=config.decoder_layers,
            num_classes=config.num_classes,
            no_object="${..no_object}",
        ),
    }


def _deformable_transformer(config: DetectorConfig) -> dict[str, Any]:
    encoder = L(DeformableEncoder)(
        layer=_layer(config),
        num_layers=config.encoder_layers,
        multi_scale=config.multi_scale_attention,
        activation_checkpointing=config.activation_checkpointing,
    )
    if config.decoder_layers == 0:
        queries = L(EncoderDetections)(d_model="${..neck.d_model}", num_classes=config.num_classes)
        return {"encoder": encoder, "queries": queries, "decoder": None}
    queries_arguments = {"num_queries": config.num_queries, "d_model": "${..neck.d_model}"}
    if config.two_stage:
        queries = L(ProposalQueries)(**queries_arguments, num_classes="${..decoder.num_classes}")
    else:
        queries = L(LearnedQueries)(**queries_arguments)
    same_points = config.decoder_points == config.encoder_points
    decoder = L(DeformableDecoder)(
        layer="${..encoder.layer}" if same_points else {**_layer(config), "num_points": config.decoder_points},
        num_layers=config.decoder_layers,
        num_classes=config.num_classes,
        box_refine=config.box_refine,
        two_stage=config.two_stage,
        no_object="${..no_object}",
    )
    return {"encoder": encoder, "queries": queries, "decoder": decoder}


def _backbone(cfg: CfgNode) -> DictConfig:
    name = cfg.MODEL.BACKBONE.NAME
    match = re.fullmatch(r"build_deformable_detr_(resnet|swin|timm)(_fpn)?_backbone", name)
    if match is None:
        raise UserError(f"MODEL.BACKBONE.NAME {name!r} has no LazyConfig form: set model.detector.backbone instead")
    constructor, keys = _BACKBONES[match[1]]
    node: DictConfig = read(L(constructor), cfg, keys)
    if constructor is ResNet and node.res2_channels == 256:
        node.res2_channels = None  # Detectron2's default selects the width of the paper at every depth
    return read(L(BackboneWithFPN), cfg, FPN_KEYS, bottom_up=node) if match[2] else node


def _criterion(criterion: SetCriterion) -> DictConfig:
    matcher = criterion.matcher
    return L(SetCriterion)(
        classification=dump_dataclass(criterion.classification),
        matcher=L(HungarianMatcher)(
            classification="${..classification}",
            cost_class=matcher.cost_class,
            cost_bbox=matcher.cost_bbox,
            cost_giou=matcher.cost_giou,
        ),
        weights=dict(criterion.weights),
        deep_supervision=criterion.deep_supervision,
        masks=None if criterion.masks is None else dump_dataclass(criterion.masks),
    )
