"""Options of mmdetection 3's configs beside ``model``: optimizer, schedule, hooks and data."""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .rows import Change, Row, Theirs, changed, fixed, none, read_with, same

_DATA = "`DATASETS` and `--register` name data here"
_EVALUATION = "evaluation is the engine's, by COCO's rules"
_ENGINE = "the engine's own"
_PIPELINE = "`INPUT` has the published augmentation, and no other"
_HOOKS = "of hooks, `EarlyStoppingHook` and `EMAHook` of `custom_hooks` are known here"
_SCALING = "no rate is scaled by itself: `SOLVER.BASE_LR` and the batch go together"
_STOPPING = "custom_hooks.EarlyStoppingHook"
_EMA = "custom_hooks.EMAHook"
_BEST = "default_hooks.checkpoint.save_best"
_AREAS = {"": "AP", "_50": "AP50", "_75": "AP75", "_s": "APs", "_m": "APm", "_l": "APl"}


def _load_from(value: str | None, _: Theirs) -> Mapping[str, Any]:
    if value and value.startswith("http"):
        raise UserError(f"load_from {value}: download it, and name the file")
    return {"MODEL.WEIGHTS": value} if value else {}


def _batch(theirs: Theirs) -> int:
    return theirs.batch("train_dataloader.batch_size")


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


def _metric(option: str, name: Any) -> str:
    """``coco/bbox_mAP_50`` to ``bbox/AP50``."""
    task, found, area = str(name).removeprefix("coco/").partition("_mAP")
    if task not in ("bbox", "segm") or not found or area not in _AREAS:
        raise UserError(f"{option} {name!r}: coco/bbox_mAP has a counterpart, segm_mAP too, and each with _50, … _l")
    return f"{task}/{_AREAS[area]}"


def _best(value: Any, theirs: Theirs) -> Mapping[str, Any]:
    if not value:
        return {}
    name = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    rule = theirs["default_hooks.checkpoint.rule"]
    if rule not in (None, "greater", "less"):
        raise UserError(f"default_hooks.checkpoint.rule {rule!r}: one rule, greater or less, is here")
    key = "TEST.BEST_CHECKPOINT"
    metric = "bbox/AP" if name == "auto" else _metric(_BEST, name)
    return {f"{key}.ENABLED": True, f"{key}.METRIC": metric, f"{key}.MODE": "min" if rule == "less" else "max"}


def _stopping(value: str | None, theirs: Theirs) -> Mapping[str, Any]:
    if value is None:
        return {}
    if theirs[f"{_STOPPING}.rule"] not in (None, "greater"):
        raise UserError(f"{_STOPPING}.rule {theirs[f'{_STOPPING}.rule']!r}: here larger is better")
    key = "TEST.EARLY_STOPPING"
    return {
        f"{key}.ENABLED": True,
        f"{key}.METRIC": _metric(f"{_STOPPING}.monitor", theirs[f"{_STOPPING}.monitor"]),
        f"{key}.PATIENCE": theirs[f"{_STOPPING}.patience"],
        f"{key}.MIN_DELTA": round(100 * theirs[f"{_STOPPING}.min_delta"], 6),
    }


def _average(value: str | None, theirs: Theirs) -> Mapping[str, Any]:
    momentum = theirs[f"{_EMA}.momentum"]
    if value is None:
        return {}
    if not 0 < momentum < 1:
        raise UserError(f"{_EMA}.momentum {momentum!r}: it must lie between 0 and 1")
    return {"SOLVER.EMA.ENABLED": True, "SOLVER.EMA.DECAY": round(1 - momentum, 12)}


def _pipeline(longest: int) -> list[dict[str, Any]]:
    """The published augmentation; ``longest``: the longer side's limit before the crop."""
    sizes = {"type": "RandomChoiceResize", "scales": [[edge, 1333] for edge in range(480, 801, 32)], "keep_ratio": True}
    first = {"type": "RandomChoiceResize", "scales": [[edge, longest] for edge in (400, 500, 600)], "keep_ratio": True}
    crop = {"type": "RandomCrop", "crop_type": "absolute_range", "crop_size": [384, 600], "allow_negative_crop": True}
    return [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "RandomChoice", "transforms": [[sizes], [first, crop, sizes]]},
        {"type": "PackDetInputs"},
    ]


