"""Config keys of the project, on top of Detectron2's (or the standalone engine's) defaults.

Keys that the original DETR's Detectron2 wrapper has keep their name and meaning, so that its
YAML files read naturally here. Every other key is documented where it is defined.
"""

from collections.abc import Sequence
from typing import Any


def add_deformable_detr_config(cfg: Any) -> None:
    """Adds the project's keys, in place, to a Detectron2 or standalone ``CfgNode``.

    The names under ``MODEL.DETR``, ``SOLVER.OPTIMIZER`` and ``SOLVER.BACKBONE_MULTIPLIER`` follow the
    original DETR's Detectron2 wrapper; calling the function twice on one config is harmless.
    """
    node_type = type(cfg)
    _add_model_keys(cfg, node_type)
    _add_recipe_keys(cfg)
    _add_input_keys(cfg)
    _add_callback_keys(cfg, node_type)


def _add_model_keys(cfg: Any, node_type: type) -> None:
    cfg.MODEL.META_ARCHITECTURE = "DeformableDETR"
    cfg.MODEL.DETR = detr = node_type()
    # 0: take the number of categories of the training data set. A number that disagrees is an error.
    detr.NUM_CLASSES = 0
    detr.NUM_OBJECT_QUERIES = 300

    # Levels. Features of the backbone, finest first; further levels come from 3x3 convolutions of stride 2.
    detr.IN_FEATURES = ["res3", "res4", "res5"]
    detr.NUM_FEATURE_LEVELS = 4

    # Transformer.
    detr.HIDDEN_DIM = 256
    detr.NHEADS = 8
    detr.ENC_LAYERS = 6
    detr.DEC_LAYERS = 6  # 0: the encoder-only detector, Deformable DETR's first stage on its own
    detr.DIM_FEEDFORWARD = 1024
    detr.DROPOUT = 0.1
    detr.ACTIVATION = "relu"  # relu | gelu
    detr.PRE_NORM = False  # norms before each part; DETR only
    detr.POSITION_EMBEDDING = "sine"  # sine | learned
    detr.POSITION_EMBEDDING_SIZE = 50  # learned: the most rows and columns of a feature map
    detr.ENC_N_POINTS = 4  # sampled points per head, level and query (K of the paper)
    detr.DEC_N_POINTS = 4
    # False: an encoder token samples its own level only (arXiv 2010.04159, table 2, "MS attention"). The paper does not
    # say on which level an object query would then sample: decoders sample all of them.
    detr.MULTI_SCALE_ATTENTION = True
    detr.WITH_BOX_REFINE = False
    detr.TWO_STAGE = False  # NUM_OBJECT_QUERIES proposals; needs WITH_BOX_REFINE
    # Recompute encoder layers in the backward: less memory for a slower step.
    detr.ACTIVATION_CHECKPOINTING = False

    # Matching cost and loss. auto: softmax with a logit for no object in DETR, focal in Deformable DETR.
    detr.CLASS_LOSS = "auto"  # auto | softmax | focal
    detr.NO_OBJECT_WEIGHT = 0.1  # of queries without an object, softmax only
    detr.COST_CLASS = 2.0
    detr.COST_BBOX = 5.0
    detr.COST_GIOU = 2.0
    detr.CLASS_WEIGHT = 2.0
    detr.L1_WEIGHT = 5.0
    detr.GIOU_WEIGHT = 2.0
    detr.FOCAL_ALPHA = 0.25
    detr.FOCAL_GAMMA = 2.0
    detr.DEEP_SUPERVISION = True

    _add_mask_keys(detr, node_type)

    # Detections below it are left out; 0 keeps the best TEST.DETECTIONS_PER_IMAGE, as evaluation wants them.
    detr.SCORE_THRESH_TEST = 0.0
    # With test-time augmentation (TEST.AUG): detections of one class from several views of an
    # image that overlap by more (IoU) are of one object.
    detr.TTA_NMS_THRESH = 0.7

    # Initial weights. A checkpoint that does not fit is refused, unless a partial load is asked for.
    detr.ALLOW_PARTIAL_WEIGHTS = False
    # Take a file's class head as it is: no mapping onto the data set's classes by name, no new head for others.
    detr.KEEP_CLASS_LOGITS = False

    # build_deformable_detr_{resnet,swin,timm}_backbone, and the same with _fpn_backbone, whose pyramid MODEL.FPN
    # describes; every other registered Detectron2 backbone works in that engine.
    cfg.MODEL.BACKBONE.NAME = "build_deformable_detr_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2  # 1: the stem (Swin: the patches' embedding), 2: and res2, …; 0: nothing
    # Of backbones that are no ResNet.
    cfg.MODEL.BACKBONE.VARIANT = "swin_t"  # swin_t | swin_s | swin_b | swin_l; with timm, its name of a network
    cfg.MODEL.BACKBONE.OUT_FEATURES = ["res3", "res4", "res5"]  # the names stand for strides: res2 is 4, … res5 is 32
    cfg.MODEL.BACKBONE.DROP_PATH_RATE = 0.2  # stochastic depth of the last block, Swin and ViT
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.NORM = "FrozenBN"  # FrozenBN | BN | SyncBN | GN; training from scratch needs a live one
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.280, 103.530]
    cfg.MODEL.PIXEL_STD = [58.395, 57.120, 57.375]


