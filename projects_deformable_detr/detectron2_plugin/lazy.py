"""Recipes as LazyConfigs.

`lazy_config` translates a config, usually one of ``configs/*.yaml``, into a tree of ``LazyCall`` nodes for Detectron2's
``tools/lazyconfig_train_net.py``: the project's configuration dataclasses, and the constructors that accept them.
Values that must be equal are interpolations, so that one override sets all of them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.config.instantiate import dump_dataclass
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig

from ..config.data import data_config
from ..config.evaluation import evaluation_config
from ..config.model import BACKBONES, BackboneConfig, backbone_config, criterion_config, detector_config
from ..config.run import process_config
from ..config.training import augmentation_policy, training_config
from ..data.config import SAMPLERS, DataConfig
from ..data.sampling import repeat_factors
from ..errors import UserError
from ..modeling import build_criterion, build_detector
from ..training import ScheduleConfig
from ..training.optimizer import make_optimizer, parameter_groups
from .classes import class_names
from .data import resolve_num_classes, test_data, training_data
from .evaluation import make_evaluator
from .hooks import check_supported_keys
from .mapper import DetrDatasetMapper, build_augmentations


def lazy_config(cfg: CfgNode) -> DictConfig:
    """Returns the nodes ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``, in this order.

    Raises:
        UserError: for keys that Detectron2's LazyConfig training script does not support.
    """
    check_supported_keys(cfg)
    if evaluation_config(cfg).tta is not None:
        raise UserError("TEST.AUG.ENABLED True has no LazyConfig form: set it to False")
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(f"DATASETS.TEST must name one data set in a LazyConfig, got {tuple(cfg.DATASETS.TEST)}")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES or resolve_num_classes(cfg)
    training = training_config(cfg)
    # The fused step cannot be combined with the gradient scaler of ``train.amp.enabled``.
    optimizer = dump_dataclass(training.optimizer) | {"fused": False}
    nodes = {
        "model": _model(cfg),
        "dataloader": _dataloader(cfg),
        "optimizer": L(make_optimizer)(
            params=L(parameter_groups)(config="${..config}"),  # the training script sets params.model
            config=optimizer,
            clip_in_step=True,
        ),
        "lr_multiplier": L(RelativeSchedule)(config=dump_dataclass(training.schedule)),
        "train": _train(cfg),
    }
    return DictConfig(nodes, flags={"allow_objects": True})


@dataclass(frozen=True)
class RelativeSchedule(ParamScheduler):  # type: ignore[misc]
    """Schedule for Detectron2's hook, stretched to the number of iterations of the trainer."""

    config: ScheduleConfig

    def __call__(self, where: float) -> float:
        """Returns the learning-rate factor at a training progress in [0, 1]."""
        return self.config.factor(round(where * self.config.max_iter))


def build_train_loader(config: DataConfig, mapper: DetrDatasetMapper, seed: int = -1) -> Any:
    """Builds Detectron2's training loader, with the project's reader for data sets in COCO and LVIS formats."""
    data = training_data(config, seed)
    if not data:
        parts = {name: get_detection_dataset_dicts(name, filter_empty=config.filter_empty) for name in config.train}
        data["dataset"] = [record for part in parts.values() for record in part]
        labels = {
            name: [np.array([item["category_id"] for item in record.get("annotations", ())]) for record in part]
            for name, part in parts.items()
        }
        factors = repeat_factors(config.sampler, list(labels.items()))
        data["sampler"] = None if factors is None else RepeatFactorTrainingSampler(factors)
    return build_detection_train_loader(
        **data,
        mapper=mapper,
        total_batch_size=config.batch_size,
        aspect_ratio_grouping=config.group_by_aspect_ratio,
        num_workers=config.num_workers,
    )


