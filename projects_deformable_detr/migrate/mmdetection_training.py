"""Options of mmdetection 3's configs beside ``model``: optimizer, schedule, hooks and data."""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .rows import Change, Row, Theirs, changed, fixed, none, same

_DATA = "`DATASETS` and `--register` name data here"
_EVALUATION = "evaluation is the engine's, by COCO's rules"
_ENGINE = "the engine's own"
_PIPELINE = "the same augmentation: `INPUT`"


def _load_from(value: str | None, _: Theirs) -> Mapping[str, Any]:
    if value and value.startswith("http"):
        raise UserError(f"load_from {value}: download it, and name the file")
    return {"MODEL.WEIGHTS": value} if value else {}


def _batch(theirs: Theirs) -> int:
    return int(theirs["train_dataloader.batch_size"] * theirs.gpus)


def _total(_: int, theirs: Theirs) -> Mapping[str, Any]:
    return {"SOLVER.IMS_PER_BATCH": _batch(theirs)}


def _epochs(key: str) -> Change:
    """Epochs to the iterations of a key."""
    return Change("times images ÷ batch", lambda value, theirs: {key: theirs.iterations(value, _batch(theirs))})


def _every(key: str) -> Change:
    """The same for periods, which are whole epochs at least, as in our configs."""
    return Change(
        "times images ÷ batch", lambda value, theirs: {key: math.ceil(value * theirs.images / _batch(theirs))}
    )


def _steps(value: list[int], theirs: Theirs) -> Mapping[str, Any]:
    return {"SOLVER.STEPS": tuple(theirs.iterations(epoch, _batch(theirs)) for epoch in value)}


def _optimizer(value: str, _: Theirs) -> Mapping[str, Any]:
    if value not in ("AdamW", "SGD"):
        raise UserError(f"optim_wrapper.optimizer.type {value}: AdamW and SGD are here")
    return {"SOLVER.OPTIMIZER": value.upper()}


