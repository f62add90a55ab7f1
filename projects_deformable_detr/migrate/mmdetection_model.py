"""Options of mmdetection 3's configs below ``model``: backbone, neck, transformer, losses and matching costs."""

from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .rows import NOT_THERE, Change, Row, Theirs, changed, fixed, none, read_with, same

_D = "MODEL.DETR"
_DEEP = ".layer_cfg."
_FEATURES = ("res2", "res3", "res4", "res5")


def _features(value: Any, _: Theirs) -> Mapping[str, Any]:
    if not set(value) <= set(range(len(_FEATURES))):
        raise UserError(f"model.backbone.out_indices {value!r}: the stages of a ResNet are 0 to 3")
    features = [_FEATURES[index] for index in value]
    return {f"{_D}.IN_FEATURES": features, "MODEL.RESNETS.OUT_FEATURES": features}


def _weights(value: str, theirs: Theirs) -> Mapping[str, Any]:
    return {} if theirs["load_from"] else {"MODEL.WEIGHTS": value}


def _freeze(value: int, _: Theirs) -> Mapping[str, Any]:
    return {"MODEL.BACKBONE.FREEZE_AT": max(value + 1, 0)}


def _classes(value: int, _: Theirs) -> Mapping[str, Any]:
    return {} if value == 80 else {f"{_D}.NUM_CLASSES": value}


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
        none(f"{at}.act_cfg.inplace", "", detr=True, quiet=True),
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
    none("model.neck.in_channels", "the backbone tells it", detr=[2048], deformable=[512, 1024, 2048], quiet=True),
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
    none("model.positional_encoding.num_feats", "half of `HIDDEN_DIM`", both=128, quiet=True),
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
ROWS = _BACKBONE + _NECK + _MODEL + _LOSS
