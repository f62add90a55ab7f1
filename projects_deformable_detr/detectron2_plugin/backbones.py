"""Registers the project's backbones, and Detectron2 backbones that cannot be built from a yacs config otherwise."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, MViT, SimpleFeaturePyramid, SwinTransformer, ViT
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from torch import nn

from ..config.model import BACKBONES, BackboneConfig
from ..errors import UserError
from ..modeling.fpn import BackboneWithFPN
from ..modeling.resnet import ResNet
from ..modeling.swin import VARIANTS as SWIN_VARIANTS
from ..modeling.swin import SwinBackbone
from ..modeling.timm_backbone import TimmBackbone


# Subclasses, because wrappers would change the parameter names in checkpoints.
class Detectron2ResNet(ResNet, Backbone):
    """`ResNet` as a backbone of Detectron2."""


class Detectron2BackboneWithFPN(BackboneWithFPN, Backbone):
    """`BackboneWithFPN` as a backbone of Detectron2."""


class Detectron2SwinBackbone(SwinBackbone, Backbone):
    """`SwinBackbone` as a backbone of Detectron2."""


class Detectron2TimmBackbone(TimmBackbone, Backbone):
    """`TimmBackbone` as a backbone of Detectron2."""


_KINDS = {
    kind.__mro__[1]: kind
    for kind in (Detectron2ResNet, Detectron2BackboneWithFPN, Detectron2SwinBackbone, Detectron2TimmBackbone)
}

# arXiv 2010.11929, table 1, and arXiv 2012.12877, table 1.
_VIT = {
    "vit_t": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_s": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
# arXiv 2112.01526, table 1.
_MVIT = {
    "mvitv2_t": {"depth": 10, "last_block_indexes": (0, 2, 7, 9)},
    "mvitv2_s": {"depth": 16, "last_block_indexes": (0, 2, 13, 15)},
    "mvitv2_b": {"depth": 24, "last_block_indexes": (1, 4, 20, 23)},
}
# arXiv 2003.13678, appendix.
_REGNET = {
    "regnetx_400mf": {"depth": 22, "w_a": 24.48, "w_0": 24, "w_m": 2.54, "group_width": 16},
    "regnety_400mf": {"depth": 16, "w_a": 27.89, "w_0": 48, "w_m": 2.09, "group_width": 8, "se_ratio": 0.25},
    "regnetx_4gf": {"depth": 23, "w_a": 38.65, "w_0": 96, "w_m": 2.43, "group_width": 40},
    "regnety_4gf": {"depth": 22, "w_a": 31.41, "w_0": 96, "w_m": 2.24, "group_width": 64, "se_ratio": 0.25},
}


def _register(name: str, read: Callable[[Any], BackboneConfig]) -> None:
    """Registers a backbone of the project under its name in the standalone engine."""

    def adapted(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
        _check_channels(input_shape)
        backbone = read(cfg).build()
        backbone.__class__ = _KINDS[type(backbone)]
        return backbone

    adapted.__name__ = name
    adapted.__doc__ = f"Builds the project's ``{name}``, also for Detectron2's own meta-architectures."
    BACKBONE_REGISTRY.register(adapted)


for registered, reader in BACKBONES.items():
    _register(registered, reader)


@BACKBONE_REGISTRY.register()
def build_deformable_detr_d2_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinTransformer:
    """Builds Detectron2's Swin Transformer, with feature maps ``p0`` … ``p3`` of strides 4 … 32.

    ``MODEL.BACKBONE.VARIANT`` is ``swin_t``, ``swin_s``, ``swin_b`` or ``swin_l``; see `SwinBackbone` for
    ``FREEZE_AT``. Only the feature maps in ``MODEL.DETR.IN_FEATURES`` are built, because the norms of others would
    receive no gradient.
    """
    _check_channels(input_shape)
    return SwinTransformer(
        **_variant(cfg, SWIN_VARIANTS),
        drop_path_rate=cfg.MODEL.BACKBONE.DROP_PATH_RATE,
        out_indices=sorted(int(name[1:]) for name in _in_features(cfg, ["p0", "p1", "p2", "p3"])),
        frozen_stages=cfg.MODEL.BACKBONE.FREEZE_AT or -1,
    )


@BACKBONE_REGISTRY.register()
def build_deformable_detr_d2_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """Builds Detectron2's ViTDet (arXiv 2203.16527): a plain ViT with windowed attention in all but four blocks, and a
    simple feature pyramid ``p2`` … ``p6``.

    ``MODEL.BACKBONE.VARIANT`` is ``vit_t``, ``vit_s``, ``vit_b`` or ``vit_l``; ``MODEL.FPN.OUT_CHANNELS`` is the number
    of channels of the pyramid. ``FREEZE_AT`` must be 0.
    """
    _check_channels(input_shape)
    _check_not_frozen(cfg)
    size = _variant(cfg, _VIT)
    depth = size["depth"]
    whole_image = [depth // 4 * part - 1 for part in range(1, 5)]
    net = ViT(
        **size,
        drop_path_rate=cfg.MODEL.BACKBONE.DROP_PATH_RATE,
        window_size=14,
        window_block_indexes=[index for index in range(depth) if index not in whole_image],
        use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    # Unused finer and coarser levels are not built, because their parameters would get no gradient.
    scales = {"p2": 4.0, "p3": 2.0, "p4": 1.0, "p5": 0.5}
    wanted = _in_features(cfg, [*scales, "p6"])
    return SimpleFeaturePyramid(
        net,
        "last_feat",
        cfg.MODEL.FPN.OUT_CHANNELS,
        [scale for name, scale in scales.items() if min(*wanted, "p5") <= name <= max(wanted)],
        top_block=LastLevelMaxPool() if "p6" in wanted else None,
    )


@BACKBONE_REGISTRY.register()
def build_deformable_detr_d2_mvit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MViT:
    """Builds Detectron2's MViTv2 (arXiv 2112.01526), with feature maps ``scale2`` … ``scale5`` of strides 4 … 32.

    ``MODEL.BACKBONE.VARIANT`` is ``mvitv2_t``, ``mvitv2_s`` or ``mvitv2_b``. ``FREEZE_AT`` must be 0.
    """
    _check_channels(input_shape)
    _check_not_frozen(cfg)
    return MViT(
        **_variant(cfg, _MVIT),
        drop_path_rate=cfg.MODEL.BACKBONE.DROP_PATH_RATE,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        out_features=_in_features(cfg, ["scale2", "scale3", "scale4", "scale5"], needs_last=True),
    )


@BACKBONE_REGISTRY.register()
def build_deformable_detr_d2_regnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> RegNet:
    """Builds Detectron2's RegNet (arXiv 2003.13678), with feature maps ``s1`` … ``s4`` of strides 4 … 32.

    ``MODEL.BACKBONE.VARIANT`` is ``regnetx_400mf``, ``regnety_400mf``, ``regnetx_4gf`` or ``regnety_4gf``;
    ``MODEL.RESNETS.NORM`` is the norm. ``FREEZE_AT`` 1 freezes the stem, 2 also ``s1``, and so on.
    """
    _check_channels(input_shape)
    return RegNet(
        stem_class=SimpleStem,
        stem_width=32,
        block_class=ResBottleneckBlock,
        **_variant(cfg, _REGNET),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm=cfg.MODEL.RESNETS.NORM,
        out_features=_in_features(cfg, ["s1", "s2", "s3", "s4"], needs_last=True),
    )


def _in_features(cfg: CfgNode, known: list[str], *, needs_last: bool = False) -> list[str]:
    """Returns ``MODEL.DETR.IN_FEATURES``; with ``needs_last``, it must contain the last of the ``known`` names."""
    features = list(cfg.MODEL.DETR.IN_FEATURES)
    if not set(features) <= set(known) or (needs_last and known[-1] not in features):
        required = f" with {known[-1]}" if needs_last else ""
        name = cfg.MODEL.BACKBONE.NAME
        raise UserError(f"MODEL.DETR.IN_FEATURES must be a subset of {known}{required} for {name}, got {features}")
    return features


def _check_not_frozen(cfg: CfgNode) -> None:
    if cfg.MODEL.BACKBONE.FREEZE_AT != 0:
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT must be 0 for {cfg.MODEL.BACKBONE.NAME}, got {cfg.MODEL.BACKBONE.FREEZE_AT}"
        )


def _check_channels(input_shape: ShapeSpec) -> None:
    if input_shape.channels != 3:
        raise UserError(f"MODEL.PIXEL_MEAN must have 3 channels for this backbone, got {input_shape.channels}")


def _variant(cfg: CfgNode, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    name = cfg.MODEL.BACKBONE.VARIANT
    if name not in known:
        raise UserError(f"MODEL.BACKBONE.VARIANT must be one of {', '.join(known)}, got {name!r}")
    return known[name]
