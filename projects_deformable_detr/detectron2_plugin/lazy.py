"""Recipes as LazyConfigs.

`lazy_config` translates a config, usually one of ``configs/*.yaml``, into the tree of ``LazyCall`` nodes that
Detectron2's ``tools/lazyconfig_train_net.py`` trains. A node is a constructor with its arguments. Arguments that must
agree are interpolations, so that an override in one place reaches all of them.
"""

from typing import Any

from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.config.instantiate import dump_dataclass
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from omegaconf import DictConfig

from ..config.data import data_config
from ..config.evaluation import evaluation_config
from ..config.training import augmentation_policy, optimizer_config, schedule_config, training_config
from ..data.config import SamplerConfig
from ..errors import UserError
from ..training import OptimizerConfig, ScheduleConfig
from ..training.optimizer import make_optimizer, parameter_groups
from .data import resolve_num_classes
from .evaluation import make_evaluator
from .hooks import refuse_unsupported
from .lazy_model import lazy_model
from .mapper import DetrDatasetMapper, build_augmentations


def lazy_config(cfg: CfgNode) -> DictConfig:
    """Translates a config into a LazyConfig.

    Returns:
        The nodes ``model``, ``dataloader`` (``train``, ``test``, ``evaluator``), ``optimizer``, ``lr_multiplier`` and
        ``train``, in this order.

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
        "model": lazy_model(cfg),
        "dataloader": _dataloader(cfg),
        "optimizer": _optimizer(optimizer_config(cfg)),
        "lr_multiplier": _lr_multiplier(schedule_config(cfg)),
        "train": _train(cfg),
    }
    return DictConfig(nodes, flags={"allow_objects": True})


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
    return L(DetrDatasetMapper)(**arguments | {"augmentations": L(build_augmentations)(policy=policy)})


def _sampler(config: SamplerConfig) -> DictConfig | None:
    """Returns None for Detectron2's default, `TrainingSampler`."""
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
    """The training script sets ``params.model``."""
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
    """The schedule is relative to ``train.max_iter``: if that is changed, the schedule is stretched."""
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
        "max_iter": config.max_iter,
        "amp": {"enabled": cfg.SOLVER.AMP.ENABLED},
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
        "checkpointer": {"period": config.checkpoint_period, "max_to_keep": 100},
        "eval_period": config.eval_period,
        "log_period": 20,
        "device": cfg.MODEL.DEVICE,
    }
