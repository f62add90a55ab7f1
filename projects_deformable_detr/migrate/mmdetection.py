"""Options of mmdetection 3's configs in ``configs/detr`` and ``configs/deformable_detr``, by their dotted names."""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .key_value import parse
from .mmdetection_files import read
from .rows import NOT_THERE, Change, Preset, Row, Source, Theirs, changed, fixed, none, read_with, same

_D = "MODEL.DETR"
_DEEP = ".layer_cfg."
_FEATURES = ("res2", "res3", "res4", "res5")
_DATA = "`DATASETS` and `--register` name data here"
_EVALUATION = "evaluation is the engine's, by COCO's rules"
_ENGINE = "the engine's own"
_PIPELINE = "the same augmentation: `INPUT`"


def _features(value: Any, _: Theirs) -> Mapping[str, Any]:
    features = [_FEATURES[index] for index in value]
    return {f"{_D}.IN_FEATURES": features, "MODEL.RESNETS.OUT_FEATURES": features}


def _weights(value: str, theirs: Theirs) -> Mapping[str, Any]:
    return {} if theirs["load_from"] else {"MODEL.WEIGHTS": value}


def _load_from(value: str | None, _: Theirs) -> Mapping[str, Any]:
    if value and value.startswith("http"):
        raise UserError(f"load_from {value}: download it, and name the file")
    return {"MODEL.WEIGHTS": value} if value else {}


def _freeze(value: int, _: Theirs) -> Mapping[str, Any]:
    return {"MODEL.BACKBONE.FREEZE_AT": max(value + 1, 0)}


def _classes(value: int, _: Theirs) -> Mapping[str, Any]:
    return {} if value == 80 else {f"{_D}.NUM_CLASSES": value}


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


def _norm(value: str, theirs: Theirs) -> Mapping[str, Any]:
    if value == "BN" and not theirs["model.backbone.norm_cfg.requires_grad"] and theirs["model.backbone.norm_eval"]:
        return {"MODEL.RESNETS.NORM": "FrozenBN"}
    if value not in ("BN", "SyncBN", "GN") or theirs["model.backbone.norm_eval"]:
        raise UserError(f"model.backbone.norm_cfg {value} with norm_eval: here norms are frozen as a whole, or trained")
    return {"MODEL.RESNETS.NORM": value}


def _attention(stack: str, part: str, heads: bool, dropout: bool) -> tuple[Row, ...]:
    """``heads``, ``dropout``: whether Deformable DETR's configs have them; its deformable attention has defaults."""
    at = f"model.{stack}{_DEEP}{part}"
    return (
        same(f"{at}.embed_dims", f"{_D}.HIDDEN_DIM", both=256),
        same(f"{at}.num_heads", f"{_D}.NHEADS", detr=8, deformable=8 if heads else NOT_THERE),
        same(f"{at}.dropout", f"{_D}.DROPOUT", detr=0.1, deformable=0.1 if dropout else NOT_THERE),
        fixed(f"{at}.batch_first", "", both=True),
    )


def _stack(stack: str, layers: str, *attentions: tuple[Row, ...]) -> tuple[Row, ...]:
    at = f"model.{stack}{_DEEP}ffn_cfg"
    return (
        same(f"model.{stack}.num_layers", f"{_D}.{layers}", both=6),
        *(row for rows in attentions for row in rows),
        same(f"{at}.embed_dims", f"{_D}.HIDDEN_DIM", both=256),
        same(f"{at}.feedforward_channels", f"{_D}.DIM_FEEDFORWARD", detr=2048, deformable=1024),
        same(f"{at}.ffn_drop", f"{_D}.DROPOUT", both=0.1),
        fixed(f"{at}.num_fcs", "", detr=2),
        fixed(f"{at}.act_cfg.type", "", detr="ReLU"),
        none(f"{at}.act_cfg.inplace", "", detr=True),
    )


