"""The project's backbones by the name in ``MODEL.BACKBONE.NAME``, the same in both engines.

A backbone maps images (N, 3, H, W) to feature maps by name, and tells their channels and strides by
``output_shape()``: Detectron2's protocol, without Detectron2.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import UserError
from .backbone import build_resnet
from .fpn import build_pyramid
from .swin import build_swin
from .timm_backbone import build_timm

_BOTTOM_UP: dict[str, Callable[[Any], nn.Module]] = {
    "resnet": build_resnet,
    "swin": build_swin,
    "timm": build_timm,
}


def _with_pyramid(build: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    return lambda cfg: build_pyramid(cfg, build(cfg))


# Each under its own name, and with a feature pyramid on top of it.
BACKBONES: dict[str, Callable[[Any], nn.Module]] = {
    **{f"build_deformable_detr_{name}_backbone": build for name, build in _BOTTOM_UP.items()},
    **{f"build_deformable_detr_{name}_fpn_backbone": _with_pyramid(build) for name, build in _BOTTOM_UP.items()},
}


def unused_features(cfg: Any, backbone: Any) -> set[str]:
    """Features that nothing reads: what leads to these alone gets no gradient, which distributed training must know."""
    used = [*cfg.MODEL.DETR.IN_FEATURES, *(cfg.MODEL.DETR.MASKS.IN_FEATURES if cfg.MODEL.MASK_ON else [])]
    return set(backbone.output_shape()) - set(used)


def build_backbone(cfg: Any) -> nn.Module:
    """The backbone that ``cfg.MODEL.BACKBONE.NAME`` names.

    Raises:
        UserError: for a name that is not the project's, and for what the backbone's builder refuses.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name not in BACKBONES:
        raise UserError(
            f"MODEL.BACKBONE.NAME {name!r} is not known here: choose one of {', '.join(BACKBONES)}, or use "
            "--engine detectron2, which has every backbone that is registered with Detectron2"
        )
    return BACKBONES[name](cfg)
