"""Config keys of the project, in addition to those of an engine.

Keys of the original DETR's Detectron2 wrapper keep their names and meanings.
"""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from ..engine import choose_engine, default_cfg
from ..errors import Annotation, Range, UserError
from .reading import get

# Ranges of keys whose values are not passed to a dataclass unchanged. Only Detectron2 reads the last four.
OTHER_RANGES = {
    "MODEL.DETR.NUM_CLASSES": Annotation(Range(0)),
    "MODEL.DETR.PANOPTIC.NUM_THING_CLASSES": Annotation(Range(0)),
    "MODEL.DETR.PANOPTIC.THING_CLASSES": Annotation(Range(0), is_sequence=True),
    "INPUT.MIN_SIZE_TEST": Annotation(Range(0)),
    "SOLVER.NUM_DECAYS": Annotation(Range(1)),
    "SOLVER.REFERENCE_WORLD_SIZE": Annotation(Range(0)),
    "TEST.PRECISE_BN.NUM_ITER": Annotation(Range(1)),
    "VIS_PERIOD": Annotation(Range(0)),
}

# Sections for Detectron2's own models, which have no effect on the models of this project.
SECTIONS_WITHOUT_EFFECT = (
    "MODEL.ANCHOR_GENERATOR",
    "MODEL.PANOPTIC_FPN",
    "MODEL.PROPOSAL_GENERATOR",
    "MODEL.RETINANET",
    "MODEL.ROI_BOX_CASCADE_HEAD",
    "MODEL.ROI_BOX_HEAD",
    "MODEL.ROI_HEADS",
    "MODEL.ROI_KEYPOINT_HEAD",
    "MODEL.ROI_MASK_HEAD",
    "MODEL.RPN",
    "MODEL.SEM_SEG_HEAD",
)


def get_cfg(engine: str = "auto") -> CfgNode:
    """Returns a new config with the default values of an engine and of the project's keys.

    Args:
        engine: ``"detectron2"``, ``"standalone"``, or ``"auto"`` for Detectron2 if it is installed.

    Raises:
        UserError: for an unknown name, or ``"detectron2"`` if it is not installed.
    """
    cfg: CfgNode = default_cfg(choose_engine(engine).name)
    add_deformable_detr_config(cfg)
    return cfg


def add_deformable_detr_config(cfg: CfgNode) -> None:
    """Adds the keys of the project to a config of either engine in place. Idempotent."""
    node_type = type(cfg)
    _add_model_keys(cfg, node_type)
    _add_recipe_keys(cfg)
    _add_input_keys(cfg)
    _add_callback_keys(cfg, node_type)


