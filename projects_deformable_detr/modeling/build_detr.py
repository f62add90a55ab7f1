"""DETR's parts from ``cfg.MODEL.DETR``."""

from typing import Any

from torch import nn

from ..errors import UserError
from .detector import Detector
from .heads import BoxHead, make_class_head
from .neck import Tokenizer
from .position_encoding import build_position_embedding
from .queries import PositionQueries
from .transformer import TransformerDecoder, TransformerDecoderLayer, TransformerEncoder, TransformerEncoderLayer


def build_detr(
    detr: Any, backbone: nn.Module, in_channels: dict[str, int], no_object: bool, mask_head: nn.Module | None
) -> Detector:
    """The detector (arXiv 2005.12872) with a backbone whose feature is ``in_channels``; UserError names a bad key."""
    _check(detr)
    channels = detr.HIDDEN_DIM
    # One level, named by its own convolution: no norm, no embedding of the level.
    position_embedding = build_position_embedding(detr, centred=False)
    tokenizer = Tokenizer(in_channels, channels, 1, position_embedding, norm=False, level_embed=False)
    arguments = {
        "channels": channels,
        "heads": detr.NHEADS,
        "hidden": detr.DIM_FEEDFORWARD,
        "dropout": detr.DROPOUT,
        "activation": detr.ACTIVATION,
        "pre_norm": detr.PRE_NORM,
    }
    encoder = TransformerEncoder(
        [TransformerEncoderLayer(**arguments) for _ in range(detr.ENC_LAYERS)],
        nn.LayerNorm(channels) if detr.PRE_NORM else None,
        recompute=detr.ACTIVATION_CHECKPOINTING,
    )
    decoder = TransformerDecoder(
        [TransformerDecoderLayer(**arguments) for _ in range(detr.DEC_LAYERS)],
        make_class_head(channels, detr.NUM_CLASSES, no_object=no_object),
        BoxHead(channels, size_bias=None),
    )
    for parameter in [*encoder.parameters(), *decoder.layers.parameters()]:
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    queries = PositionQueries(detr.NUM_OBJECT_QUERIES, channels)
    freeze = detr.MASKS.FREEZE_DETECTOR
    return Detector(backbone, tokenizer, encoder, queries, decoder, no_object, mask_head, freeze)


def _check(detr: Any) -> None:
    if len(detr.IN_FEATURES) != 1 or detr.NUM_FEATURE_LEVELS != 1:
        raise UserError(
            f"MODEL.META_ARCHITECTURE DETR sees one feature map: MODEL.DETR.IN_FEATURES {list(detr.IN_FEATURES)} must "
            f"name one and NUM_FEATURE_LEVELS {detr.NUM_FEATURE_LEVELS} must be 1"
        )
    for key in ("WITH_BOX_REFINE", "TWO_STAGE"):
        if detr[key]:
            raise UserError(f"MODEL.DETR.{key} True is Deformable DETR's: set it to False for DETR")
    if detr.DEC_LAYERS < 1:
        raise UserError("MODEL.DETR.DEC_LAYERS must be at least 1 for DETR: only its decoder tells boxes")
    if detr.HIDDEN_DIM % 4:
        raise UserError(f"MODEL.DETR.HIDDEN_DIM {detr.HIDDEN_DIM} must be a multiple of 4 for the sine embedding")
