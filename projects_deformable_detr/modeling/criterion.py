"""Set-prediction loss (arXiv 2005.12872, eq. 2; 2010.04159, appendix A.4), for all layers at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from ..errors import ArgumentError, Fraction, NonNegative, Positive, check_choice, check_ranges
from .losses import Classification, FocalClassification, MaskLoss, SoftmaxClassification
from .matcher import HungarianMatcher
from .structures import Match, Predictions, Targets
from .targets import check_targets


@dataclass(frozen=True)
class CriterionConfig:
    """Configuration of `SetCriterion`.

    Attributes:
        class_loss: ``"focal"`` or ``"softmax"``.
        focal_alpha, focal_gamma: see `FocalClassification`.
        no_object_weight: see `SoftmaxClassification`.
        cost_class, cost_bbox, cost_giou: weights of the matching cost.
        class_weight, bbox_weight, giou_weight: weights of ``loss_ce``, ``loss_bbox`` and ``loss_giou``.
        deep_supervision: whether to train all decoder layers instead of only the last one.
        mask_loss: whether to train a mask head.
        mask_weight, dice_weight: weights of ``loss_mask`` and ``loss_dice``.
    """

    class_loss: str = "focal"
    focal_alpha: Fraction = 0.25
    focal_gamma: NonNegative = 2.0
    no_object_weight: Positive = 0.1
    cost_class: NonNegative = 2.0
    cost_bbox: NonNegative = 5.0
    cost_giou: NonNegative = 2.0
    class_weight: NonNegative = 2.0
    bbox_weight: NonNegative = 5.0
    giou_weight: NonNegative = 2.0
    deep_supervision: bool = True
    mask_loss: bool = False
    mask_weight: NonNegative = 1.0
    dice_weight: NonNegative = 1.0

    def __post_init__(self) -> None:
        check_ranges(CriterionConfig, vars(self))
        check_choice("class_loss", self.class_loss, ("focal", "softmax"))
        weights = self.class_weight, self.bbox_weight, self.giou_weight
        if not any(weights) and not (self.mask_loss and (self.mask_weight or self.dice_weight)):
            raise ArgumentError("class_weight", "must not be 0 if all other weights of the loss are 0")


def build_criterion(config: CriterionConfig) -> "SetCriterion":
    """Builds the criterion; ``criterion(predictions, targets)`` returns weighted losses by name."""
    classification: Classification
    if config.class_loss == "focal":
        classification = FocalClassification(config.focal_alpha, config.focal_gamma)
    else:
        classification = SoftmaxClassification(config.no_object_weight)
    matcher = HungarianMatcher(classification, config.cost_class, config.cost_bbox, config.cost_giou)
    weights = {"loss_ce": config.class_weight, "loss_bbox": config.bbox_weight, "loss_giou": config.giou_weight}
    mask_loss = MaskLoss(config.mask_weight, config.dice_weight) if config.mask_loss else None
    return SetCriterion(classification, matcher, weights, config.deep_supervision, mask_loss)


class BatchSize(NamedTuple):
    """Numbers of images and boxes of a batch, which normalize the losses."""

    images: int
    boxes: int


class SetCriterion(nn.Module):
    """Matches predictions to targets and computes classification, L1 and GIoU losses.

    Args:
        classification: classification loss.
        matcher: matcher with the same classification loss.
        weights: weights of ``loss_ce``, ``loss_bbox`` and ``loss_giou``.
        deep_supervision: whether to train all decoder layers instead of only the last one.
        masks: loss of the last layer's masks; None without a mask head.
    """

    def __init__(
        self,
        classification: Classification,
        matcher: HungarianMatcher,
        weights: Mapping[str, float],
        deep_supervision: bool = True,
        masks: MaskLoss | None = None,
    ) -> None:
        super().__init__()
        if matcher.classification != classification:
            raise ArgumentError(
                "classification", f"must equal that of `matcher`, {matcher.classification}, got {classification}"
            )
        self.classification = classification
        self.matcher = matcher
        self.weights = dict(weights)
        self.deep_supervision = deep_supervision
        self.masks = masks

    def forward(
        self, predictions: Predictions, targets: list[Targets], batch_size: BatchSize | None = None
    ) -> dict[str, Tensor]:
        """Computes weighted losses, whose sum is to be minimized.

        Args:
            predictions: predictions of N images.
            targets: N items, on the predictions' device; empty for images without objects.
            batch_size: size of this process's batch if the images are a micro-batch, whose losses and gradients are
                added to those of the others; None: the images are the whole batch.

        Returns:
            ``loss_ce``, ``loss_bbox`` and ``loss_giou`` of the last layer, with suffix ``_0``, ``_1`` … for earlier
            layers and ``_enc`` for proposals; with masks, also ``loss_mask`` and ``loss_dice`` of the last layer. All
            are scalars, normalized by the number of boxes in the batch, which is averaged over ranks and at least 1
            (softmax ``loss_ce``: by the weights of all queries, averaged over ranks).

        Raises:
            ValueError: if the batch sizes differ, the targets are invalid (see `check_targets`), an image has more
                targets than queries, or a matching cost is not finite.
        """
        self._check(predictions, targets)
        first = 0 if self.deep_supervision else len(predictions.logits) - 1
        predictions = replace(predictions, logits=predictions.logits[first:], boxes=predictions.boxes[first:])
        match, proposal_match = self.matcher(predictions, targets, first_layer=first)
        labels = torch.cat([target.labels for target in targets])
        boxes = torch.cat([target.boxes for target in targets]).to(predictions.boxes.dtype)
        batch_size = batch_size or BatchSize(len(targets), len(labels))
        num_images, num_boxes = _average_over_ranks(batch_size, predictions.logits.device)

        losses: dict[str, Tensor] = {}
        layers = self._layer_losses(predictions.logits, predictions.boxes, labels, boxes, match, num_images, num_boxes)
        last = len(predictions.logits) - 1
        for index in range(last + 1):
            suffix = "" if index == last else f"_{index}"
            losses |= {name + suffix: values[index] for name, values in layers.items()}
        if predictions.proposals is not None and proposal_match is not None:
            logits, proposed = (tensor[None] for tensor in predictions.proposals)
            objects = torch.zeros_like(labels)  # proposals distinguish objects from background only
            encoder = self._layer_losses(logits, proposed, objects, boxes, proposal_match, num_images, num_boxes)
            losses |= {f"{name}_enc": values[0] for name, values in encoder.items()}
        if self.masks is not None and predictions.masks is not None:
            losses |= self.masks(predictions.masks, match, targets, num_boxes.clamp(min=1.0))
        return losses

    def _layer_losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        labels: Tensor,
        target_boxes: Tensor,
        match: Match,
        num_images: Tensor,
        num_boxes: Tensor,
    ) -> dict[str, Tensor]:
        """Computes every loss as (layers,)."""
        layers, batch, queries, _ = logits.shape
        layer = torch.arange(layers, device=logits.device)[:, None]
        matched_labels = torch.full((layers, batch, queries), -1, dtype=torch.int64, device=logits.device)
        matched_labels[layer, match.image, match.query] = labels[match.target]
        found, truth = boxes[layer, match.image, match.query], target_boxes[match.target]  # (layers, M, 4)
        giou_loss = generalized_box_iou_loss(
            box_convert(found, "cxcywh", "xyxy"), box_convert(truth, "cxcywh", "xyxy"), reduction="none"
        )
        normalizer = num_boxes.clamp(min=1.0)
        losses = {
            "loss_ce": self.classification.loss(logits.float(), matched_labels, num_boxes, num_images),
            "loss_bbox": (found - truth).abs().sum((1, 2)) / normalizer,
            "loss_giou": giou_loss.sum(1) / normalizer,
        }
        return {name: value * self.weights[name] for name, value in losses.items()}

    def _check(self, predictions: Predictions, targets: list[Targets]) -> None:
        batch = predictions.logits.shape[1]
        if predictions.no_object != self.classification.no_object:
            raise ValueError(
                f"predictions {'have' if predictions.no_object else 'lack'} a logit for no object, unlike the "
                "classification loss: build the detector and the criterion with the same class_loss"
            )
        if len(targets) != batch:
            raise ValueError(f"predictions have {batch} images, targets {len(targets)}")
        check_targets(targets, predictions.num_classes)


def _average_over_ranks(batch_size: BatchSize, device: torch.device) -> tuple[Tensor, Tensor]:
    """Averages the numbers of images and boxes over ranks, as scalar tensors."""
    # Filled on the device, because a copy from the host would wait for it.
    total = torch.stack([torch.full((), float(count), device=device) for count in batch_size])
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    return total[0], total[1]


@torch.no_grad()
def cardinality_error(predictions: Predictions, targets: list[Targets]) -> Tensor:
    """Computes the absolute error of the number of predicted objects, averaged over images; for logging.

    Predicted objects are those of `Predictions.foreground`.
    """
    count = predictions.foreground().sum(-1)  # (N,)
    objects = count.new_tensor([len(target) for target in targets])
    return (count - objects).abs().float().mean()
