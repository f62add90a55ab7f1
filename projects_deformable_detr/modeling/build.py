"""The detector and its criterion from a config, without any engine."""

from typing import Any

from torch import nn

from ..errors import UserError
from .backbones import build_backbone
from .build_deformable import build_deformable_detr
from .build_detr import build_detr
from .classification import Classification, FocalClassification, SoftmaxClassification
from .criterion import SetCriterion
from .detector import Detector
from .mask_head import MaskHead
from .masks import MaskLoss
from .matcher import HungarianMatcher

_BUILDERS = {"DeformableDETR": build_deformable_detr, "DETR": build_detr}
_AT_LEAST_1 = (
    "HIDDEN_DIM",
    "NHEADS",
    "DIM_FEEDFORWARD",
    "NUM_OBJECT_QUERIES",
    "ENC_N_POINTS",
    "DEC_N_POINTS",
    "NUM_FEATURE_LEVELS",
)


def build_detector(cfg: Any, backbone: nn.Module | None = None, architecture: str | None = None) -> Detector:
    """The detector that ``cfg.MODEL`` describes; called as ``detector(images, padding_mask)``.

    Args:
        cfg: a config of either engine, with ``MODEL.DETR.NUM_CLASSES`` set.
        backbone: a module that maps images (N, 3, H, W) to feature maps by name, with an ``output_shape()`` that
            tells their channels; by default the ResNet of ``cfg.MODEL.RESNETS``.
        architecture: ``"DETR"`` or ``"DeformableDETR"``; by default ``cfg.MODEL.META_ARCHITECTURE``.

    Raises:
        UserError: for values that make no model; it names the key.
    """
    detr = cfg.MODEL.DETR
    _check(detr)
    build = _BUILDERS[_architecture(cfg, architecture)]
    backbone = build_backbone(cfg) if backbone is None else backbone
    classification = _build_classification(cfg, architecture)
    mask_head = _build_mask_head(cfg, backbone, architecture)
    return build(detr, backbone, _in_channels(backbone, detr.IN_FEATURES), classification.no_object, mask_head)


def _architecture(cfg: Any, architecture: str | None) -> str:
    name = architecture or cfg.MODEL.META_ARCHITECTURE
    if name not in _BUILDERS:
        raise UserError(f"MODEL.META_ARCHITECTURE {name!r} is not known here: choose {' or '.join(_BUILDERS)}")
    return name


def _check(detr: Any) -> None:
    if detr.NUM_CLASSES < 1:
        raise UserError(
            "MODEL.DETR.NUM_CLASSES is not set: set it to the data set's number of categories (the engines "
            "take it from DATASETS.TRAIN)"
        )
    for key in _AT_LEAST_1:
        if detr[key] < 1:
            raise UserError(f"MODEL.DETR.{key} must be at least 1, got {detr[key]}")
    for key in ("ENC_LAYERS", "DEC_LAYERS"):
        if detr[key] < 0:
            raise UserError(f"MODEL.DETR.{key} must not be negative, got {detr[key]}")
    if detr.HIDDEN_DIM % detr.NHEADS:
        raise UserError(f"MODEL.DETR.HIDDEN_DIM {detr.HIDDEN_DIM} must be a multiple of NHEADS {detr.NHEADS}")


def _in_channels(backbone: nn.Module, wanted: list[str]) -> dict[str, int]:
    shapes: dict[str, Any] = backbone.output_shape()  # type: ignore[operator]  # Detectron2's protocol, not nn.Module's
    missing = [name for name in wanted if name not in shapes]
    if missing or not wanted:
        raise UserError(
            f"MODEL.DETR.IN_FEATURES {list(wanted)}: the backbone gives {list(shapes)}; name at least one of "
            "these and no other"
        )
    return {name: shapes[name].channels for name in wanted}


