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

from ..config.training import augmentation_policy, optimizer_config, schedule_config
from ..errors import UserError
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
        UserError: for keys that Detectron2's LazyConfig training script has no counterpart for.
    """
    refuse_unsupported(cfg)
    if cfg.TEST.AUG.ENABLED:
        raise UserError("TEST.AUG.ENABLED True has no LazyConfig form: set it to False")
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)}: a LazyConfig evaluates one data set, so name one")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES or resolve_num_classes(cfg)
    nodes = {
        "model": lazy_model(cfg),
        "dataloader": _dataloader(cfg),
        "optimizer": _optimizer(cfg),
        "lr_multiplier": _lr_multiplier(cfg),
        "train": _train(cfg),
    }
    return DictConfig(nodes, flags={"allow_objects": True})


def _dataloader(cfg: CfgNode) -> dict[str, Any]:
    filter_empty, workers = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, cfg.DATALOADER.NUM_WORKERS
    train = cfg.DATASETS.TRAIN[0] if len(cfg.DATASETS.TRAIN) == 1 else list(cfg.DATASETS.TRAIN)
    return {
        "train": L(build_detection_train_loader)(
            dataset=L(get_detection_dataset_dicts)(names=train, filter_empty=filter_empty),
            sampler=_sampler(cfg),
            mapper=_mapper(cfg, is_train=True),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=workers,
        ),
        "test": L(build_detection_test_loader)(
            dataset=L(get_detection_dataset_dicts)(names=cfg.DATASETS.TEST[0], filter_empty=False),
            mapper=_mapper(cfg, is_train=False),
            num_workers="${..train.num_workers}",
        ),
        "evaluator": L(make_evaluator)(
            dataset_name="${..test.dataset.names}",
            output_dir="${train.output_dir}/inference",
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            has_masks=cfg.MODEL.MASK_ON,
            is_panoptic=cfg.MODEL.DETR.PANOPTIC.ENABLED,
        ),
    }


def _mapper(cfg: CfgNode, is_train: bool) -> DictConfig:
    policy = dump_dataclass(augmentation_policy(cfg, is_train))
    arguments = DetrDatasetMapper.from_config(cfg, is_train)
    return L(DetrDatasetMapper)(**arguments | {"augmentations": L(build_augmentations)(policy=policy)})


def _sampler(cfg: CfgNode) -> DictConfig | None:
    """Returns None for Detectron2's default, `TrainingSampler`."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return None
    if name != "RepeatFactorTrainingSampler":
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN {name!r} has no LazyConfig form: set dataloader.train.sampler instead"
        )
    return L(RepeatFactorTrainingSampler)(
        repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
            dataset_dicts="${dataloader.train.dataset}",
            repeat_thresh=cfg.DATALOADER.REPEAT_THRESHOLD,
            sqrt=cfg.DATALOADER.REPEAT_SQRT,
        )
    )


def _optimizer(cfg: CfgNode) -> DictConfig:
    """The training script sets ``params.model``."""
    config = optimizer_config(cfg)
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


def _lr_multiplier(cfg: CfgNode) -> DictConfig:
    """The schedule is relative to ``train.max_iter``: if that is changed, the schedule is stretched."""
    config = schedule_config(cfg)
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
    """As in Detectron2's ``configs/common/train.py``."""
    return {
        "output_dir": cfg.OUTPUT_DIR,
        "init_checkpoint": cfg.MODEL.WEIGHTS,
        "max_iter": cfg.SOLVER.MAX_ITER,
        "amp": {"enabled": cfg.SOLVER.AMP.ENABLED},
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
        "checkpointer": {"period": cfg.SOLVER.CHECKPOINT_PERIOD, "max_to_keep": 100},
        "eval_period": cfg.TEST.EVAL_PERIOD,
        "log_period": 20,
        "device": cfg.MODEL.DEVICE,
    }