_O = "optim_wrapper"
_CUSTOM = f"{_O}.paramwise_cfg.custom_keys"
_TRAINING: tuple[Row, ...] = (
    changed(
        f"{_O}.type",
        ("SOLVER.AMP.ENABLED",),
        Change("`AmpOptimWrapper` → `True`", lambda value, _: {"SOLVER.AMP.ENABLED": value == "AmpOptimWrapper"}),
        both="OptimWrapper",
    ),
    changed(f"{_O}.optimizer.type", ("SOLVER.OPTIMIZER",), Change("`ADAMW`, `SGD`", _optimizer), both="AdamW"),
    same(f"{_O}.optimizer.lr", "SOLVER.BASE_LR", detr=1e-4, deformable=2e-4),
    same(f"{_O}.optimizer.weight_decay", "SOLVER.WEIGHT_DECAY", both=1e-4),
    same("", "SOLVER.CLIP_GRADIENTS.ENABLED", both=True, note="`clip_grad` is there"),
    same(f"{_O}.clip_grad.max_norm", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", both=0.1),
    same(f"{_O}.clip_grad.norm_type", "SOLVER.CLIP_GRADIENTS.NORM_TYPE", both=2),
    same(f"{_CUSTOM}.backbone.lr_mult", "SOLVER.BACKBONE_MULTIPLIER", both=0.1),
    fixed(f"{_CUSTOM}.backbone.decay_mult", "weight decay is the same for all", detr=1.0),
    same(f"{_CUSTOM}.sampling_offsets.lr_mult", "SOLVER.SAMPLING_MULTIPLIER", deformable=0.1),
    same(f"{_CUSTOM}.reference_points.lr_mult", "SOLVER.SAMPLING_MULTIPLIER", deformable=0.1),
    same("", "SOLVER.SAMPLING_MULTIPLIER", detr=1.0, note="DETR has no slow group"),
    none("max_epochs", "`train_cfg.max_epochs` counts", detr=150, deformable=50),
    fixed("train_cfg.type", "", both="EpochBasedTrainLoop"),
    changed("train_cfg.max_epochs", ("SOLVER.MAX_ITER",), _epochs("SOLVER.MAX_ITER"), detr=150, deformable=50),
    changed("train_cfg.val_interval", ("TEST.EVAL_PERIOD",), _every("TEST.EVAL_PERIOD"), both=1),
    none("val_cfg.*", _ENGINE),
    none("test_cfg.*", _ENGINE),
    fixed("param_scheduler.0.type", "", both="MultiStepLR"),
    fixed("param_scheduler.0.begin", "", both=0),
    none("param_scheduler.0.end", "the last epoch", detr=150, deformable=50),
    fixed("param_scheduler.0.by_epoch", "", both=True),
    changed(
        "param_scheduler.0.milestones",
        ("SOLVER.STEPS",),
        Change("in iterations", _steps),
        detr=[100],
        deformable=[40],
    ),
    same("param_scheduler.0.gamma", "SOLVER.GAMMA", both=0.1),
    none("auto_scale_lr.*", "no rate is scaled by itself: `SOLVER.BASE_LR` and the batch go together", both=None),
    none("default_hooks.checkpoint.max_keep_ckpts", "there is no key for it", both=None),
    changed(
        "default_hooks.checkpoint.interval",
        ("SOLVER.CHECKPOINT_PERIOD",),
        _every("SOLVER.CHECKPOINT_PERIOD"),
        both=1,
    ),
    none("default_hooks.*", _ENGINE),
    none("custom_hooks.*", _ENGINE),
    changed(
        "load_from",
        ("MODEL.WEIGHTS",),
        Change("the file", _load_from),
        both=None,
        note="theirs are read too (docs/checkpoints.md)",
    ),
    same("resume", "--resume", both=False, note="of a run of ours only"),
    none("work_dir", "`OUTPUT_DIR`", both=None),
    none("randomness.*", "`SEED`", both=None),
    Row("env_cfg.cudnn_benchmark", ("CUDNN_BENCHMARK",), False, False, only_given=True),
    none("env_cfg.*", _ENGINE),
)
_T = "train_dataloader"
_LOADING: tuple[Row, ...] = (
    changed(
        f"{_T}.batch_size", ("SOLVER.IMS_PER_BATCH",), Change("times GPUs", _total), both=2, note="of one GPU there"
    ),
    Row(f"{_T}.num_workers", ("DATALOADER.NUM_WORKERS",), 2, 2, only_given=True),
    none(f"{_T}.persistent_workers", _ENGINE, both=True),
    fixed(f"{_T}.sampler.type", "", both="DefaultSampler"),
    fixed(f"{_T}.sampler.shuffle", "", both=True),
    changed(
        f"{_T}.batch_sampler.type",
        ("DATALOADER.ASPECT_RATIO_GROUPING",),
        Change(
            "`True` for `AspectRatioBatchSampler`",
            lambda value, _: {"DATALOADER.ASPECT_RATIO_GROUPING": value == "AspectRatioBatchSampler"},
        ),
        both="AspectRatioBatchSampler",
    ),
    same(
        f"{_T}.dataset.filter_cfg.filter_empty_gt", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", detr=True, deformable=False
    ),
    none(f"{_T}.dataset.filter_cfg.min_size", "no image is too small", both=32),
    none(f"{_T}.dataset.pipeline", _PIPELINE),
    none(f"{_T}.dataset.*", _DATA),
    none("val_dataloader.*", _EVALUATION),
    none("test_dataloader.*", _EVALUATION),
    none("val_evaluator.*", _EVALUATION),
    none("test_evaluator.*", _EVALUATION),
    none("train_pipeline", _PIPELINE),
    none("test_pipeline", _PIPELINE),
    *(none(name, _DATA) for name in ("dataset_type", "data_root", "backend_args")),
    *(none(name, _ENGINE) for name in ("default_scope", "launcher", "log_level", "log_processor.*", "vis_backends")),
    none("visualizer.*", _ENGINE),
)
ROWS = _TRAINING + _LOADING