def _add_model_keys(cfg: CfgNode, node_type: type[CfgNode]) -> None:
    cfg.MODEL.META_ARCHITECTURE = "DeformableDETR"
    cfg.MODEL.DETR = detr = node_type()
    # 0: the number of categories in the data sets. Other values must equal it.
    detr.NUM_CLASSES = 0
    detr.NUM_OBJECT_QUERIES = 300

    # Features of the backbone, highest resolution first; further levels are computed by 3x3 convolutions of stride 2.
    detr.IN_FEATURES = ["res3", "res4", "res5"]
    detr.NUM_FEATURE_LEVELS = 4

    # Transformer.
    detr.HIDDEN_DIM = 256
    detr.NHEADS = 8
    detr.ENC_LAYERS = 6
    detr.DEC_LAYERS = 6  # 0: encoder-only detector, the first stage of two-stage Deformable DETR
    detr.DIM_FEEDFORWARD = 1024
    detr.DROPOUT = 0.1
    detr.ACTIVATION = "relu"  # relu | gelu
    detr.PRE_NORM = False  # layer norms before attention and feed-forward network; DETR only
    detr.POSITION_EMBEDDING = "sine"  # sine | learned
    detr.POSITION_EMBEDDING_SIZE = 50  # learned: maximum rows and columns of a feature map
    detr.ENC_N_POINTS = 4  # sampled points per head, level and query (K of the paper)
    detr.DEC_N_POINTS = 4
    # False: encoder tokens sample only their own level (arXiv 2010.04159, table 2, "MS attention"). The decoder always
    # samples all levels, because the paper does not define the level of an object query.
    detr.MULTI_SCALE_ATTENTION = True
    detr.WITH_BOX_REFINE = False
    detr.TWO_STAGE = False  # NUM_OBJECT_QUERIES proposals; requires WITH_BOX_REFINE
    # Recompute encoder layers in the backward pass: less memory, slower steps.
    detr.ACTIVATION_CHECKPOINTING = False
    # Whether predictions are independent of the padding of the batch. never: as in the official code.
    detr.MASK_PADDING = "inference"  # inference | always (also in training; ResNet only) | never

    # Matching cost and loss. auto: softmax with a no-object class in DETR, focal in Deformable DETR.
    detr.CLASS_LOSS = "auto"  # auto | softmax | focal
    detr.NO_OBJECT_WEIGHT = 0.1  # weight of queries without an object, softmax only
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

    # Minimum score of a detection; 0: the best TEST.DETECTIONS_PER_IMAGE, as required for evaluation.
    detr.SCORE_THRESH_TEST = 0.0
    # IoU threshold of the NMS that merges detections of test-time augmentation (TEST.AUG).
    detr.TTA_NMS_THRESH = 0.7

    # Load only those weights of MODEL.WEIGHTS that match the model; False: a mismatch is an error.
    detr.ALLOW_PARTIAL_WEIGHTS = False
    # Load class heads unchanged instead of mapping them to the classes of the data set by name.
    detr.KEEP_CLASS_LOGITS = False

    # build_deformable_detr_{resnet,swin,timm}_backbone, or _fpn_backbone with the pyramid of MODEL.FPN; in the
    # Detectron2 engine, any registered backbone.
    cfg.MODEL.BACKBONE.NAME = "build_deformable_detr_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2  # 1: stem (Swin: patch embedding), 2: also res2, …; 0: none
    # Backbones other than ResNet.
    cfg.MODEL.BACKBONE.VARIANT = "swin_t"  # swin_t | swin_s | swin_b | swin_l; a model name of timm
    cfg.MODEL.BACKBONE.OUT_FEATURES = ["res3", "res4", "res5"]  # strides 4 (res2) to 32 (res5)
    cfg.MODEL.BACKBONE.DROP_PATH_RATE = 0.2  # stochastic depth of the last block, Swin and ViT
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.NORM = "FrozenBN"  # FrozenBN | BN | SyncBN | GN; FrozenBN requires pretrained weights
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.280, 103.530]
    cfg.MODEL.PIXEL_STD = [58.395, 57.120, 57.375]


def _add_mask_keys(detr: CfgNode, node_type: type[CfgNode]) -> None:
    """Adds the keys of the mask head, which Detectron2's ``MODEL.MASK_ON`` enables."""
    detr.MASKS = masks = node_type()
    # Element of DETR.IN_FEATURES to whose level queries attend; "": the last.
    masks.ATTENTION_FEATURE = ""
    # Three features of the backbone, lowest resolution first. Masks have the stride of the last.
    masks.IN_FEATURES = ["res4", "res3", "res2"]
    masks.MASK_WEIGHT = 1.0  # focal loss
    masks.DICE_WEIGHT = 1.0
    masks.FREEZE_DETECTOR = False  # train only the mask head, with a detector from MODEL.WEIGHTS
    detr.PANOPTIC = panoptic = node_type()
    # Compute panoptic segmentations. Things and stuff are classes of the same class head.
    panoptic.ENABLED = False
    panoptic.NUM_THING_CLASSES = 0  # the first classes are things; 0: the number in the data set
    panoptic.THING_CLASSES = []  # contiguous ids, if things are not the first classes (Cityscapes)
    panoptic.SCORE_THRESH = 0.85  # minimum score; sigmoid scores are lower than softmax scores
    panoptic.MIN_AREA = 4  # segments of at most this many pixels are dropped


def _add_recipe_keys(cfg: CfgNode) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # ADAMW | SGD
    # Micro-batches of each process's batch, computed one after the other, with the result of the whole batch. The
    # standalone engine also divides evaluation batches by it.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Distributed training: ddp | fsdp (shards parameters and optimizer state; standalone engine only).
    cfg.SOLVER.STRATEGY = "ddp"
    cfg.SOLVER.BASE_LR = 2e-4
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Learning-rate multiplier of sampling offsets and the projection to reference points.
    cfg.SOLVER.SAMPLING_MULTIPLIER = 0.1
    # Number of periodic checkpoints to keep; 0: all. model_final.pth and model_best.pth are always kept.
    cfg.SOLVER.CHECKPOINT_KEEP = 5
    # full_model clips the norm over all parameters, as in the papers; Detectron2's value and norm clip each parameter.
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0


