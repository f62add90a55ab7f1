"""Masks of the matched queries: their loss, and their way back to the size of the image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import sigmoid_focal_loss

from ..errors import UserError
from .matcher import Match
from .structures import MASKS_AT_ONCE, MaskLogits, Targets

_IN_LOSS = 64  # masks whose activations a loss keeps for its backward pass


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

        Every mask has its own activations. Those of up to 64 masks are kept for the backward pass; of more, 64 are
        computed at a time and once more in the backward pass, so that a crowded batch needs time and not memory.

        Raises:
            UserError: if a target with objects has no masks.
        """
        size = masks.padding_mask.shape[-2:]
        padded = _pad(targets, size)
        chosen = [indices.split(_IN_LOSS) for indices in (match.image, match.query[-1], match.target[-1])]
        if len(match.image) <= _IN_LOSS:
            focal, dice = _losses(masks, padded, *(parts[0] for parts in chosen))
        else:
            sums = [
                checkpoint(_losses, masks, padded, *part, use_reentrant=False) for part in zip(*chosen, strict=True)
            ]
            focal, dice = (torch.stack(part).sum() for part in zip(*sums, strict=True))
        return {"loss_mask": focal * (self.mask_weight / count), "loss_dice": dice * (self.dice_weight / count)}


def _losses(masks: MaskLogits, padded: Tensor, image: Tensor, query: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of focal and dice loss over the matched (M,) images, queries and rows of padded targets (T, H, W)."""
    logits = resize(masks(image, query).float(), padded.shape[-2:]).flatten(1)
    wanted = padded[target].flatten(1).to(logits.dtype)
    focal = sigmoid_focal_loss(logits, wanted).mean(1)
    probability = logits.sigmoid()
    dice = 1 - (2 * (probability * wanted).sum(1) + 1) / (probability.sum(1) + wanted.sum(1) + 1)
    return focal.sum(), dice.sum()


def _pad(targets: list[Targets], size: torch.Size) -> Tensor:
    """All targets' masks (T, *size) bool."""
    padded = [torch.zeros(0, *size, dtype=torch.bool, device=targets[0].labels.device)]
    for image, target in enumerate(targets):
        if target.masks is None:
            if len(target) == 0:
                continue
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
    found = masks.padding_mask.new_zeros(len(queries), height, width, dtype=torch.float32)
    for into, part in zip(found.split(MASKS_AT_ONCE), queries.split(MASKS_AT_ONCE), strict=True):
        if len(part):
            logits = masks(torch.full_like(part, image), part).float()
            into.copy_(resize(logits, masks.padding_mask.shape[-2:])[:, :height, :width])
    return found


def instance_masks(masks: MaskLogits, image: int, queries: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (K, *size) bool of one image's queries (K,), of which several may be the same.

    The logits, brought to the size that the model has seen, become masks at probability 1/2; these are brought to
    ``size`` by nearest neighbour, as published.
    """
    distinct, place = queries.unique(return_inverse=True)
    found = masks.padding_mask.new_zeros(len(queries), *size)  # filled in place: it can be most of the memory in use
    for start, part in zip(range(0, len(distinct), MASKS_AT_ONCE), distinct.split(MASKS_AT_ONCE), strict=False):
        whole = _nearest(image_logits(masks, image, part) > 0, size)
        rows = ((place >= start) & (place < start + len(part))).nonzero()[:, 0]
        for row, source in zip(rows.tolist(), (place[rows] - start).tolist(), strict=True):
            found[row] = whole[source]
    return found


def _nearest(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(masks.shape[-2:]) == tuple(size) or not len(masks):
        return masks if len(masks) else masks.new_zeros(0, *size)
    return F.interpolate(masks[:, None].float(), size=tuple(size), mode="nearest")[:, 0] > 0.5