def _add_mask_keys(detr: Any, node_type: type) -> None:
    """MODEL.MASK_ON, Detectron2's key, switches the mask head on; data sets then need masks."""
    detr.MASKS = masks = node_type()
    # Queries attend to the memory at the level of this one of DETR.IN_FEATURES; "": the last (stride 32 as published).
    masks.ATTENTION_FEATURE = ""
    # Three feature maps to upsample with, coarsest first; the backbone's OUT_FEATURES must have them. Masks have the
    # last one's stride.
    masks.IN_FEATURES = ["res4", "res3", "res2"]
    masks.MASK_WEIGHT = 1.0  # focal loss
    masks.DICE_WEIGHT = 1.0
    masks.FREEZE_DETECTOR = False  # train the mask head only, of a detector from MODEL.WEIGHTS
    detr.PANOPTIC = panoptic = node_type()
    # Give a panoptic segmentation too: for models of data sets in the panoptic format, whose things and stuff are
    # classes of one list.
    panoptic.ENABLED = False
    panoptic.NUM_THING_CLASSES = 0  # the first ones; 0: the data set's number. A number that disagrees is an error.
    panoptic.THING_CLASSES = []  # their contiguous ids, of data sets where they are not the first (Cityscapes)
    panoptic.SCORE_THRESH = 0.85  # a query takes part above it; sigmoid scores are lower than softmax ones
    panoptic.MIN_AREA = 4  # segments of at most so many pixels are dropped


def _add_recipe_keys(cfg: Any) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # ADAMW | SGD
    cfg.SOLVER.BASE_LR = 2e-4
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Learning-rate multiplier of sampling offsets and of the reference points' projection.
    cfg.SOLVER.SAMPLING_MULTIPLIER = 0.1
    # "full_model" clips the gradient norm over all parameters together, as the papers do; Detectron2's own
    # types ("value", "norm") clip parameter by parameter.
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0


def _add_input_keys(cfg: Any) -> None:
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.MAX_SIZE_TRAIN = 1333
    cfg.INPUT.MIN_SIZE_TEST = 800
    cfg.INPUT.MAX_SIZE_TEST = 1333
    # DETR's random crop: with probability 1/2, resize to one of RESIZE, crop sides drawn from SIZE, then the
    # usual resize. Detectron2's INPUT.CROP.ENABLED switches it.
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute_range"
    cfg.INPUT.CROP.SIZE = [384, 600]
    cfg.INPUT.CROP.RESIZE = [400, 500, 600]
    # Ground-truth boxes that leave no area inside their image: "error" names them before training;
    # "drop" leaves them out and warns with their count. NaN and infinite boxes are always an error.
    cfg.DATASETS.INVALID_BOXES = "error"
    # [(name, weight), …]: how often a pass has the images of a data set, 1 where it is not named. Detectron2 reads it
    # for WeightedTrainingSampler and WeightedCategoryTrainingSampler, and has no default for it.
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = []


def _add_callback_keys(cfg: Any, node_type: type) -> None:
    """Adds the keys of training callbacks, see docs/training.md. Metrics have the names in ``metrics.json``."""
    # Exponential moving average of the weights (torch's AveragedModel), updated after every iteration. It is evaluated
    # in their place, and is what model_final.pth, model_best.pth and, for MODEL.WEIGHTS, every checkpoint hold.
    cfg.SOLVER.EMA = ema = node_type()
    ema.ENABLED = False
    ema.DECAY = 0.999  # in (0, 1): the average's share of its next value
    # model_best.pth: the weights of the evaluation with the best METRIC so far, one every TEST.EVAL_PERIOD iterations.
    cfg.TEST.BEST_CHECKPOINT = best = node_type()
    best.ENABLED = False
    best.METRIC = "bbox/AP"  # with several of DATASETS.TEST, NAME/bbox/AP
    best.MODE = "max"  # max | min
    # End the training after PATIENCE evaluations that did not raise METRIC above its best by more than MIN_DELTA.
    cfg.TEST.EARLY_STOPPING = stopping = node_type()
    stopping.ENABLED = False
    stopping.METRIC = "bbox/AP"
    stopping.PATIENCE = 10
    stopping.MIN_DELTA = 0.0  # in the metric's unit, percent for AP


def things(cfg: Any) -> tuple[int, ...]:
    """The contiguous ids of the classes that are things, where the config says them; () where it does not."""
    keys = cfg.MODEL.DETR.PANOPTIC
    return tuple(keys.THING_CLASSES) or tuple(range(keys.NUM_THING_CLASSES))


def set_things(cfg: Any, classes: Sequence[int]) -> None:
    """Writes what `things` reads."""
    keys = cfg.MODEL.DETR.PANOPTIC
    keys.NUM_THING_CLASSES = len(classes)
    keys.THING_CLASSES = [] if list(classes) == list(range(len(classes))) else list(classes)
