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
    encoder = make_transformer_encoder(detr.ENC_LAYERS, **arguments, recompute=detr.ACTIVATION_CHECKPOINTING)
    decoder = make_transformer_decoder(detr.DEC_LAYERS, detr.NUM_CLASSES, **arguments, no_object=no_object)
    queries = PositionQueries(detr.NUM_OBJECT_QUERIES, channels)
    freeze = detr.MASKS.FREEZE_DETECTOR
    return Detector(backbone, tokenizer, encoder, queries, decoder, no_object, mask_head, freeze)


def make_transformer_encoder(
    num_layers: int = 6,
    *,
    channels: int = 256,
    heads: int = 8,
    hidden: int = 2048,
    dropout: float = 0.1,
    activation: str = "relu",
    pre_norm: bool = False,
    recompute: bool = False,
) -> TransformerEncoder:
    """DETR's encoder with its initial weights; arguments as in `TransformerEncoderLayer` and `TransformerEncoder`."""
    encoder = TransformerEncoder(
        [TransformerEncoderLayer(channels, heads, hidden, dropout, activation, pre_norm) for _ in range(num_layers)],
        nn.LayerNorm(channels) if pre_norm else None,
        recompute,
    )
    _xavier(encoder)
    return encoder


def make_transformer_decoder(
    num_layers: int = 6,
    num_classes: int = 80,
    *,
    channels: int = 256,
    heads: int = 8,
    hidden: int = 2048,
    dropout: float = 0.1,
    activation: str = "relu",
    pre_norm: bool = False,
    no_object: bool = True,
) -> TransformerDecoder:
    """DETR's decoder and its heads with their initial weights.

    Args:
        num_layers: 1 or more.
        num_classes: of the class head, which has one logit more with ``no_object``.
        channels, heads, hidden, dropout, activation, pre_norm: as in `TransformerEncoderLayer`.
        no_object: softmax classification.
    """
    decoder = TransformerDecoder(
        [TransformerDecoderLayer(channels, heads, hidden, dropout, activation, pre_norm) for _ in range(num_layers)],
        make_class_head(channels, num_classes, no_object=no_object),
        BoxHead(channels, size_bias=None),
    )
    _xavier(decoder.layers)
    return decoder


def _xavier(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


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
