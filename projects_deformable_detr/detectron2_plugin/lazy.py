"""Recipes as LazyConfigs.

`lazy_config` translates a config, usually one of ``configs/*.yaml``, into a tree of ``LazyCall`` nodes for Detectron2's
``tools/lazyconfig_train_net.py``. Arguments that must agree are interpolations, so that one override sets all of them.
"""

import re
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.config.instantiate import dump_dataclass
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from omegaconf import DictConfig
from torch import nn

from ..config.data import data_config
from ..config.evaluation import evaluation_config
from ..config.model import FPN_KEYS, RESNET_KEYS, SWIN_KEYS, TIMM_KEYS, detector_config
from ..config.reading import read
from ..config.training import augmentation_policy, optimizer_config, schedule_config, training_config
from ..data.config import SamplerConfig
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
from ..training import OptimizerConfig, ScheduleConfig
from ..training.optimizer import make_optimizer, parameter_groups
from .classes import class_names
from .data import resolve_num_classes
from .evaluation import make_evaluator
from .hooks import refuse_unsupported
from .mapper import DetrDatasetMapper, build_augmentations

_BACKBONES: dict[str, tuple[type[nn.Module], dict[str, str]]] = {
    "resnet": (ResNet, RESNET_KEYS),
    "swin": (SwinBackbone, SWIN_KEYS),
    "timm": (TimmBackbone, TIMM_KEYS),
}


def lazy_config(cfg: CfgNode) -> DictConfig:
    """Returns the nodes ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``, in this order.

    Raises:
        UserError: for keys that Detectron2's LazyConfig training script does not support.
    """
    refuse_unsupported(cfg)
    if evaluation_config(cfg).tta is not None:
        raise UserError("TEST.AUG.ENABLED True has no LazyConfig form: set it to False")
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(f"DATASETS.TEST must name one data set in a LazyConfig, got {tuple(cfg.DATASETS.TEST)}")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES or resolve_num_classes(cfg)
    nodes = {
        "model": _model(cfg),
        "dataloader": _dataloader(cfg),
        "optimizer": _optimizer(optimizer_config(cfg)),
        "lr_multiplier": _lr_multiplier(schedule_config(cfg)),
        "train": _train(cfg),
    }
    return DictConfig(nodes, flags={"allow_objects": True})


def _model(cfg: CfgNode) -> DictConfig:
    """Returns the node of the meta-architecture; ``MODEL.DETR.NUM_CLASSES`` must be set."""
    architecture: Any = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    with torch.device("meta"):  # checks the config and reads the data set's classes, without allocating memory
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
    """Returns the detector's arguments other than its backbone, whose feature maps determine ``in_channels``."""
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
    layer: dict[str, Any] = dump_dataclass(config.layer(config.encoder_points))
    return layer | {"d_model": "${...neck.d_model}", "num_levels": "${...neck.num_levels}"}


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
    arguments = {"num_queries": config.num_queries, "d_model": "${..neck.d_model}"}
    if config.two_stage:
        arguments["num_classes"] = "${..decoder.num_classes}"
    queries = L(ProposalQueries if config.two_stage else LearnedQueries)(**arguments)
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
        node.res2_channels = None  # Detectron2's default; None selects the paper's width at every depth
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


def _dataloader(cfg: CfgNode) -> dict[str, Any]:
    config, evaluation = data_config(cfg), evaluation_config(cfg)
    train = config.train[0] if len(config.train) == 1 else config.train
    return {
        "train": L(build_detection_train_loader)(
            dataset=L(get_detection_dataset_dicts)(names=train, filter_empty=config.filter_empty),
            sampler=_sampler(config.sampler),
            mapper=_mapper(cfg, is_train=True),
            total_batch_size=config.batch_size,
            aspect_ratio_grouping=config.group_by_aspect_ratio,
            num_workers=config.num_workers,
        ),
        "test": L(build_detection_test_loader)(
            dataset=L(get_detection_dataset_dicts)(names=config.test[0], filter_empty=False),
            mapper=_mapper(cfg, is_train=False),
            num_workers="${..train.num_workers}",
        ),
        "evaluator": L(make_evaluator)(
            dataset_name="${..test.dataset.names}",
            output_dir="${train.output_dir}/inference",
            max_detections=evaluation.max_detections,
            has_masks=config.masks,
            is_panoptic=evaluation.is_panoptic,
        ),
    }


def _mapper(cfg: CfgNode, is_train: bool) -> DictConfig:
    policy = dump_dataclass(augmentation_policy(cfg, is_train))
    arguments = DetrDatasetMapper.from_config(cfg, is_train)
    parts = {"augmentations": L(build_augmentations)(policy=policy), "reader": dump_dataclass(arguments["reader"])}
    return L(DetrDatasetMapper)(**arguments | parts)


def _sampler(config: SamplerConfig) -> DictConfig | None:
    """Returns None for `TrainingSampler`, Detectron2's default."""
    if config.name == "TrainingSampler":
        return None
    if config.name != "RepeatFactorTrainingSampler":
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN {config.name!r} has no LazyConfig form: set dataloader.train.sampler instead"
        )
    return L(RepeatFactorTrainingSampler)(
        repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
            dataset_dicts="${dataloader.train.dataset}",
            repeat_thresh=config.repeat_threshold,
            sqrt=config.repeat_sqrt,
        )
    )


def _optimizer(config: OptimizerConfig) -> DictConfig:
    """Returns the optimizer's node; the training script sets ``params.model``."""
    return L(make_optimizer)(
        params=L(parameter_groups)(
            base_lr="${..lr}",
            backbone_lr=config.base_lr * config.backbone_multiplier,
            sampling_lr=config.base_lr * config.sampling_multiplier,
        ),
        name=config.name,
        lr=config.base_lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
        clip=None if config.clip is None else dump_dataclass(config.clip),
    )


def _lr_multiplier(config: ScheduleConfig) -> DictConfig:
    """Returns a schedule relative to ``train.max_iter``, which is stretched if that is overridden."""
    if config.name == "WarmupCosineLR":
        scheduler = L(CosineParamScheduler)(start_value=1.0, end_value=config.base_lr_end / config.base_lr)
    else:
        milestones = [step for step in config.steps if step <= config.max_iter]
        values = [config.gamma**index for index in range(len(milestones) + 1)]
        scheduler = L(MultiStepParamScheduler)(values=values, milestones=milestones, num_updates=config.max_iter)
    return L(WarmupParamScheduler)(
        scheduler=scheduler,
        warmup_factor=config.warmup_factor,
        warmup_length=min(config.warmup_iters / config.max_iter, 1.0),
        warmup_method=config.warmup_method,
        rescale_interval=config.rescale_interval,
    )


def _train(cfg: CfgNode) -> dict[str, Any]:
    """Settings of the training script, as in Detectron2's ``configs/common/train.py``."""
    config = training_config(cfg)
    return {
        "output_dir": cfg.OUTPUT_DIR,
        "init_checkpoint": cfg.MODEL.WEIGHTS,
        "max_iter": config.schedule.max_iter,
        "amp": {"enabled": cfg.SOLVER.AMP.ENABLED},
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
        "checkpointer": {"period": config.callbacks.checkpoint_period, "max_to_keep": 100},
        "eval_period": config.callbacks.eval_period,
        "log_period": 20,
        "device": cfg.MODEL.DEVICE,
    }
