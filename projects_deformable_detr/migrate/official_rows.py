"""Options of ``main.py`` in facebookresearch/detr (DETR) and fundamentalvision/Deformable-DETR (Deformable DETR)."""

from . import official_values as values
from .rows import Change, Row, changed, fixed, none, same

_DATA = "it lies below `$DETECTRON2_DATASETS/coco` here, or is named by `--register`"
_UNREAD = "their code does not read it either"
_LAUNCH = "`--num-gpus`, `--num-machines`, `--dist-url` of `train_net.py` start processes"
_D = "MODEL.DETR"
_TRAINING: tuple[Row, ...] = (
    same("lr", "SOLVER.BASE_LR", detr=1e-4, deformable=2e-4),
    fixed("lr_backbone_names", "the backbone's group is all below `backbone`", deformable=["backbone.0"]),
    changed(
        "lr_backbone",
        ("SOLVER.BACKBONE_MULTIPLIER", "MODEL.BACKBONE.FREEZE_AT"),
        Change("divided by `lr`; 0 freezes: 5, else 2", values.backbone_rate),
        detr=1e-5,
        deformable=2e-5,
    ),
    fixed(
        "lr_linear_proj_names",
        "the slow group is the sampling offsets and the reference points' projection",
        deformable=["reference_points", "sampling_offsets"],
    ),
    same("lr_linear_proj_mult", "SOLVER.SAMPLING_MULTIPLIER", deformable=0.1),
    same("", "SOLVER.SAMPLING_MULTIPLIER", detr=1.0, note="DETR has no slow group"),
    changed(
        "batch_size", ("SOLVER.IMS_PER_BATCH",), Change("times GPUs", values.total), both=2, note="of one GPU there"
    ),
    same("weight_decay", "SOLVER.WEIGHT_DECAY", both=1e-4),
    changed("epochs", ("SOLVER.MAX_ITER",), Change("times images ÷ batch", values.iterations), detr=300, deformable=50),
    changed(
        "lr_drop",
        ("SOLVER.STEPS", "SOLVER.GAMMA"),
        Change("its multiples, in iterations; × 0.1", values.drops),
        detr=200,
        deformable=40,
    ),
    none("lr_drop_epochs", _UNREAD, deformable=None),
    changed(
        "clip_max_norm",
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "SOLVER.CLIP_GRADIENTS.ENABLED"),
        Change("the same; 0 switches it off", values.clip),
        both=0.1,
    ),
    changed(
        "sgd",
        *values.key("SOLVER.OPTIMIZER", lambda value: "SGD" if value else "ADAMW", "`SGD`, else `ADAMW`"),
        deformable=False,
    ),
)
_MODEL: tuple[Row, ...] = (
    same("with_box_refine", f"{_D}.WITH_BOX_REFINE", deformable=False),
    same("two_stage", f"{_D}.TWO_STAGE", deformable=False),
    changed(
        "frozen_weights",
        ("MODEL.WEIGHTS", f"{_D}.MASKS.FREEZE_DETECTOR"),
        Change("the file; `True`", values.frozen),
        both=None,
        note="the file may be theirs",
    ),
    changed(
        "backbone",
        ("MODEL.RESNETS.DEPTH", "MODEL.WEIGHTS"),
        Change("`resnet50` → 50, `torchvision://resnet50`", values.backbone),
        both="resnet50",
        note="18, 34, 50, 101",
    ),
    changed(
        "dilation",
        *values.key("MODEL.RESNETS.RES5_DILATION", lambda value: 2 if value else 1, "2, else 1"),
        both=False,
    ),
    same("position_embedding", f"{_D}.POSITION_EMBEDDING", both="sine"),
    none("position_embedding_scale", f"{_UNREAD}: 2π in both", deformable=6.283185307179586),
    changed(
        "num_feature_levels",
        (f"{_D}.NUM_FEATURE_LEVELS", f"{_D}.IN_FEATURES", "MODEL.RESNETS.OUT_FEATURES"),
        Change("1 → `res5`, more → `res3` to `res5`", values.levels),
        deformable=4,
        note="`OUT_FEATURES` has `res2` too with `--masks`",
    ),
    same("enc_layers", f"{_D}.ENC_LAYERS", both=6),
    same("dec_layers", f"{_D}.DEC_LAYERS", both=6),
    same("dim_feedforward", f"{_D}.DIM_FEEDFORWARD", detr=2048, deformable=1024),
    same("hidden_dim", f"{_D}.HIDDEN_DIM", both=256),
    same("dropout", f"{_D}.DROPOUT", both=0.1),
    same("nheads", f"{_D}.NHEADS", both=8),
    same("num_queries", f"{_D}.NUM_OBJECT_QUERIES", detr=100, deformable=300),
    same("pre_norm", f"{_D}.PRE_NORM", detr=False),
    same("dec_n_points", f"{_D}.DEC_N_POINTS", deformable=4),
    same("enc_n_points", f"{_D}.ENC_N_POINTS", deformable=4),
    same("masks", "MODEL.MASK_ON", both=False),
    changed(
        "",
        ("MODEL.RESNETS.OUT_FEATURES", f"{_D}.IN_FEATURES", f"{_D}.NUM_FEATURE_LEVELS"),
        Change("`res5`; `OUT_FEATURES` all with `--masks`", values.levels),
        detr="res5",
        note="DETR's one level",
    ),
)
_LOSS: tuple[Row, ...] = (
    same("aux_loss", f"{_D}.DEEP_SUPERVISION", both=True, note="`--no_aux_loss`: `False`"),
    same("set_cost_class", f"{_D}.COST_CLASS", detr=1.0, deformable=2.0),
    same("set_cost_bbox", f"{_D}.COST_BBOX", both=5.0),
    same("set_cost_giou", f"{_D}.COST_GIOU", both=2.0),
    same("mask_loss_coef", f"{_D}.MASKS.MASK_WEIGHT", both=1.0),
    same("dice_loss_coef", f"{_D}.MASKS.DICE_WEIGHT", both=1.0),
    same("cls_loss_coef", f"{_D}.CLASS_WEIGHT", deformable=2.0),
    same("", f"{_D}.CLASS_WEIGHT", detr=1.0, note="a constant in DETR"),
    same("bbox_loss_coef", f"{_D}.L1_WEIGHT", both=5.0),
    same("giou_loss_coef", f"{_D}.GIOU_WEIGHT", both=2.0),
    same("eos_coef", f"{_D}.NO_OBJECT_WEIGHT", detr=0.1),
    same("focal_alpha", f"{_D}.FOCAL_ALPHA", deformable=0.25),
)
_RUN: tuple[Row, ...] = (
    changed(
        "dataset_file",
        (
            "DATASETS.TRAIN",
            "DATASETS.TEST",
            f"{_D}.NUM_CLASSES",
            f"{_D}.PANOPTIC.ENABLED",
            f"{_D}.PANOPTIC.NUM_THING_CLASSES",
        ),
        Change("`coco`, `coco_panoptic` → our names", values.dataset),
        both="coco",
        note="with `coco_panoptic` and `--masks`: 133, `True`, 80",
    ),
    none("coco_path", _DATA, detr=None, deformable="./data/coco"),
    none("coco_panoptic_path", _DATA, both=None),
    none("remove_difficult", "it has no effect on COCO there either", both=False),
    Row("output_dir", ("OUTPUT_DIR",), "", "", note="empty there: nothing is saved; here always", only_given=True),
    Row("device", ("MODEL.DEVICE",), "cuda", "cuda", only_given=True),
    Row("seed", ("SEED",), 42, 42, note="their default is not taken over", only_given=True),
    changed(
        "resume",
        ("MODEL.WEIGHTS",),
        Change("the file", values.resume),
        both="",
        note="weights only: the optimizer's state and the epoch stay behind",
    ),
    none("start_epoch", "training starts at iteration 0, or goes on with `--resume`", both=0),
    same("eval", "--eval-only", both=False, note="a flag of `train_net.py`"),
    Row("num_workers", ("DATALOADER.NUM_WORKERS",), 2, 2, note="their default is not taken over", only_given=True),
    none("cache_mode", "images are read from the disk", deformable=False),
    none("world_size", _LAUNCH, detr=1),
    none("dist_url", _LAUNCH, detr="env://"),
)
ROWS = _TRAINING + _MODEL + _LOSS + _RUN