_TEST_PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": [1333, 800], "keep_ratio": True},
    {"type": "LoadAnnotations", "with_bbox": True},
    {"type": "PackDetInputs", "meta_keys": ["img_id", "img_path", "ori_shape", "img_shape", "scale_factor"]},
]
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
    none("max_epochs", "`train_cfg.max_epochs` counts", detr=150, deformable=50, quiet=True),
    fixed("train_cfg.type", "", both="EpochBasedTrainLoop"),
    changed("train_cfg.max_epochs", ("SOLVER.MAX_ITER",), _epochs("SOLVER.MAX_ITER"), detr=150, deformable=50),
    changed("train_cfg.val_interval", ("TEST.EVAL_PERIOD",), _every("TEST.EVAL_PERIOD"), both=1),
    none("val_cfg.*", _ENGINE, both=None, quiet=True),
    none("test_cfg.*", _ENGINE, both=None, quiet=True),
    fixed("param_scheduler.0.type", "", both="MultiStepLR"),
    fixed("param_scheduler.0.begin", "", both=0),
    none("param_scheduler.0.end", "the last epoch", detr=150, deformable=50, quiet=True),
    fixed("param_scheduler.0.by_epoch", "", both=True),
    changed(
        "param_scheduler.0.milestones",
        ("SOLVER.STEPS",),
        Change("in iterations", _steps),
        detr=[100],
        deformable=[40],
    ),
    same("param_scheduler.0.gamma", "SOLVER.GAMMA", both=0.1),
    none("auto_scale_lr.enable", _SCALING, both=False),
    none("auto_scale_lr.base_batch_size", _SCALING, detr=16, deformable=32, quiet=True),
    none("auto_scale_lr.*", _SCALING, both=None),
)
_HOOK_ROWS: tuple[Row, ...] = (
    none("default_hooks.checkpoint.max_keep_ckpts", "there is no key for it", both=None, quiet=True),
    changed(
        "default_hooks.checkpoint.interval",
        ("SOLVER.CHECKPOINT_PERIOD",),
        _every("SOLVER.CHECKPOINT_PERIOD"),
        both=1,
    ),
    fixed("default_hooks.checkpoint.by_epoch", "", both=True),
    changed(
        _BEST,
        tuple(f"TEST.BEST_CHECKPOINT.{key}" for key in ("ENABLED", "METRIC", "MODE")),
        Change("`coco/bbox_mAP_50` → `bbox/AP50`; `auto` → `bbox/AP`", _best),
        both=None,
    ),
    read_with("default_hooks.checkpoint.rule", "save_best", "TEST.BEST_CHECKPOINT.MODE", both=None),
    none("default_hooks.checkpoint.*", _ENGINE, both=None, quiet=True),
    *(
        none(f"default_hooks.{name}.*", _ENGINE, both=None, quiet=True)
        for name in ("timer", "logger", "param_scheduler", "sampler_seed", "visualization", "runtime_info")
    ),
    none("default_hooks.*", _HOOKS, both=None),
    changed(
        f"{_STOPPING}.type",
        tuple(f"TEST.EARLY_STOPPING.{key}" for key in ("ENABLED", "METRIC", "PATIENCE", "MIN_DELTA")),
        Change("`True`, with the four below", _stopping),
        both=None,
    ),
    read_with(f"{_STOPPING}.monitor", "type", "TEST.EARLY_STOPPING.METRIC", both=None),
    read_with(f"{_STOPPING}.patience", "type", "TEST.EARLY_STOPPING.PATIENCE", both=5),
    changed(
        f"{_STOPPING}.min_delta",
        ("TEST.EARLY_STOPPING.MIN_DELTA",),
        Change("times 100: AP in percent; read with `type`", lambda _, __: {}),
        both=0.1,
    ),
    read_with(f"{_STOPPING}.rule", "type", "TEST.EARLY_STOPPING.METRIC", both=None),
    none(f"{_STOPPING}.stopping_threshold", "it is the best value that counts", both=None),
    none(f"{_STOPPING}.*", _ENGINE, both=None, quiet=True),
    changed(
        f"{_EMA}.type",
        ("SOLVER.EMA.ENABLED", "SOLVER.EMA.DECAY"),
        Change("`True`, with `momentum`", _average),
        both=None,
    ),
    changed(
        f"{_EMA}.momentum",
        ("SOLVER.EMA.DECAY",),
        Change("1 minus it; read with `type`", lambda _, __: {}),
        both=0.0002,
    ),
    fixed(f"{_EMA}.ema_type", "", both="ExponentialMovingAverage"),
    none(f"{_EMA}.priority", _ENGINE, both=None, quiet=True),
    none(f"{_EMA}.*", "the average is renewed after every iteration, from the first", both=None),
    none("custom_hooks.*", _HOOKS, both=None),
)
_RUN: tuple[Row, ...] = (
    changed(
        "load_from",
        ("MODEL.WEIGHTS",),
        Change("the file", _load_from),
        both=None,
        note="theirs are read too (docs/checkpoints.md)",
    ),
    same("resume", "--resume", both=False, note="of a run of ours only"),
    Row("work_dir", ("OUTPUT_DIR",), None, None, only_given=True, note="where the command line names it"),
    Row("randomness.seed", ("SEED",), None, None, only_given=True),
    none("randomness.*", _ENGINE, both=None, quiet=True),
    Row("env_cfg.cudnn_benchmark", ("CUDNN_BENCHMARK",), False, False, only_given=True),
    none("env_cfg.*", _ENGINE, both=None, quiet=True),
)
_T = "train_dataloader"
_LOADING: tuple[Row, ...] = (
    changed(
        f"{_T}.batch_size", ("SOLVER.IMS_PER_BATCH",), Change("times GPUs", _total), both=2, note="of one GPU there"
    ),
    Row(f"{_T}.num_workers", ("DATALOADER.NUM_WORKERS",), 2, 2, only_given=True),
    none(f"{_T}.persistent_workers", _ENGINE, both=True, quiet=True),
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
    none(f"{_T}.dataset.pipeline", _PIPELINE, detr=_pipeline(1333), deformable=_pipeline(4200)),
    none(f"{_T}.dataset.type", "`--images` says how many are in an epoch, with every repetition", both="CocoDataset"),
    none(f"{_T}.dataset.data_root", _DATA, both="data/coco/"),
    none(f"{_T}.dataset.ann_file", _DATA, both="annotations/instances_train2017.json"),
    none(f"{_T}.dataset.data_prefix", _DATA, both={"img": "train2017/"}),
    none(f"{_T}.dataset.backend_args", _ENGINE, both=None, quiet=True),
    none(f"{_T}.dataset.*", _DATA, both=None),
    none("val_dataloader.dataset.ann_file", _DATA, both="annotations/instances_val2017.json"),
    none("val_dataloader.dataset.pipeline", "`INPUT.MIN_SIZE_TEST`, `INPUT.MAX_SIZE_TEST`", both=_TEST_PIPELINE),
    *(
        none(name, _EVALUATION, both=None, quiet=True)
        for name in ("val_dataloader.*", "test_dataloader.*", "val_evaluator.*", "test_evaluator.*")
    ),
    none("train_pipeline", _PIPELINE, detr=_pipeline(1333), deformable=_pipeline(4200)),
    none("test_pipeline", "`val_dataloader.dataset.pipeline` counts", both=_TEST_PIPELINE, quiet=True),
    *(none(name, _DATA, both=None, quiet=True) for name in ("dataset_type", "data_root", "backend_args")),
    *(
        none(name, _ENGINE, both=None, quiet=True)
        for name in ("default_scope", "launcher", "log_level", "log_processor.*", "vis_backends", "visualizer.*")
    ),
)
ROWS = _TRAINING + _HOOK_ROWS + _RUN + _LOADING