def _build_mask_head(cfg: Any, backbone: nn.Module, architecture: str | None) -> MaskHead | None:
    detr = cfg.MODEL.DETR
    if not cfg.MODEL.MASK_ON:
        for key, value in (
            ("MASKS.FREEZE_DETECTOR", detr.MASKS.FREEZE_DETECTOR),
            ("PANOPTIC.ENABLED", detr.PANOPTIC.ENABLED),
        ):
            if value:
                raise UserError(f"MODEL.DETR.{key} True needs MODEL.MASK_ON True: there is no mask head without it")
        return None
    if detr.DEC_LAYERS == 0:
        raise UserError(
            "MODEL.MASK_ON True needs a decoder: masks are those of its queries; set DEC_LAYERS to 1 or more"
        )
    if detr.HIDDEN_DIM % 128 or detr.NHEADS % 8:
        raise UserError(
            f"MODEL.DETR.HIDDEN_DIM {detr.HIDDEN_DIM} must be a multiple of 128 and NHEADS {detr.NHEADS} one of 8 with "
            "MODEL.MASK_ON: the mask head narrows them to a sixteenth, in norms of 8 groups"
        )
    wanted = list(detr.MASKS.IN_FEATURES)
    shapes: dict[str, Any] = backbone.output_shape()  # type: ignore[operator]  # as in _in_channels
    if len(wanted) != 3 or any(name not in shapes for name in wanted):
        raise UserError(
            f"MODEL.DETR.MASKS.IN_FEATURES {wanted}: the mask head needs three of the backbone's feature maps, "
            f"coarsest first, but it gives {list(shapes)}; add them to its OUT_FEATURES (MODEL.RESNETS.OUT_FEATURES or "
            "MODEL.BACKBONE.OUT_FEATURES)"
        )
    features = list(detr.IN_FEATURES)
    attended = detr.MASKS.ATTENTION_FEATURE or features[-1]
    if attended not in features:
        raise UserError(
            f"MODEL.DETR.MASKS.ATTENTION_FEATURE {attended!r} is not one of MODEL.DETR.IN_FEATURES {features}"
        )
    fine = [(name, shapes[name].channels) for name in wanted]
    deformable = _architecture(cfg, architecture) == "DeformableDETR"
    return MaskHead(detr.HIDDEN_DIM, detr.NHEADS, features.index(attended), fine, box_positions=deformable)


def build_criterion(cfg: Any, architecture: str | None = None) -> SetCriterion:
    """The criterion that ``cfg.MODEL.DETR`` describes: ``criterion(predictions, targets)`` gives weighted losses.

    ``architecture``: as in `build_detector`.
    """
    detr = cfg.MODEL.DETR
    classification = _build_classification(cfg, architecture)
    matcher = HungarianMatcher(classification, detr.COST_CLASS, detr.COST_BBOX, detr.COST_GIOU)
    weights = {"loss_ce": detr.CLASS_WEIGHT, "loss_bbox": detr.L1_WEIGHT, "loss_giou": detr.GIOU_WEIGHT}
    masks = MaskLoss(detr.MASKS.MASK_WEIGHT, detr.MASKS.DICE_WEIGHT) if cfg.MODEL.MASK_ON else None
    return SetCriterion(matcher, weights, detr.DEEP_SUPERVISION, masks)


def _build_classification(cfg: Any, architecture: str | None) -> Classification:
    detr, architecture = cfg.MODEL.DETR, _architecture(cfg, architecture)
    name = detr.CLASS_LOSS
    if name == "auto":
        name = "softmax" if architecture == "DETR" else "focal"
    if name == "focal":
        return FocalClassification(detr.FOCAL_ALPHA, detr.FOCAL_GAMMA)
    if name != "softmax":
        raise UserError(f"MODEL.DETR.CLASS_LOSS {name!r} is not known: choose auto, softmax or focal")
    if detr.TWO_STAGE or detr.DEC_LAYERS == 0:
        raise UserError(
            "MODEL.DETR.CLASS_LOSS softmax needs a decoder and no TWO_STAGE: objects would vanish among the proposals "
            "of all tokens; choose focal"
        )
    return SoftmaxClassification(detr.NO_OBJECT_WEIGHT)
