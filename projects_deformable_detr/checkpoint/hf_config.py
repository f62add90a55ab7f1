"""The configs that transformers wants beside a detector's weights, from ours."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from .files import CheckpointError

_RESNETS = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
}
_STAGES = ("res2", "res3", "res4", "res5")
# Their names to ours below MODEL.DETR, for equal values; two of theirs may be one of ours.
NAMES = {
    "num_queries": "NUM_OBJECT_QUERIES",
    "d_model": "HIDDEN_DIM",
    "encoder_layers": "ENC_LAYERS",
    "decoder_layers": "DEC_LAYERS",
    "encoder_attention_heads": "NHEADS",
    "decoder_attention_heads": "NHEADS",
    "encoder_ffn_dim": "DIM_FEEDFORWARD",
    "decoder_ffn_dim": "DIM_FEEDFORWARD",
    "activation_function": "ACTIVATION",
    "dropout": "DROPOUT",
    "position_embedding_type": "POSITION_EMBEDDING",
}
COSTS = {"class_cost": "COST_CLASS", "bbox_cost": "COST_BBOX", "giou_cost": "COST_GIOU"}
DEFORMABLE_NAMES = {
    "auxiliary_loss": "DEEP_SUPERVISION",
    "num_feature_levels": "NUM_FEATURE_LEVELS",
    "encoder_n_points": "ENC_N_POINTS",
    "decoder_n_points": "DEC_N_POINTS",
    "with_box_refine": "WITH_BOX_REFINE",
    "two_stage": "TWO_STAGE",
    "two_stage_num_proposals": "NUM_OBJECT_QUERIES",
    "focal_alpha": "FOCAL_ALPHA",
}
DETR_NAMES = {"eos_coefficient": "NO_OBJECT_WEIGHT"}


def make(cfg: Any, detector: nn.Module, names: Sequence[str] | None) -> dict[str, Any]:
    """``config.json`` of ``DetrForObjectDetection``, ``DetrForSegmentation`` or ``DeformableDetrForObjectDetection``.

    Raises:
        CheckpointError: naming the key of ours that transformers has no match for.
    """
    detr = cfg.MODEL.DETR
    masks = getattr(detector, "mask_head", None) is not None
    labels = list(names) if names else [f"LABEL_{index}" for index in range(detr.NUM_CLASSES)]
    config = {
        "backbone_config": _backbone(cfg, masks),
        **{name: detr[key] for name, key in NAMES.items()},
        **_costs(detr),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    return config | (
        _deformable(detr, masks) if cfg.MODEL.META_ARCHITECTURE == "DeformableDETR" else _detr(detr, detector, masks)
    )


def _costs(detr: Any) -> dict[str, int]:
    """Of matching, for training only: transformers wants whole numbers, and keeps its own for others."""
    costs = {name: detr[key] for name, key in COSTS.items()}
    return {name: int(cost) for name, cost in costs.items() if cost == int(cost)}


def _deformable(detr: Any, masks: bool) -> dict[str, Any]:
    if masks:
        raise CheckpointError("transformers has no Deformable DETR with masks")
    if not detr.MULTI_SCALE_ATTENTION:
        raise CheckpointError("MODEL.DETR.MULTI_SCALE_ATTENTION False has no match in transformers")
    return {
        "architectures": ["DeformableDetrForObjectDetection"],
        "model_type": "deformable_detr",
        **{name: detr[key] for name, key in DEFORMABLE_NAMES.items()},
    }


def _detr(detr: Any, detector: nn.Module, masks: bool) -> dict[str, Any]:
    if detr.PRE_NORM:
        raise CheckpointError("MODEL.DETR.PRE_NORM True has no match in transformers")
    if detr.POSITION_EMBEDDING == "learned" and detr.POSITION_EMBEDDING_SIZE != 50:
        raise CheckpointError(f"MODEL.DETR.POSITION_EMBEDDING_SIZE {detr.POSITION_EMBEDDING_SIZE}: transformers has 50")
    if not getattr(detector, "no_object", False):
        raise CheckpointError("MODEL.DETR.CLASS_LOSS focal has no match in transformers' DETR, which is softmax")
    return {
        "architectures": ["DetrForSegmentation" if masks else "DetrForObjectDetection"],
        "model_type": "detr",
        # True makes the decoder of transformers (5.23) pass each layer's norm on to the next layer: other results.
        "auxiliary_loss": False,
        **{name: detr[key] for name, key in DETR_NAMES.items()},
    }


def _backbone(cfg: Any, masks: bool) -> dict[str, Any]:
    resnets = cfg.MODEL.RESNETS
    features = _STAGES if masks else cfg.MODEL.DETR.IN_FEATURES  # the mask head reads the finer ones
    if resnets.RES5_DILATION != 1:
        return _timm_backbone(resnets, features)
    layer_type, depths = _RESNETS[resnets.DEPTH]
    expansion = 4 if layer_type == "bottleneck" else 1
    # Detectron2's default of 256 stands for the paper's width at every depth.
    width = 64 * expansion if resnets.RES2_OUT_CHANNELS == 256 else resnets.RES2_OUT_CHANNELS
    return {
        "model_type": "resnet",
        "layer_type": layer_type,
        "depths": depths,
        "embedding_size": resnets.STEM_OUT_CHANNELS,
        "hidden_sizes": [width * 2**stage for stage in range(4)],
        "downsample_in_bottleneck": False,  # strides in the 3x3, as torchvision's
        "out_features": [f"stage{_STAGES.index(name) + 1}" for name in features],
    }


def _timm_backbone(resnets: Any, features: Sequence[str]) -> dict[str, Any]:
    """Dilation, which transformers has with timm's ResNets only: of the paper's widths."""
    width = 64 * (4 if resnets.DEPTH >= 50 else 1)
    if resnets.STEM_OUT_CHANNELS != 64 or resnets.RES2_OUT_CHANNELS not in (256, width):
        raise CheckpointError("MODEL.RESNETS.RES5_DILATION 2 in transformers needs the paper's widths of the ResNet")
    return {
        "model_type": "timm_backbone",
        "backbone": f"resnet{resnets.DEPTH}",
        "num_channels": 3,
        "features_only": True,
        "use_pretrained_backbone": False,
        "out_indices": [_STAGES.index(name) + 1 for name in features],
        "output_stride": 16,
    }


def make_processor(cfg: Any, deformable: bool) -> dict[str, Any]:
    """``preprocessor_config.json``: sizes in pixels, means and deviations of images in [0, 1]."""
    return {
        "image_processor_type": "DeformableDetrImageProcessor" if deformable else "DetrImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "do_pad": True,
    }
