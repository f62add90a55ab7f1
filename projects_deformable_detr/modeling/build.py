"""The detector and its criterion from a config, without any engine."""

from typing import Any

from torch import nn

from ..errors import UserError
from .backbone import build_resnet
from .classification import FocalClassification
from .criterion import SetCriterion
from .decoder import Decoder, DecoderLayer
from .detector import DeformableDetector
from .encoder import Encoder, EncoderLayer
from .heads import BoxHead, make_class_head
from .matcher import HungarianMatcher
from .neck import Tokenizer
from .queries import LearnedQueries, ProposalQueries

# Boxes start at sigmoid(-2) = 12 % of the image, except where a proposal gives their size.
_SIZE_BIAS = -2.0

_AT_LEAST_1 = (
    "HIDDEN_DIM",
    "NHEADS",
    "DIM_FEEDFORWARD",
    "NUM_OBJECT_QUERIES",
    "ENC_N_POINTS",
    "DEC_N_POINTS",
    "DEC_LAYERS",
    "NUM_FEATURE_LEVELS",
)


def build_detector(cfg: Any, backbone: nn.Module | None = None) -> DeformableDetector:
    """The detector that ``cfg.MODEL`` describes; called as ``detector(images, padding_mask)``.

    Args:
        cfg: a config of either engine, with ``MODEL.DETR.NUM_CLASSES`` set.
        backbone: a module that maps images (N, 3, H, W) to feature maps by name, with an ``output_shape()`` that
            tells their channels; by default the ResNet of ``cfg.MODEL.RESNETS``.

    Raises:
        UserError: for values that make no model; it names the key.
    """
    detr = cfg.MODEL.DETR
    _check(detr)
    backbone = build_resnet(cfg) if backbone is None else backbone
    tokenizer = Tokenizer(_in_channels(backbone, detr.IN_FEATURES), detr.HIDDEN_DIM, detr.NUM_FEATURE_LEVELS)
    return DeformableDetector(backbone, tokenizer, _build_encoder(detr), _build_queries(detr), _build_decoder(detr))


def _check(detr: Any) -> None:
    if detr.NUM_CLASSES < 1:
        raise UserError(
            "MODEL.DETR.NUM_CLASSES is not set: set it to the data set's number of categories (the engines "
            "take it from DATASETS.TRAIN)"
        )
    if detr.TWO_STAGE and not detr.WITH_BOX_REFINE:
        raise UserError("MODEL.DETR.TWO_STAGE True needs MODEL.DETR.WITH_BOX_REFINE True: proposals are refined")
    if detr.WITH_BOX_REFINE and not detr.DEEP_SUPERVISION and detr.DEC_LAYERS > 1:
        # Boxes go from layer to layer without gradient (arXiv 2010.04159, A.4).
        raise UserError(
            "MODEL.DETR.WITH_BOX_REFINE True needs MODEL.DETR.DEEP_SUPERVISION True: nothing else trains the heads of "
            "the earlier decoder layers"
        )
    for key in _AT_LEAST_1:
        if detr[key] < 1:
            raise UserError(f"MODEL.DETR.{key} must be at least 1, got {detr[key]}")
    if detr.HIDDEN_DIM % detr.NHEADS or detr.HIDDEN_DIM % 32:
        raise UserError(
            f"MODEL.DETR.HIDDEN_DIM {detr.HIDDEN_DIM} must be a multiple of NHEADS {detr.NHEADS} and of the 32 "
            "groups of the norm"
        )


def _in_channels(backbone: nn.Module, wanted: list[str]) -> dict[str, int]:
    shapes: dict[str, Any] = backbone.output_shape()  # type: ignore[operator]  # Detectron2's protocol, not nn.Module's
    missing = [name for name in wanted if name not in shapes]
    if missing or not wanted:
        raise UserError(
            f"MODEL.DETR.IN_FEATURES {list(wanted)}: the backbone gives {list(shapes)}; name at least one of "
            "these and no other"
        )
    return {name: shapes[name].channels for name in wanted}


def _layer_arguments(detr: Any, points: int) -> dict[str, Any]:
    return {
        "channels": detr.HIDDEN_DIM,
        "heads": detr.NHEADS,
        "levels": detr.NUM_FEATURE_LEVELS,
        "points": points,
        "hidden": detr.DIM_FEEDFORWARD,
        "dropout": detr.DROPOUT,
        "activation": detr.ACTIVATION,
    }


def _build_encoder(detr: Any) -> Encoder:
    layers = [EncoderLayer(**_layer_arguments(detr, detr.ENC_N_POINTS)) for _ in range(detr.ENC_LAYERS)]
    _xavier(layers)
    return Encoder(layers, recompute=detr.ACTIVATION_CHECKPOINTING)


def _build_queries(detr: Any) -> nn.Module:
    if not detr.TWO_STAGE:
        return LearnedQueries(detr.NUM_OBJECT_QUERIES, detr.HIDDEN_DIM)
    class_head = make_class_head(detr.HIDDEN_DIM, detr.NUM_CLASSES)
    return ProposalQueries(detr.NUM_OBJECT_QUERIES, detr.HIDDEN_DIM, class_head, BoxHead(detr.HIDDEN_DIM))


def _build_decoder(detr: Any) -> Decoder:
    layers = [DecoderLayer(**_layer_arguments(detr, detr.DEC_N_POINTS)) for _ in range(detr.DEC_LAYERS)]
    _xavier(layers)
    # One head for all layers, or, with refinement, one for each: only the first then starts from a bare point.
    heads = detr.DEC_LAYERS if detr.WITH_BOX_REFINE else 1
    class_heads = [make_class_head(detr.HIDDEN_DIM, detr.NUM_CLASSES) for _ in range(heads)]
    biases = [0.0 if detr.TWO_STAGE or index > 0 else _SIZE_BIAS for index in range(heads)]
    box_heads = [BoxHead(detr.HIDDEN_DIM, bias) for bias in biases]
    return Decoder(layers, class_heads, box_heads, refine=detr.WITH_BOX_REFINE)


def _xavier(layers: list[Any]) -> None:
    """Xavier-uniform matrices, as DETR initialises its transformer; the sampling modules keep their own start."""
    for layer in layers:
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in layer.modules():
            if hasattr(module, "sampling_offsets"):
                module.reset_parameters()


def build_criterion(cfg: Any) -> SetCriterion:
    """The criterion that ``cfg.MODEL.DETR`` describes: ``criterion(predictions, targets)`` gives weighted losses."""
    detr = cfg.MODEL.DETR
    classification = FocalClassification(detr.FOCAL_ALPHA, detr.FOCAL_GAMMA)
    matcher = HungarianMatcher(classification, detr.COST_CLASS, detr.COST_BBOX, detr.COST_GIOU)
    weights = {"loss_ce": detr.CLASS_WEIGHT, "loss_bbox": detr.L1_WEIGHT, "loss_giou": detr.GIOU_WEIGHT}
    return SetCriterion(matcher, classification, weights, detr.DEEP_SUPERVISION)
