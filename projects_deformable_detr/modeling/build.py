"""Configuration and construction of a detector."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..errors import ArgumentError, NonNegativeInt, PositiveInt, check_choice, check_features, check_ranges
from .deformable_transformer import DeformableDecoder, DeformableEncoder
from .detector import Detector
from .layers import LayerConfig, Probability
from .mask_head import MaskHead
from .neck import Neck
from .position_encoding import LearnedPositionEmbedding, SinePositionEmbedding
from .queries import EncoderDetections, LearnedQueries, PositionQueries, ProposalQueries
from .structures import output_shape
from .transformer import TransformerDecoder, TransformerEncoder

ARCHITECTURES = ("DeformableDETR", "DETR")


@dataclass(frozen=True)
class DetectorConfig:
    """Configuration of all parts of a detector except its backbone.

    Attributes:
        num_classes: number of classes.
        architecture: ``"DeformableDETR"`` or ``"DETR"``.
        num_queries: number of object queries, or of proposals in a two-stage model.
        in_features: feature maps of the backbone, finest first.
        num_levels: number of feature levels; those after ``in_features`` come from convolutions of stride 2.
        d_model, num_heads, dim_feedforward, dropout, activation, pre_norm: see `LayerConfig`.
        encoder_layers: number of encoder layers.
        decoder_layers: number of decoder layers; 0 builds the encoder-only Deformable DETR.
        encoder_points, decoder_points: number of sampling points per head and level.
        multi_scale_attention: whether encoder tokens attend to all levels instead of their own level only.
        position_embedding: ``"sine"`` or ``"learned"``.
        position_embedding_size: maximum number of rows and columns of a feature map; for the learned embedding only.
        box_refine: whether to refine boxes iteratively.
        two_stage: whether to use the encoder's best proposals as queries; requires ``box_refine``.
        class_loss: ``"focal"``, or ``"softmax"``, which adds a logit for "no object".
        activation_checkpointing: whether to recompute encoder layers in the backward pass.
        mask_head: whether to add a mask head.
        mask_attention_feature: member of ``in_features`` whose level the mask head attends to; "" for the last one.
        mask_features: three feature maps for upsampling masks, coarsest first.
        freeze_detector: whether to train only the mask head.
        mask_padding: ``"inference"``, ``"always"`` or ``"never"``, see `Detector`.
    """

    num_classes: PositiveInt
    architecture: str = "DeformableDETR"
    num_queries: PositiveInt = 300
    in_features: tuple[str, ...] = ("res3", "res4", "res5")
    num_levels: PositiveInt = 4
    d_model: PositiveInt = 256
    num_heads: PositiveInt = 8
    dim_feedforward: PositiveInt = 1024
    dropout: Probability = 0.1
    activation: str = "relu"
    pre_norm: bool = False
    encoder_layers: NonNegativeInt = 6
    decoder_layers: NonNegativeInt = 6
    encoder_points: PositiveInt = 4
    decoder_points: PositiveInt = 4
    multi_scale_attention: bool = True
    position_embedding: str = "sine"
    position_embedding_size: PositiveInt = 50
    box_refine: bool = False
    two_stage: bool = False
    class_loss: str = "focal"
    activation_checkpointing: bool = False
    mask_head: bool = False
    mask_attention_feature: str = ""
    mask_features: tuple[str, ...] = ("res4", "res3", "res2")
    freeze_detector: bool = False
    mask_padding: str = "inference"

    def __post_init__(self) -> None:
        check_ranges(DetectorConfig, vars(self))
        check_choice("architecture", self.architecture, ARCHITECTURES)
        check_choice("position_embedding", self.position_embedding, ("sine", "learned"))
        check_choice("class_loss", self.class_loss, ("focal", "softmax"))
        self.layer(self.encoder_points)  # checks the arguments of layers
        if self.architecture == "DETR":
            self._check_detr()
        else:
            self._check_deformable_detr()
        if self.mask_head:
            self._check_mask_head()
        elif self.freeze_detector:
            raise ArgumentError("freeze_detector", "needs `mask_head`: otherwise, no parameter would be trained")

    def _check_detr(self) -> None:
        for name, value in (("in_features", len(self.in_features)), ("num_levels", self.num_levels)):
            if value != 1:
                raise ArgumentError(name, f"must be one feature map for DETR, got {getattr(self, name)}")
        for name in ("box_refine", "two_stage"):
            if getattr(self, name):
                raise ArgumentError(name, "is not available in DETR: set it to False")
        if self.decoder_layers == 0:
            raise ArgumentError("decoder_layers", "must be at least 1 for DETR, got 0")

    def _check_deformable_detr(self) -> None:
        if self.pre_norm:
            raise ArgumentError("pre_norm", "is available in DETR only: set it to False")
        if self.two_stage and not self.box_refine:
            raise ArgumentError("two_stage", "needs `box_refine`: set both to True")
        if self.decoder_layers == 0 and self.box_refine:
            raise ArgumentError("decoder_layers", "must be at least 1 with `box_refine`, got 0")
        if self.class_loss == "softmax" and (self.two_stage or self.decoder_layers == 0):
            raise ArgumentError(
                "class_loss",
                "must be 'focal' with `two_stage` or without a decoder: most tokens are background, got 'softmax'",
            )

    def _check_mask_head(self) -> None:
        if self.decoder_layers == 0:
            raise ArgumentError("mask_head", "needs a decoder: set `decoder_layers` to at least 1")
        if self.mask_attention_feature and self.mask_attention_feature not in self.in_features:
            raise ArgumentError(
                "mask_attention_feature",
                f"must be one of `in_features` {list(self.in_features)}, got {self.mask_attention_feature!r}",
            )
        if len(self.mask_features) != 3:
            raise ArgumentError("mask_features", f"must be three feature maps, got {list(self.mask_features)}")

    @property
    def no_object(self) -> bool:
        """Whether the last logit is for "no object"."""
        return self.class_loss == "softmax"

    def layer(self, num_points: int) -> LayerConfig:
        """Returns the configuration of the encoder's or decoder's layers."""
        return LayerConfig(
            d_model=self.d_model,
            num_heads=self.num_heads,
            dim_feedforward=self.dim_feedforward,
            dropout=self.dropout,
            activation=self.activation,
            num_levels=self.num_levels,
            num_points=num_points,
            pre_norm=self.pre_norm,
        )


def build_detector(config: DetectorConfig, backbone: nn.Module) -> Detector:
    """Builds a detector; ``detector(images, padding_mask)`` returns predictions.

    Args:
        config: configuration of all parts except the backbone.
        backbone: maps images (N, 3, H, W) to feature maps by name. Its ``output_shape()`` method returns objects with
            the attributes ``channels`` and ``stride`` by name.

    Raises:
        ArgumentError: if the backbone lacks feature maps, or sizes of parts do not match.
    """
    # The order in which parts are built determines their random initial weights.
    in_channels = dict(_feature_channels(backbone, "in_features", config.in_features))
    mask_head = _build_mask_head(config, backbone) if config.mask_head else None
    deformable = config.architecture == "DeformableDETR"
    embedding: nn.Module
    if config.position_embedding == "sine":
        embedding = SinePositionEmbedding(config.d_model, centered=deformable)
    else:
        embedding = LearnedPositionEmbedding(config.d_model, config.position_embedding_size)
    # DETR has a single level: no norm and no level embedding.
    neck = Neck(in_channels, config.d_model, config.num_levels, embedding, norm=deformable, level_embed=deformable)
    encoder, queries, decoder = _build_deformable_transformer(config) if deformable else _build_transformer(config)
    parts = backbone, neck, encoder, queries, decoder
    return Detector(*parts, config.no_object, mask_head, config.freeze_detector, config.mask_padding)


def _build_transformer(config: DetectorConfig) -> tuple[nn.Module, nn.Module, nn.Module]:
    layer = config.layer(config.encoder_points)
    encoder = TransformerEncoder(layer, config.encoder_layers, activation_checkpointing=config.activation_checkpointing)
    decoder = TransformerDecoder(layer, config.decoder_layers, config.num_classes, no_object=config.no_object)
    return encoder, PositionQueries(config.num_queries, config.d_model), decoder


def _build_deformable_transformer(config: DetectorConfig) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    encoder = DeformableEncoder(
        config.layer(config.encoder_points),
        config.encoder_layers,
        multi_scale=config.multi_scale_attention,
        activation_checkpointing=config.activation_checkpointing,
    )
    if config.decoder_layers == 0:
        return encoder, EncoderDetections(config.d_model, config.num_classes), None
    queries: nn.Module
    if config.two_stage:
        queries = ProposalQueries(config.num_queries, config.d_model, config.num_classes)
    else:
        queries = LearnedQueries(config.num_queries, config.d_model)
    decoder = DeformableDecoder(
        config.layer(config.decoder_points),
        config.decoder_layers,
        config.num_classes,
        box_refine=config.box_refine,
        two_stage=config.two_stage,
        no_object=config.no_object,
    )
    return encoder, queries, decoder


def _build_mask_head(config: DetectorConfig, backbone: nn.Module) -> MaskHead:
    return MaskHead(
        config.d_model,
        config.num_heads,
        config.in_features.index(config.mask_attention_feature or config.in_features[-1]),
        _feature_channels(backbone, "mask_features", config.mask_features),
        box_positions=config.architecture == "DeformableDETR",
    )


def _feature_channels(backbone: nn.Module, argument: str, names: Sequence[str]) -> list[tuple[str, int]]:
    shapes = output_shape(backbone)
    check_features(argument, names, shapes)
    return [(name, shapes[name].channels) for name in names]
