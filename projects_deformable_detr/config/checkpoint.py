"""Options of loading and exporting checkpoints from a config."""

from pathlib import Path
from types import SimpleNamespace

from fvcore.common.config import CfgNode
from torch import nn

from ..checkpoint import LoadOptions, write_hugging_face
from .reading import naming_keys, read

_OPTIONS = {
    "allow_partial": "MODEL.DETR.ALLOW_PARTIAL_WEIGHTS",
    "keep_logits": "MODEL.DETR.KEEP_CLASS_LOGITS",
    "input_format": "INPUT.FORMAT",
}
# For the messages of a load.
_KEYS = _OPTIONS | {
    "weights": "MODEL.WEIGHTS",
    "num_classes": "MODEL.DETR.NUM_CLASSES",
    "mask_head": "MODEL.MASK_ON",
    "norm": "MODEL.RESNETS.NORM",
    "freeze_at": "MODEL.BACKBONE.FREEZE_AT",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "backbone": "MODEL.BACKBONE.NAME",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
}
_DETECTOR = {
    "num_classes": "MODEL.DETR.NUM_CLASSES",
    "num_queries": "MODEL.DETR.NUM_OBJECT_QUERIES",
    "in_features": "MODEL.DETR.IN_FEATURES",
    "num_levels": "MODEL.DETR.NUM_FEATURE_LEVELS",
    "d_model": "MODEL.DETR.HIDDEN_DIM",
    "num_heads": "MODEL.DETR.NHEADS",
    "dim_feedforward": "MODEL.DETR.DIM_FEEDFORWARD",
    "dropout": "MODEL.DETR.DROPOUT",
    "activation": "MODEL.DETR.ACTIVATION",
    "pre_norm": "MODEL.DETR.PRE_NORM",
    "encoder_layers": "MODEL.DETR.ENC_LAYERS",
    "decoder_layers": "MODEL.DETR.DEC_LAYERS",
    "encoder_points": "MODEL.DETR.ENC_N_POINTS",
    "decoder_points": "MODEL.DETR.DEC_N_POINTS",
    "multi_scale_attention": "MODEL.DETR.MULTI_SCALE_ATTENTION",
    "position_embedding": "MODEL.DETR.POSITION_EMBEDDING",
    "position_embedding_size": "MODEL.DETR.POSITION_EMBEDDING_SIZE",
    "box_refine": "MODEL.DETR.WITH_BOX_REFINE",
    "two_stage": "MODEL.DETR.TWO_STAGE",
    "mask_head": "MODEL.MASK_ON",
}
_CRITERION = {
    "focal_alpha": "MODEL.DETR.FOCAL_ALPHA",
    "no_object_weight": "MODEL.DETR.NO_OBJECT_WEIGHT",
    "cost_class": "MODEL.DETR.COST_CLASS",
    "cost_bbox": "MODEL.DETR.COST_BBOX",
    "cost_giou": "MODEL.DETR.COST_GIOU",
    "deep_supervision": "MODEL.DETR.DEEP_SUPERVISION",
}


def load_options(
    cfg: CfgNode, *, for_evaluation: bool = False, class_names: tuple[str, ...] | None = None
) -> LoadOptions:
    """Returns the options of loading ``MODEL.WEIGHTS``; for the arguments see `LoadOptions`."""
    return read(LoadOptions, cfg, _OPTIONS, for_evaluation=for_evaluation, class_names=class_names, config_keys=_KEYS)


def export_hugging_face(
    cfg: CfgNode, folder: str | Path, detector: nn.Module, class_names: tuple[str, ...] | None = None
) -> None:
    """Writes a detector of a config with `write_hugging_face`.

    Raises:
        UserError: for a model that transformers does not have; the message names the config key.
    """
    class_loss = "softmax" if getattr(detector, "no_object", False) else "focal"
    with naming_keys(_DETECTOR | {"class_loss": "MODEL.DETR.CLASS_LOSS"}):
        write_hugging_face(
            folder,
            detector,
            read(SimpleNamespace, cfg, _DETECTOR, class_loss=class_loss),
            read(SimpleNamespace, cfg, _CRITERION),
            resnet_depth=cfg.MODEL.RESNETS.DEPTH,
            image_size=(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            class_names=class_names,
        )