_BACKBONE: tuple[Row, ...] = (
    fixed("model.type", "`META_ARCHITECTURE`", detr="DETR", deformable="DeformableDETR"),
    fixed("model.data_preprocessor.type", "", both="DetDataPreprocessor"),
    same("model.data_preprocessor.mean", "MODEL.PIXEL_MEAN", both=[123.675, 116.28, 103.53]),
    same("model.data_preprocessor.std", "MODEL.PIXEL_STD", both=[58.395, 57.12, 57.375]),
    changed(
        "model.data_preprocessor.bgr_to_rgb",
        ("INPUT.FORMAT",),
        Change("`RGB`, else `BGR`", lambda value, _: {"INPUT.FORMAT": "RGB" if value else "BGR"}),
        both=True,
    ),
    none("model.data_preprocessor.pad_size_divisor", "a batch is padded to its largest image", both=1),
    fixed("model.backbone.type", "other backbones: docs/models.md", both="ResNet"),
    same("model.backbone.depth", "MODEL.RESNETS.DEPTH", both=50, note="18, 34, 50, 101"),
    fixed("model.backbone.num_stages", "", both=4),
    changed(
        "model.backbone.out_indices",
        (f"{_D}.IN_FEATURES", "MODEL.RESNETS.OUT_FEATURES"),
        Change("1 → `res3`, 2 → `res4`, 3 → `res5`", _features),
        detr=(3,),
        deformable=(1, 2, 3),
    ),
    changed("model.backbone.frozen_stages", ("MODEL.BACKBONE.FREEZE_AT",), Change("plus 1", _freeze), both=1),
    changed(
        "model.backbone.norm_cfg.type",
        ("MODEL.RESNETS.NORM",),
        Change("`BN`, frozen → `FrozenBN`", _norm),
        both="BN",
    ),
    read_with("model.backbone.norm_cfg.requires_grad", "norm_cfg.type", "MODEL.RESNETS.NORM", both=False),
    read_with("model.backbone.norm_eval", "norm_cfg.type", "MODEL.RESNETS.NORM", both=True),
    fixed("model.backbone.style", "strides are in the 3x3 here", both="pytorch"),
    fixed("model.backbone.init_cfg.type", "", both="Pretrained"),
    changed(
        "model.backbone.init_cfg.checkpoint",
        ("MODEL.WEIGHTS",),
        Change("the same, without `load_from`", _weights),
        both="torchvision://resnet50",
    ),
)
_NECK: tuple[Row, ...] = (
    fixed("model.neck.type", "", both="ChannelMapper"),
    none("model.neck.in_channels", "the backbone tells it", detr=[2048], deformable=[512, 1024, 2048]),
    fixed("model.neck.kernel_size", "", both=1),
    same("model.neck.out_channels", f"{_D}.HIDDEN_DIM", both=256),
    fixed("model.neck.act_cfg", "", both=None),
    fixed("model.neck.norm_cfg", "", detr=None),
    fixed("model.neck.norm_cfg.type", "", deformable="GN"),
    fixed("model.neck.norm_cfg.num_groups", "", deformable=32),
    same("model.neck.num_outs", f"{_D}.NUM_FEATURE_LEVELS", detr=1, deformable=4),
    same("model.num_feature_levels", f"{_D}.NUM_FEATURE_LEVELS", deformable=4),
)
_MODEL: tuple[Row, ...] = (
    same("model.num_queries", f"{_D}.NUM_OBJECT_QUERIES", detr=100, deformable=300),
    same("model.with_box_refine", f"{_D}.WITH_BOX_REFINE", deformable=False),
    same("model.as_two_stage", f"{_D}.TWO_STAGE", deformable=False, note="here it needs `WITH_BOX_REFINE` too"),
    *_stack("encoder", "ENC_LAYERS", _attention("encoder", "self_attn_cfg", heads=False, dropout=False)),
    *_stack(
        "decoder",
        "DEC_LAYERS",
        _attention("decoder", "self_attn_cfg", heads=True, dropout=True),
        _attention("decoder", "cross_attn_cfg", heads=False, dropout=False),
    ),
    fixed("model.decoder.return_intermediate", "", both=True),
    fixed("model.decoder.post_norm_cfg", "", deformable=None),
    none("model.positional_encoding.num_feats", "half of `HIDDEN_DIM`", both=128),
    fixed("model.positional_encoding.normalize", "", both=True),
    fixed("model.positional_encoding.offset", "", detr=0.0, deformable=-0.5),
    fixed("model.bbox_head.type", "", detr="DETRHead", deformable="DeformableDETRHead"),
    changed(
        "model.bbox_head.num_classes",
        (f"{_D}.NUM_CLASSES",),
        Change("the same; 80 is left to the data", _classes),
        both=80,
    ),
    same("model.bbox_head.embed_dims", f"{_D}.HIDDEN_DIM", detr=256),
    none("model.bbox_head.sync_cls_avg_factor", "the number of objects is always averaged over GPUs", deformable=True),
)
_COSTS = "model.train_cfg.assigner.match_costs"
_LOSS: tuple[Row, ...] = (
    fixed(
        "model.bbox_head.loss_cls.type", "`CLASS_LOSS` chooses here", detr="CrossEntropyLoss", deformable="FocalLoss"
    ),
    fixed("model.bbox_head.loss_cls.use_sigmoid", "", detr=False, deformable=True),
    same("model.bbox_head.loss_cls.loss_weight", f"{_D}.CLASS_WEIGHT", detr=1.0, deformable=2.0),
    same("model.bbox_head.loss_cls.bg_cls_weight", f"{_D}.NO_OBJECT_WEIGHT", detr=0.1),
    fixed("model.bbox_head.loss_cls.class_weight", "", detr=1.0),
    same("model.bbox_head.loss_cls.alpha", f"{_D}.FOCAL_ALPHA", deformable=0.25, note="of the matching cost too"),
    same("model.bbox_head.loss_cls.gamma", f"{_D}.FOCAL_GAMMA", deformable=2.0, note="of the matching cost too"),
    fixed("model.bbox_head.loss_bbox.type", "", both="L1Loss"),
    same("model.bbox_head.loss_bbox.loss_weight", f"{_D}.L1_WEIGHT", both=5.0),
    fixed("model.bbox_head.loss_iou.type", "", both="GIoULoss"),
    same("model.bbox_head.loss_iou.loss_weight", f"{_D}.GIOU_WEIGHT", both=2.0),
    fixed("model.train_cfg.assigner.type", "", both="HungarianAssigner"),
    fixed(f"{_COSTS}.0.type", "", detr="ClassificationCost", deformable="FocalLossCost"),
    same(f"{_COSTS}.0.weight", f"{_D}.COST_CLASS", detr=1.0, deformable=2.0),
    fixed(f"{_COSTS}.1.type", "", both="BBoxL1Cost"),
    same(f"{_COSTS}.1.weight", f"{_D}.COST_BBOX", both=5.0),
    fixed(f"{_COSTS}.1.box_format", "centre and size", both="xywh"),
    fixed(f"{_COSTS}.2.type", "", both="IoUCost"),
    fixed(f"{_COSTS}.2.iou_mode", "", both="giou"),
    same(f"{_COSTS}.2.weight", f"{_D}.COST_GIOU", both=2.0),
    same("model.test_cfg.max_per_img", "TEST.DETECTIONS_PER_IMAGE", both=100),
)
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


