"""Masks of the matched queries: their loss, and their way back to the size of the image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from ..errors import UserError
from .matcher import Match
from .structures import MaskLogits, Targets

_CHUNK = 25  # masks that are computed together outside of training


@dataclass(frozen=True)
class MaskLoss:
    """Focal and dice loss of the last layer's matched queries (arXiv 2005.12872, section 4.4).

    Args:
        mask_weight: factor of ``loss_mask``, the focal loss averaged over the pixels of the padded batch.
        dice_weight: factor of ``loss_dice`` (arXiv 1606.04797, with 1 added to both parts of the fraction).
    """

    mask_weight: float = 1.0
    dice_weight: float = 1.0

    def __call__(self, masks: MaskLogits, match: Match, targets: list[Targets], count: Tensor) -> dict[str, Tensor]:
        """``loss_mask`` and ``loss_dice``, weighted and divided by ``count``.

        Only matched queries' masks are computed. Targets are padded to the batch, where masks are to be 0, and
        predictions are brought to its size (bilinear), as published.

        Raises:
            UserError: if a target has no masks.
        """
        size = masks.padding_mask.shape[-2:]
        wanted = _pad(targets, size)[match.target[-1]]
        logits = resize(masks(match.image, match.query[-1]).float(), size).flatten(1)
        wanted = wanted.flatten(1).to(logits.dtype)
        focal = sigmoid_focal_loss(logits, wanted).mean(1)
        probability = logits.sigmoid()
        dice = 1 - (2 * (probability * wanted).sum(1) + 1) / (probability.sum(1) + wanted.sum(1) + 1)
        return {
            "loss_mask": focal.sum() * (self.mask_weight / count),
            "loss_dice": dice.sum() * (self.dice_weight / count),
        }


def _pad(targets: list[Targets], size: torch.Size) -> Tensor:
    """All targets' masks (T, *size) bool."""
    padded = []
    for image, target in enumerate(targets):
        if target.masks is None:
            raise UserError(
                f"image {image} of the batch has no masks, but MODEL.MASK_ON is True: its annotations need a "
                "segmentation"
            )
        height, width = target.masks.shape[-2:]
        padded.append(F.pad(target.masks, (0, size[1] - width, 0, size[0] - height)))
    return torch.cat(padded)


def resize(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Logits (M, h, w) of the padded batch to (M, *size), bilinear."""
    if not len(logits):  # which interpolate refuses; the sum keeps the gradient's path
        return logits.new_zeros(0, *size) + logits.sum()
    return F.interpolate(logits[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def image_logits(masks: MaskLogits, image: int, queries: Tensor) -> Tensor:
    """Mask logits (K, h, w) of one image's queries (K,), in the size that the model has seen, padding cut off."""
    height, width = masks.image_sizes[image]
    parts = [logits.new_zeros(0, height, width) for logits in (masks.padding_mask.float(),)]
    for part in queries.split(_CHUNK):
        if len(part):
            logits = masks(torch.full_like(part, image), part).float()
            parts.append(resize(logits, masks.padding_mask.shape[-2:])[:, :height, :width])
    return torch.cat(parts)


def instance_masks(masks: MaskLogits, image: int, queries: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (K, *size) bool of one image's queries (K,), of which several may be the same.

    The logits, brought to the size that the model has seen, become masks at probability 1/2; these are brought to
    ``size`` by nearest neighbour, as published.
    """
    distinct, place = queries.unique(return_inverse=True)
    found = []
    for part in distinct.split(_CHUNK):
        seen = image_logits(masks, image, part) > 0
        found.append(_nearest(seen, size))
    return torch.cat(found)[place]


def _nearest(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(masks.shape[-2:]) == tuple(size) or not len(masks):
        return masks if len(masks) else masks.new_zeros(0, *size)
    return F.interpolate(masks[:, None].float(), size=tuple(size), mode="nearest")[:, 0] > 0.5
