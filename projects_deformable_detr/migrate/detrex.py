"""Options of detrex's LazyConfigs in ``projects/detr`` and ``projects/deformable_detr``, by their dotted names."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ..errors import UserError
from .key_value import parse
from .rows import Change, Flag, Preset, Row, Source, Theirs, changed, fixed, none, ratio, read_with, same

_D = "MODEL.DETR"
_T = "model.transformer"
_FOLLOWS = "follows the model's own"
_PIPELINE = "both engines' mappers do the same by `INPUT`"
_LAUNCH = "`train_net.py` has flags for it"


def _depth(value: int, theirs: Theirs) -> Mapping[str, Any]:
    name = theirs.get("model.backbone.name")  # torchvision's ResNet, of the dilated models
    depth = int(name.removeprefix("resnet")) if name and name.removeprefix("resnet").isdigit() else value
    if depth not in (18, 34, 50, 101):
        raise UserError(f"a ResNet-{depth} is not here: 18, 34, 50 and 101 are")
    return {"MODEL.RESNETS.DEPTH": depth}


def _weights(value: str, theirs: Theirs) -> Mapping[str, Any]:
    imagenet = value.startswith("detectron2://ImageNetPretrained/torchvision/") or "/models/resnet" in value
    depth = _depth(theirs.get("model.backbone.stages.depth", 50), theirs)["MODEL.RESNETS.DEPTH"]
    return {"MODEL.WEIGHTS": f"torchvision://resnet{depth}" if imagenet else value}


def _freeze(value: int, theirs: Theirs) -> Mapping[str, Any]:
    return {"MODEL.BACKBONE.FREEZE_AT": 2 if theirs.get("model.backbone.name") else value}


def _features(value: list[str], _: Theirs) -> Mapping[str, Any]:
    return {f"{_D}.IN_FEATURES": list(value), "MODEL.RESNETS.OUT_FEATURES": list(value)}


def _steps(value: list[float], theirs: Theirs) -> Mapping[str, Any]:
    last, iterations = value[-1], theirs["train.max_iter"]
    return {"SOLVER.STEPS": tuple(round(iterations * milestone / last) for milestone in value[:-1])}


def _decay(value: list[float], _: Theirs) -> Mapping[str, Any]:
    ratios = [ratio(after, before) for before, after in pairwise(value)]
    if len(set(ratios)) != 1:
        raise UserError(f"lr_multiplier.scheduler.values {value}: here each is the one before times SOLVER.GAMMA")
    return {"SOLVER.GAMMA": ratios[0]}


def _warm_up(value: float, theirs: Theirs) -> Mapping[str, Any]:
    if value == 0:
        return {}  # our configs have none either, written as a factor of 1
    factor = theirs["lr_multiplier.warmup_factor"]
    return {
        "SOLVER.WARMUP_ITERS": round(value * theirs["train.max_iter"]),
        "SOLVER.WARMUP_FACTOR": factor,
    }


def _classes(value: int, _: Theirs) -> Mapping[str, Any]:
    return {} if value == 80 else {f"{_D}.NUM_CLASSES": value}


def _dilation(value: bool, _: Theirs) -> Mapping[str, Any]:
    return {"MODEL.RESNETS.RES5_DILATION": 2 if value else 1}


def _dataset(key: str) -> Change:
    return Change("in a tuple", lambda value, _: {key: (value,) if isinstance(value, str) else tuple(value)})


def _stack(name: str, layers: str, feedforward: tuple[int, int]) -> tuple[Row, ...]:
    at = f"{_T}.{name}"
    detr, deformable = feedforward
    return (
        same(f"{at}.embed_dim", f"{_D}.HIDDEN_DIM", both=256),
        same(f"{at}.num_heads", f"{_D}.NHEADS", both=8),
        same(f"{at}.feedforward_dim", f"{_D}.DIM_FEEDFORWARD", detr=detr, deformable=deformable),
        same(f"{at}.attn_dropout", f"{_D}.DROPOUT", both=0.1),
        same(f"{at}.ffn_dropout", f"{_D}.DROPOUT", both=0.1),
        same(f"{at}.num_layers", f"{_D}.{layers}", both=6),
    )


_BACKBONE: tuple[Row, ...] = (
    fixed("model.backbone.stem.in_channels", "", both=3),
    same("model.backbone.stem.out_channels", "MODEL.RESNETS.STEM_OUT_CHANNELS", both=64),
    same("model.backbone.stem.norm", "MODEL.RESNETS.NORM", both="FrozenBN"),
    changed("model.backbone.stages.depth", ("MODEL.RESNETS.DEPTH",), Change("18, 34, 50, 101", _depth), both=50),
    fixed("model.backbone.stages.stride_in_1x1", "", both=False),
    same("model.backbone.stages.norm", "MODEL.RESNETS.NORM", both="FrozenBN"),
    none(
        "model.backbone.out_features",
        "`OUT_FEATURES` are `IN_FEATURES`, and more with masks",
        detr=["res2", "res3", "res4", "res5"],
        deformable=["res3", "res4", "res5"],
    ),
    changed(
        "model.backbone.freeze_at",
        ("MODEL.BACKBONE.FREEZE_AT",),
        Change("the same; dilated models: 2", _freeze),
        both=1,
        note="ours and the official code's is 2: res2 too",
    ),
    read_with("model.backbone.name", "model.backbone.stages.depth", "MODEL.RESNETS.DEPTH", detr=""),
    changed("model.backbone.dilation", ("MODEL.RESNETS.RES5_DILATION",), Change("2, else 1", _dilation), detr=False),
    fixed("model.backbone.train_backbone", "", detr=True),
    none("model.backbone.return_layers.*", "`OUT_FEATURES`", detr=None),
)
_NECK: tuple[Row, ...] = (
    changed(
        "model.in_features",
        (f"{_D}.IN_FEATURES", "MODEL.RESNETS.OUT_FEATURES"),
        Change("the same", _features),
        detr=["res5"],
    ),
    none("model.in_channels", "the backbone tells it", detr=2048),
    same("", f"{_D}.NUM_FEATURE_LEVELS", detr=1, note="DETR's one level"),
    none("model.neck.input_shapes.*", "the backbone tells it", deformable=None),
    changed(
        "model.neck.in_features",
        (f"{_D}.IN_FEATURES", "MODEL.RESNETS.OUT_FEATURES"),
        Change("the same", _features),
        deformable=["res3", "res4", "res5"],
    ),
    same("model.neck.out_channels", f"{_D}.HIDDEN_DIM", deformable=256),
    same("model.neck.num_outs", f"{_D}.NUM_FEATURE_LEVELS", deformable=4),
    fixed("model.neck.kernel_size", "", deformable=1),
    fixed("model.neck.norm_layer.num_groups", "", deformable=32),
    same("model.neck.norm_layer.num_channels", f"{_D}.HIDDEN_DIM", deformable=256),
    none("model.position_embedding.num_pos_feats", "half of `HIDDEN_DIM`", both=128),
    fixed("model.position_embedding.temperature", "", both=10000),
    fixed("model.position_embedding.normalize", "", both=True),
    fixed("model.position_embedding.offset", "", detr=0.0, deformable=-0.5),
)
_MODEL: tuple[Row, ...] = (
    *_stack("encoder", "ENC_LAYERS", (2048, 1024)),
    fixed(f"{_T}.encoder.post_norm", "", both=False),
    none(f"{_T}.encoder.num_feature_levels", _FOLLOWS, deformable=4),
    *_stack("decoder", "DEC_LAYERS", (2048, 1024)),
    fixed(f"{_T}.decoder.post_norm", "", detr=True),
    fixed(f"{_T}.decoder.return_intermediate", "", both=True),
    none(f"{_T}.decoder.num_feature_levels", _FOLLOWS, deformable=4),
    none(f"{_T}.as_two_stage", _FOLLOWS, deformable=False),
    same(f"{_T}.num_feature_levels", f"{_D}.NUM_FEATURE_LEVELS", deformable=4),
    none(f"{_T}.two_stage_num_proposals", _FOLLOWS, deformable=300),
    same("model.embed_dim", f"{_D}.HIDDEN_DIM", both=256),
    changed(
        "model.num_classes",
        (f"{_D}.NUM_CLASSES",),
        Change("the same; 80 is left to the data", _classes),
        both=80,
    ),
    same("model.num_queries", f"{_D}.NUM_OBJECT_QUERIES", detr=100, deformable=300),
    same("model.aux_loss", f"{_D}.DEEP_SUPERVISION", both=True),
    same("model.with_box_refine", f"{_D}.WITH_BOX_REFINE", deformable=False),
    same("model.as_two_stage", f"{_D}.TWO_STAGE", deformable=False),
    same("model.pixel_mean", "MODEL.PIXEL_MEAN", both=[123.675, 116.28, 103.53]),
    same("model.pixel_std", "MODEL.PIXEL_STD", both=[58.395, 57.12, 57.375]),
    same(
        "model.select_box_nums_for_evaluation",
        "TEST.DETECTIONS_PER_IMAGE",
        deformable=300,
        note="COCO's AP counts 100",
    ),
    Row("model.device", ("MODEL.DEVICE",), "cuda", "cuda", only_given=True),
)
_C = "model.criterion"
_LOSS: tuple[Row, ...] = (
    none(f"{_C}.num_classes", _FOLLOWS, both=80),
    same(f"{_C}.matcher.cost_class", f"{_D}.COST_CLASS", detr=1, deformable=2.0),
    same(f"{_C}.matcher.cost_bbox", f"{_D}.COST_BBOX", both=5.0),
    same(f"{_C}.matcher.cost_giou", f"{_D}.COST_GIOU", both=2.0),
    fixed(f"{_C}.matcher.cost_class_type", "the loss's own", detr="ce_cost", deformable="focal_loss_cost"),
    same(f"{_C}.matcher.alpha", f"{_D}.FOCAL_ALPHA", deformable=0.25),
    same(f"{_C}.matcher.gamma", f"{_D}.FOCAL_GAMMA", deformable=2.0),
    same(
        f"{_C}.weight_dict.loss_class",
        f"{_D}.CLASS_WEIGHT",
        detr=1,
        deformable=1.0,
        note="official Deformable DETR: 2",
    ),
    same(f"{_C}.weight_dict.loss_bbox", f"{_D}.L1_WEIGHT", both=5.0),
    same(f"{_C}.weight_dict.loss_giou", f"{_D}.GIOU_WEIGHT", both=2.0),
    fixed(f"{_C}.loss_class_type", "`CLASS_LOSS` chooses here", detr="ce_loss", deformable="focal_loss"),
    same(f"{_C}.alpha", f"{_D}.FOCAL_ALPHA", deformable=0.25),
    same(f"{_C}.gamma", f"{_D}.FOCAL_GAMMA", deformable=2.0),
    same(f"{_C}.eos_coef", f"{_D}.NO_OBJECT_WEIGHT", detr=0.1),
)
_DATA: tuple[Row, ...] = (
    same(
        "dataloader.train.total_batch_size",
        "SOLVER.IMS_PER_BATCH",
        detr=64,
        deformable=16,
        note="over all GPUs, as here",
    ),
    Row("dataloader.train.num_workers", ("DATALOADER.NUM_WORKERS",), 16, 16, only_given=True),
    changed("dataloader.train.dataset.names", ("DATASETS.TRAIN",), _dataset("DATASETS.TRAIN"), both="coco_2017_train"),
    same("", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", both=True, note="Detectron2's default, which detrex keeps"),
    none("dataloader.train.mapper.*", _PIPELINE, both=None),
    changed("dataloader.test.dataset.names", ("DATASETS.TEST",), _dataset("DATASETS.TEST"), both="coco_2017_val"),
    none("dataloader.test.*", _PIPELINE, both=None),
    none("dataloader.evaluator.*", "COCO's evaluator is the only one", both=None),
)
_TRAINING: tuple[Row, ...] = (
    same("optimizer.lr", "SOLVER.BASE_LR", both=1e-4, note="official Deformable DETR: 2e-4 at batch 32"),
    fixed("optimizer.betas", "", both=(0.9, 0.999)),
    same("optimizer.weight_decay", "SOLVER.WEIGHT_DECAY", both=1e-4),
    none("optimizer.params.*", "functions cannot be read: set the two keys below", both=None),
    same("", "SOLVER.BACKBONE_MULTIPLIER", both=0.1, note="`lr_factor_func`"),
    same("", "SOLVER.SAMPLING_MULTIPLIER", both=1.0, note="`lr_factor_func` slows the backbone only"),
    changed(
        "lr_multiplier.scheduler.milestones",
        ("SOLVER.STEPS",),
        Change("its fractions of `train.max_iter`", _steps),
        detr=[369600, 554400],
        deformable=[300000, 375000],
    ),
    changed("lr_multiplier.scheduler.values", ("SOLVER.GAMMA",), Change("their ratio", _decay), both=[1.0, 0.1]),
    changed(
        "lr_multiplier.warmup_length",
        ("SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_FACTOR"),
        Change("its fraction of `train.max_iter`", _warm_up),
        both=0.0,
    ),
    read_with("lr_multiplier.warmup_factor", "lr_multiplier.warmup_length", "SOLVER.WARMUP_FACTOR", both=0.001),
    fixed("lr_multiplier.warmup_method", "", both="linear"),
    changed(
        "train.init_checkpoint",
        ("MODEL.WEIGHTS",),
        Change("ImageNet's → `torchvision://…`; other files as they are", _weights),
        both="detectron2://ImageNetPretrained/torchvision/R-50.pkl",
        note="their R101 config names R-50's file",
    ),
    same("train.max_iter", "SOLVER.MAX_ITER", detr=554400, deformable=375000),
    Row("train.output_dir", ("OUTPUT_DIR",), "./output", "./output", only_given=True),
    same("train.clip_grad.enabled", "SOLVER.CLIP_GRADIENTS.ENABLED", detr=False, deformable=True),
    same("train.clip_grad.params.max_norm", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", both=0.1),
    same("train.clip_grad.params.norm_type", "SOLVER.CLIP_GRADIENTS.NORM_TYPE", both=2),
    same("train.amp.enabled", "SOLVER.AMP.ENABLED", both=False),
    Row("train.seed", ("SEED",), -1, -1, only_given=True),
    same("train.eval_period", "TEST.EVAL_PERIOD", both=5000),
    same("train.checkpointer.period", "SOLVER.CHECKPOINT_PERIOD", both=5000),
    none("train.checkpointer.max_to_keep", "there is no key for it", both=100),
    none("train.log_period", "there is no key for it", both=20),
    none("train.device", "`MODEL.DEVICE`", both="cuda"),
    none("train.ddp.*", _LAUNCH, both=None),
    same("train.model_ema.enabled", "SOLVER.EMA.ENABLED", both=False),
    same("train.model_ema.decay", "SOLVER.EMA.DECAY", both=0.999),
    none(
        "train.model_ema.use_ema_weights_for_eval_only",
        "evaluation and `model_final.pth` have the average (docs/training.md)",
        both=False,
    ),
    none("train.model_ema.*", "the average lies where the model does", both=None),
    none("train.fast_dev_run.*", "set `SOLVER.MAX_ITER`", both=None),
    same("--resume", "--resume", both=False, note="of a run of ours only"),
    same("--eval-only", "--eval-only", both=False),
    none("train.wandb.*", "the log goes to TensorBoard", both=None),
)
_DILATED = {"model.backbone.name": "resnet50", "model.backbone.dilation": True}

DETREX = Source(
    "detrex",
    _BACKBONE + _NECK + _MODEL + _LOSS + _DATA + _TRAINING,
    {
        "detr_r50_300ep": Preset("detr", gpus=8),
        "detr_r101_300ep": Preset("detr", {"model.backbone.stages.depth": 101}, 8),
        "detr_r50_dc5_300ep": Preset("detr", _DILATED, 8),
        "detr_r101_dc5_300ep": Preset("detr", _DILATED | {"model.backbone.name": "resnet101"}, 8),
        "deformable_detr_r50_50ep": Preset("deformable_detr", gpus=8),
        "deformable_detr_r50_with_box_refinement_50ep": Preset("deformable_detr", {"model.with_box_refine": True}, 8),
        "deformable_detr_r50_two_stage_50ep": Preset(
            "deformable_detr", {"model.with_box_refine": True, "model.as_two_stage": True}, 8
        ),
    },
    parse,
    flags={
        "--num-gpus": Flag(takes=True, gpus=True),
        "--num-machines": Flag(takes=True, gpus=True),
        "--machine-rank": Flag(takes=True),
        "--dist-url": Flag(takes=True),
        "--resume": Flag("--resume", True),
        "--eval-only": Flag("--eval-only", True),
    },
)