def build_test_loader(config: DataConfig, mapper: DetrDatasetMapper) -> Any:
    """Builds Detectron2's loader of the first test set, with readers as in `build_train_loader`."""
    records = test_data(config.test[0], config)
    if records is None:
        records = get_detection_dataset_dicts(config.test[0], filter_empty=False)
    return build_detection_test_loader(records, mapper=mapper, num_workers=config.num_workers)


def _model(cfg: CfgNode) -> DictConfig:
    """Returns the node of the meta-architecture; ``MODEL.DETR.NUM_CLASSES`` must be set."""
    if cfg.MODEL.BACKBONE.NAME not in BACKBONES:
        raise UserError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r} has no LazyConfig form: set model.detector.backbone "
            "instead"
        )
    architecture: Any = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    with torch.device("meta"):  # checks the config and reads the data set's classes, without allocating memory
        arguments = architecture.from_config(cfg)
    criterion = dump_dataclass(criterion_config(cfg, architecture.architecture))
    shared = {"class_loss": "${...detector.config.class_loss}", "mask_loss": "${...detector.config.mask_head}"}
    nodes = {
        "detector": L(build_detector)(
            config=dump_dataclass(detector_config(cfg, architecture.architecture)),
            backbone=_backbone(backbone_config(cfg)),
        ),
        "criterion": L(build_criterion)(config=criterion | shared),
        "load_options": {
            **dump_dataclass(arguments["load_options"]),
            "class_names": L(class_names)(
                dataset="${dataloader.config.train[0]}", panoptic=arguments["panoptic"] is not None
            ),
            "input_format": "${..input_format}",
        },
    }
    return L(architecture)(**arguments | nodes)


def _backbone(config: BackboneConfig) -> DictConfig:
    others = {} if config.bottom_up is None else {"bottom_up": _backbone(config.bottom_up)}
    return L(config.constructor)(**config.arguments, **others)


def _dataloader(cfg: CfgNode) -> dict[str, Any]:
    config, evaluation = data_config(cfg), evaluation_config(cfg)
    if config.sampler.name not in SAMPLERS:
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN {config.sampler.name!r} has no LazyConfig form: set it to one of "
            f"{', '.join(SAMPLERS)}"
        )
    shared = {"masks": "${model.detector.config.mask_head}"}
    if config.max_objects is not None:
        shared["max_objects"] = "${model.detector.config.num_queries}"
    return {
        "config": dump_dataclass(config) | shared,
        "train": L(build_train_loader)(config="${..config}", mapper=_mapper(cfg, is_train=True), seed="${train.seed}"),
        "test": L(build_test_loader)(config="${..config}", mapper=_mapper(cfg, is_train=False)),
        "evaluator": L(make_evaluator)(
            dataset_name="${..config.test[0]}",
            output_dir="${train.output_dir}/inference",
            max_detections=evaluation.max_detections,
            has_masks="${..config.masks}",
            is_panoptic=evaluation.is_panoptic,
            config="${..config}",
        ),
    }


def _mapper(cfg: CfgNode, is_train: bool) -> DictConfig:
    arguments = DetrDatasetMapper.from_config(cfg, is_train)
    policy = dump_dataclass(augmentation_policy(cfg, is_train))
    parts = {"augmentations": L(build_augmentations)(policy=policy), "reader": "${dataloader.config.reader}"}
    return L(DetrDatasetMapper)(**arguments | parts)


def _train(cfg: CfgNode) -> dict[str, Any]:
    """Settings of the training script, as in Detectron2's ``configs/common/train.py``."""
    process, training = process_config(cfg), training_config(cfg)
    return {
        "output_dir": process.output_dir,
        "init_checkpoint": process.weights,
        "max_iter": training.schedule.max_iter,
        "seed": process.seed,
        "amp": {"enabled": process.amp},
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
        "checkpointer": {"period": training.callbacks.checkpoint_period, "max_to_keep": 100},
        "eval_period": training.callbacks.eval_period,
        "log_period": 20,
        "device": process.device,
    }