def _resnet(depth: int) -> dict[str, Any]:
    at = "model.backbone"
    return {f"{at}.depth": depth, f"{at}.init_cfg.checkpoint": f"torchvision://resnet{depth}"}


_500 = {"train_cfg.max_epochs": 500, "train_cfg.val_interval": 10, "param_scheduler.0.milestones": [334]}
_REFINE = {"model.with_box_refine": True}

MMDETECTION = Source(
    "mmdetection",
    _BACKBONE + _NECK + _MODEL + _LOSS + _TRAINING + _LOADING,
    {
        "detr_r50_8xb2-150e_coco": Preset("detr", gpus=8),
        "detr_r50_8xb2-500e_coco": Preset("detr", _500, 8),
        "detr_r101_8xb2-500e_coco": Preset("detr", _500 | _resnet(101), 8),
        "detr_r18_8xb2-500e_coco": Preset("detr", _500 | _resnet(18), 8),
        "deformable-detr_r50_16xb2-50e_coco": Preset("deformable_detr", gpus=16),
        "deformable-detr-refine_r50_16xb2-50e_coco": Preset("deformable_detr", _REFINE, 16),
        "deformable-detr-refine-twostage_r50_16xb2-50e_coco": Preset(
            "deformable_detr", _REFINE | {"model.as_two_stage": True}, 16
        ),
    },
    parse,
    read,
)
