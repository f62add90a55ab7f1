"""Deformable DETR's parts from ``cfg.MODEL.DETR``."""

from typing import Any

from torch import nn

from ..errors import UserError
from .decoder import Decoder, DecoderLayer
from .detector import Detector
from .encoder import Encoder, EncoderLayer
from .heads import BoxHead, make_class_head
from .neck import Tokenizer
from .position_encoding import build_position_embedding
from .queries import EncoderDetections, LearnedQueries, ProposalQueries

# Boxes start at sigmoid(-2) = 12 % of the image, except where a proposal gives their size.
_SIZE_BIAS = -2.0


def build_deformable_detr(
    detr: Any, backbone: nn.Module, in_channels: dict[str, int], no_object: bool, mask_head: nn.Module | None
) -> Detector:
    """The detector (arXiv 2010.04159) with a backbone whose features are ``in_channels``; UserError names a bad key."""
    _check(detr)
    position_embedding = build_position_embedding(detr, centred=True)
    tokenizer = Tokenizer(in_channels, detr.HIDDEN_DIM, detr.NUM_FEATURE_LEVELS, position_embedding)
    encoder = _build_encoder(detr)
    if detr.DEC_LAYERS == 0:
        class_head = make_class_head(detr.HIDDEN_DIM, detr.NUM_CLASSES)
        detections = EncoderDetections(detr.HIDDEN_DIM, class_head, BoxHead(detr.HIDDEN_DIM))
        return Detector(backbone, tokenizer, encoder, detections, None)
    queries, decoder = _build_queries(detr), _build_decoder(detr, no_object)
    freeze = detr.MASKS.FREEZE_DETECTOR
    return Detector(backbone, tokenizer, encoder, queries, decoder, no_object, mask_head, freeze)


def _check(detr: Any) -> None:
    if detr.TWO_STAGE and not detr.WITH_BOX_REFINE:
        raise UserError("MODEL.DETR.TWO_STAGE True needs MODEL.DETR.WITH_BOX_REFINE True: proposals are refined")
    if detr.DEC_LAYERS == 0 and (detr.TWO_STAGE or detr.WITH_BOX_REFINE):
        raise UserError(
            "MODEL.DETR.DEC_LAYERS 0 is the encoder-only detector: it has nothing to refine, so set TWO_STAGE and "
            "WITH_BOX_REFINE to False, or DEC_LAYERS to at least 1"
        )
    if detr.WITH_BOX_REFINE and not detr.DEEP_SUPERVISION and detr.DEC_LAYERS > 1:
        # Boxes go from layer to layer without gradient (arXiv 2010.04159, A.4).
        raise UserError(
            "MODEL.DETR.WITH_BOX_REFINE True needs MODEL.DETR.DEEP_SUPERVISION True: nothing else trains the heads of "
            "the earlier decoder layers"
        )
    if detr.PRE_NORM:
        raise UserError("MODEL.DETR.PRE_NORM True is DETR's: Deformable DETR has its norms after each part")
    if detr.HIDDEN_DIM % 32:
        raise UserError(
            f"MODEL.DETR.HIDDEN_DIM {detr.HIDDEN_DIM} must be a multiple of the 32 groups of the projections' norm"
        )


def _build_encoder(detr: Any) -> Encoder:
    return make_encoder(
        detr.ENC_LAYERS,
        **_layer_arguments(detr),
        points=detr.ENC_N_POINTS,
        multi_scale=detr.MULTI_SCALE_ATTENTION,
        recompute=detr.ACTIVATION_CHECKPOINTING,
    )


def _build_queries(detr: Any) -> nn.Module:
    if not detr.TWO_STAGE:
        return LearnedQueries(detr.NUM_OBJECT_QUERIES, detr.HIDDEN_DIM)
    class_head = make_class_head(detr.HIDDEN_DIM, detr.NUM_CLASSES)
    return ProposalQueries(detr.NUM_OBJECT_QUERIES, detr.HIDDEN_DIM, class_head, BoxHead(detr.HIDDEN_DIM))


def _build_decoder(detr: Any, no_object: bool) -> Decoder:
    return make_decoder(
        detr.DEC_LAYERS,
        detr.NUM_CLASSES,
        **_layer_arguments(detr),
        points=detr.DEC_N_POINTS,
        refine=detr.WITH_BOX_REFINE,
        proposals=detr.TWO_STAGE,
        no_object=no_object,
    )


def _layer_arguments(detr: Any) -> dict[str, Any]:
    return {
        "channels": detr.HIDDEN_DIM,
        "heads": detr.NHEADS,
        "levels": detr.NUM_FEATURE_LEVELS,
        "hidden": detr.DIM_FEEDFORWARD,
        "dropout": detr.DROPOUT,
        "activation": detr.ACTIVATION,
    }


def make_encoder(
    num_layers: int = 6,
    *,
    channels: int = 256,
    heads: int = 8,
    levels: int = 4,
    points: int = 4,
    hidden: int = 1024,
    dropout: float = 0.1,
    activation: str = "relu",
    multi_scale: bool = True,
    recompute: bool = False,
) -> Encoder:
    """The encoder with its initial weights; arguments as in `EncoderLayer` and `Encoder`."""
    layers = [
        EncoderLayer(channels, heads, levels, points, hidden, dropout, activation, multi_scale)
        for _ in range(num_layers)
    ]
    _xavier(layers)
    return Encoder(layers, recompute)


def make_decoder(
    num_layers: int = 6,
    num_classes: int = 80,
    *,
    channels: int = 256,
    heads: int = 8,
    levels: int = 4,
    points: int = 4,
    hidden: int = 1024,
    dropout: float = 0.1,
    activation: str = "relu",
    refine: bool = False,
    proposals: bool = False,
    no_object: bool = False,
) -> Decoder:
    """The decoder and its heads with their initial weights.

    Args:
        num_layers: 1 or more.
        num_classes: of the class heads, which have one logit more with ``no_object``.
        channels, heads, levels, points, hidden, dropout, activation: as in `EncoderLayer`.
        refine: as in `Decoder`; each layer then has heads of its own.
        proposals: the queries come with boxes (two-stage), which the first layer leaves as they are at the start.
        no_object: softmax classification.
    """
    layers = [DecoderLayer(channels, heads, levels, points, hidden, dropout, activation) for _ in range(num_layers)]
    _xavier(layers)
    # One head for all layers, or, with refinement, one for each: only the first then starts from a bare point.
    count = num_layers if refine else 1
    class_heads = [make_class_head(channels, num_classes, no_object=no_object) for _ in range(count)]
    box_heads = [BoxHead(channels, 0.0 if proposals or index > 0 else _SIZE_BIAS) for index in range(count)]
    return Decoder(layers, class_heads, box_heads, refine)


def _xavier(layers: list[Any]) -> None:
    """Xavier-uniform matrices, as DETR initialises its transformer; the sampling modules keep their own start."""
    for layer in layers:
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in layer.modules():
            if hasattr(module, "sampling_offsets"):
                module.reset_parameters()