def _add_input_keys(cfg: CfgNode) -> None:
    cfg.INPUT.FORMAT = "RGB"
    # Gray values of 16 bits, 32 bits or floats that are mapped to 0 and 255; (): the range of the type.
    cfg.INPUT.INTENSITY_WINDOW = ()
    # Apply the EXIF orientation; False for annotations in the coordinates of the stored pixels.
    cfg.INPUT.EXIF_ORIENTATION = True
    cfg.INPUT.MIN_SIZE_TRAIN = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.MAX_SIZE_TRAIN = 1333
    cfg.INPUT.MIN_SIZE_TEST = 800
    cfg.INPUT.MAX_SIZE_TEST = 1333
    # Random crop of DETR: with probability 1/2, resize to one of RESIZE and crop to a size sampled from SIZE, before
    # the final resize.
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute_range"
    cfg.INPUT.CROP.SIZE = [384, 600]
    cfg.INPUT.CROP.RESIZE = [400, 500, 600]
    # Data sets in COCO format to register, [NAME, JSON, IMAGE_ROOT] each; --register adds to them.
    cfg.DATASETS.REGISTER = []
    # Ground-truth boxes without area inside their image: error | drop (with a warning) | drop_many (even more than
    # 20%). See docs/data.md.
    cfg.DATASETS.INVALID_BOXES = "error"
    cfg.DATASETS.DROP_ROOT_CATEGORY = False  # drop the unused root category that Roboflow adds
    # Image files checked before training: auto (2,000 images of each data set) | all | pixels (decode all) | none.
    cfg.DATASETS.CHECK_IMAGES = "auto"
    cfg.DATASETS.UNREADABLE_IMAGES = "error"  # error | skip (with a warning)
    # [(name, weight), …]: repeat factors of the images of a data set, 1 by default, for WeightedTrainingSampler and
    # WeightedCategoryTrainingSampler. Detectron2 reads this key, but does not define it.
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = []


def _add_callback_keys(cfg: CfgNode, node_type: type[CfgNode]) -> None:
    """Adds the keys of training callbacks, see docs/training.md. Names of metrics are those in ``metrics.json``."""
    # Exponential moving average of the weights (torch's AveragedModel), updated after every iteration and used for
    # evaluation and saving; checkpoints also contain the trained weights.
    cfg.SOLVER.EMA = ema = node_type()
    ema.ENABLED = False
    ema.DECAY = 0.999  # in (0, 1): weight of the previous average in an update
    # Number of evaluation images whose negative entropy of the decoder's cross-attention is logged (docs/explain.md).
    cfg.TEST.ATTENTION_ENTROPY = 0
    # model_best.pth: weights with the best METRIC of all evaluations, which run every TEST.EVAL_PERIOD iterations.
    cfg.TEST.BEST_CHECKPOINT = best = node_type()
    best.ENABLED = False
    best.METRIC = "bbox/AP"  # NAME/bbox/AP with several data sets in DATASETS.TEST
    best.MODE = "max"  # max | min
    # Stop the training if METRIC does not exceed its best by MIN_DELTA in PATIENCE consecutive evaluations.
    cfg.TEST.EARLY_STOPPING = stopping = node_type()
    stopping.ENABLED = False
    stopping.METRIC = "bbox/AP"
    stopping.PATIENCE = 10
    stopping.MIN_DELTA = 0.0  # in the unit of the metric, percent for AP


def check_other_ranges(cfg: CfgNode) -> None:
    """Raises `UserError` for values outside the ranges in `OTHER_RANGES`; keys that the engine lacks are skipped."""
    for key, annotation in OTHER_RANGES.items():
        try:
            value = get(cfg, key)
        except KeyError:
            continue
        if problem := annotation.problem(value):
            raise UserError(f"{key} {problem}")


def thing_classes(cfg: CfgNode) -> tuple[int, ...]:
    """Returns the contiguous ids of the thing classes in a config, or () if there are none."""
    keys = cfg.MODEL.DETR.PANOPTIC
    return tuple(keys.THING_CLASSES) or tuple(range(keys.NUM_THING_CLASSES))


def set_thing_classes(cfg: CfgNode, classes: Sequence[int]) -> None:
    """Sets the thing classes in a config; inverse of `thing_classes`."""
    keys = cfg.MODEL.DETR.PANOPTIC
    keys.NUM_THING_CLASSES = len(classes)
    keys.THING_CLASSES = [] if list(classes) == list(range(len(classes))) else list(classes)
