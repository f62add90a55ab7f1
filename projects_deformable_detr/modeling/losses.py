"""Classification and mask losses. Classification losses also compute the matcher's class cost."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import sigmoid_focal_loss

from ..errors import Fraction, NonNegative, Positive, UserError, check_ranges
from .mask_head import resize_mask_logits
from .structures import MaskLogits, Match, Targets, image_name

LOSS_CHUNK_SIZE = 64  # maximum number of masks whose activations are stored for the backward pass


class Classification(Protocol):
    """Interface of classification losses."""

    @property
    def no_object(self) -> bool:
        """Whether the last logit is for "no object"."""

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Computes the matching cost (…, Q, T) of logits (…, Q, classes), float32, and labels (…, T), int64."""

    def loss(self, logits: Tensor, matched: Tensor, num_boxes: Tensor, num_images: Tensor) -> Tensor:
        """Computes the normalized loss (layers,).

        Args:
            logits: (layers, N, Q, classes), float32.
            matched: (layers, N, Q) int64, target class of matched queries, -1 for others.
            num_boxes, num_images: scalars, numbers of boxes and images by which the loss is normalized.
        """


@dataclass(frozen=True)
class FocalClassification:
    """Sigmoid focal loss (arXiv 1708.02002), as in Deformable DETR.

    Args:
        alpha: weight of the positive class, in [0, 1].
        gamma: focusing exponent, >= 0.
    """

    alpha: Fraction = 0.25
    gamma: NonNegative = 2.0
    no_object = False

    def __post_init__(self) -> None:
        check_ranges(FocalClassification, vars(self))

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Computes the focal classification cost: positive term minus negative term."""
        return self._positive_minus_negative(_gather_labels(logits, labels))

    def loss(self, logits: Tensor, matched: Tensor, num_boxes: Tensor, num_images: Tensor) -> Tensor:
        """Computes the focal loss, summed over images, queries and classes and divided by the number of boxes.

        It is computed for all logits as negatives and then corrected for matched logits, because one-hot targets would
        take most of the memory of a training step with many classes (1,203 in LVIS).
        """
        matched_logits = logits.gather(-1, matched.clamp(min=0)[..., None])[..., 0]
        correction = self._positive_minus_negative(matched_logits).masked_fill(matched < 0, 0.0)
        return (self._negative(logits).sum((1, 2, 3)) + correction.sum((1, 2))) / num_boxes.clamp(min=1.0)

    def _positive_minus_negative(self, logits: Tensor) -> Tensor:
        positive = self.alpha * (1 - logits.sigmoid()) ** self.gamma * F.softplus(-logits)
        return positive - self._negative(logits)

    def _negative(self, logits: Tensor) -> Tensor:
        return (1 - self.alpha) * (logits.sigmoid() ** self.gamma * F.softplus(logits))


@dataclass(frozen=True)
class SoftmaxClassification:
    """Softmax over the classes and "no object", the last logit (arXiv 2005.12872, section 3.1).

    Args:
        no_object_weight: weight of unmatched queries, > 0; less than 1 because most queries are unmatched.
    """

    no_object_weight: Positive = 0.1
    no_object = True

    def __post_init__(self) -> None:
        check_ranges(SoftmaxClassification, vars(self))

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Computes the negative probability of the target class, without logarithm to match the scale of box costs."""
        return -_gather_labels(logits.softmax(-1), labels)

    def loss(self, logits: Tensor, matched: Tensor, num_boxes: Tensor, num_images: Tensor) -> Tensor:
        """Computes the cross-entropy, a weighted average over the queries of ``num_images`` images.

        ``num_boxes`` of these queries are matched.
        """
        labels = torch.where(matched < 0, logits.shape[-1] - 1, matched)
        weights = torch.where(matched < 0, self.no_object_weight, 1.0)
        entropy = -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        total = num_boxes + self.no_object_weight * (num_images * logits.shape[2] - num_boxes)
        return (entropy * weights).sum((1, 2)) / total


def _gather_labels(scores: Tensor, labels: Tensor) -> Tensor:
    """Gathers scores (…, Q, classes) of labels (…, T) as (…, Q, T)."""
    return scores.gather(-1, labels[..., None, :].expand(*scores.shape[:-1], labels.shape[-1]))


@dataclass(frozen=True)
class MaskLoss:
    """Focal and dice loss of the masks of the last layer's matched queries (arXiv 2005.12872, section 4.4).

    Args:
        mask_weight: weight of ``loss_mask``, the focal loss averaged over the pixels of the padded batch.
        dice_weight: weight of ``loss_dice`` (arXiv 1606.04797, with 1 added to numerator and denominator).
    """

    mask_weight: float = 1.0
    dice_weight: float = 1.0

    def __call__(self, masks: MaskLogits, match: Match, targets: list[Targets], num_boxes: Tensor) -> dict[str, Tensor]:
        """Computes the weighted ``loss_mask`` and ``loss_dice``, divided by ``num_boxes``.

        Only masks of matched queries are computed. Targets are zero-padded to the size of the batch, and predictions
        are resized to it (bilinear). More than 64 masks are computed in chunks of 64 that are recomputed in the
        backward pass, which limits the memory of crowded batches.

        Raises:
            UserError: if a target with objects has no masks.
        """
        size = masks.padding_mask.shape[-2:]
        padded = _pad_masks(targets, size)
        chunks = [indices.split(LOSS_CHUNK_SIZE) for indices in (match.image, match.query[-1], match.target[-1])]
        if len(match.image) <= LOSS_CHUNK_SIZE:
            focal, dice = _mask_losses(masks, padded, *(parts[0] for parts in chunks))
        else:
            sums = [
                checkpoint(_mask_losses, masks, padded, *part, use_reentrant=False)
                for part in zip(*chunks, strict=True)
            ]
            focal, dice = (torch.stack(part).sum() for part in zip(*sums, strict=True))
        return {"loss_mask": focal * (self.mask_weight / num_boxes), "loss_dice": dice * (self.dice_weight / num_boxes)}


def _mask_losses(
    masks: MaskLogits, padded: Tensor, image: Tensor, query: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums focal and dice loss over M pairs: image, query and target (M,); target indexes padded (T, H, W)."""
    logits = resize_mask_logits(masks(image, query).float(), padded.shape[-2:]).flatten(1)
    truth = padded[target].flatten(1).to(logits.dtype)
    focal = sigmoid_focal_loss(logits, truth).mean(1)
    probability = logits.sigmoid()
    dice = 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
    return focal.sum(), dice.sum()


def _pad_masks(targets: list[Targets], size: torch.Size) -> Tensor:
    """Concatenates the masks of all targets, zero-padded, as (T, *size) bool."""
    padded = [torch.zeros(0, *size, dtype=torch.bool, device=targets[0].labels.device)]
    for image, target in enumerate(targets):
        if target.masks is None:
            if len(target) == 0:
                continue
            raise UserError(
                f"{image_name(targets, image)} has no masks, but the model has a mask head: add segmentations to its "
                "annotations, or set `mask_head=False`"
            )
        height, width = target.masks.shape[-2:]
        padded.append(F.pad(target.masks, (0, size[1] - width, 0, size[0] - height)))
    return torch.cat(padded)
