"""Feature maps and norms that do not depend on the padding of a batch.

Convolutions pad their input with zeros. The features of an image in a padded batch therefore equal those of the image
alone if padded positions, which biases and norms make nonzero, are reset to zero before every layer that mixes
positions, and if group norms exclude them from their statistics.
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Maps = dict[str, Tensor]


def image_sizes(padding_mask: Tensor) -> list[tuple[int, int]]:
    """Returns (height, width) of each image without padding, given the mask (N, H, W) of a batch."""
    inside = ~padding_mask
    sizes = torch.stack((inside[:, :, 0].sum(1), inside[:, 0].sum(1)), dim=1).tolist()
    return [(height, width) for height, width in sizes]


def resize_mask(mask: Tensor, size: torch.Size) -> Tensor:
    """Downsamples a padding mask (N, H, W) to the size of a feature map.

    An image of h rows gets ceil(h / stride) rows, as in convolutions with padding. Feature maps of other sizes use
    nearest-neighbor interpolation, which can differ by a row if H is not a multiple of the stride.
    """
    halved = mask
    while halved.shape[-2] > size[0] or halved.shape[-1] > size[1]:
        halved = halved[:, ::2, ::2]
    return halved.contiguous() if halved.shape[-2:] == size else interpolate_mask(mask, size)


def interpolate_mask(mask: Tensor, size: torch.Size) -> Tensor:
    """Resizes a mask (N, H, W) to (N, *size) by nearest-neighbor interpolation, as in the official code."""
    return F.interpolate(mask[None].float(), size=tuple(size)).to(torch.bool)[0]


def masked_group_norm(norm: nn.GroupNorm, x: Tensor, mask: Tensor) -> Tensor:
    """Applies a group norm to x (N, C, H, W) with padding mask (N, H, W), using statistics of unpadded positions.

    Returns zeros on padding. The dtype is that of ``nn.GroupNorm``: under CUDA autocast, float32 for 16-bit input.
    """
    inside = ~mask[:, None, None]
    grouped = x.double() if x.dtype == torch.float64 else x.float()
    grouped = grouped.unflatten(1, (norm.num_groups, -1))  # (N, groups, channels of a group, H, W)
    count = inside.sum((2, 3, 4), keepdim=True) * grouped.shape[2]
    mean = (grouped * inside).sum((2, 3, 4), keepdim=True) / count
    centered = (grouped - mean) * inside
    variance = centered.square().sum((2, 3, 4), keepdim=True) / count
    normed = (centered * torch.rsqrt(variance + norm.eps)).flatten(1, 2)
    if norm.affine:
        normed = normed * norm.weight[:, None, None] + norm.bias[:, None, None]
    dtype = grouped.dtype if x.is_cuda and torch.is_autocast_enabled("cuda") else x.dtype
    return normed.to(dtype).masked_fill(mask[:, None], 0.0)


def masked_features(backbone: nn.Module, images: Tensor, padding_mask: Tensor) -> tuple[Maps, Maps]:
    """Computes feature maps (N, C, H, W) that are zero on padding and do not depend on it.

    A backbone with the attribute ``masks_padding``, such as `ResNet`, also receives the padding mask. Others, whose
    attention windows, norms or interpolations would include padding, are applied separately to images of each size.

    Returns:
        Feature maps and their padding masks (N, H, W), by name.
    """
    if getattr(backbone, "masks_padding", False):
        features: Maps = backbone(images, padding_mask)
        return features, {name: resize_mask(padding_mask, feature.shape[-2:]) for name, feature in features.items()}
    groups = defaultdict(list)
    for index, size in enumerate(_input_sizes(backbone, padding_mask)):
        groups[size].append(index)
    parts = []
    for (height, width), indices in groups.items():
        mask = padding_mask[indices, :height, :width]
        part = backbone(images[indices, :, :height, :width])
        parts.append((part, {name: resize_mask(mask, feature.shape[-2:]) for name, feature in part.items()}))
    order = torch.tensor([index for indices in groups.values() for index in indices]).argsort().tolist()
    features, masks = {}, {}
    for name in parts[0][0]:
        maps = [part[name].masked_fill(mask[name][:, None], 0.0) for part, mask in parts]
        height, width = (max(feature.shape[side] for feature in maps) for side in (-2, -1))
        features[name] = torch.cat([_pad(feature, height, width, 0.0) for feature in maps])[order]
        masks[name] = torch.cat([_pad(mask[name], height, width, True) for _, mask in parts])[order]
    return features, masks


def _pad(x: Tensor, height: int, width: int, value: float) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), value=value)


def _input_sizes(backbone: nn.Module, padding_mask: Tensor) -> list[tuple[int, int]]:
    """Returns the size of each image, padded to the constraints of a Detectron2 backbone as in a batch of one."""
    height, width = padding_mask.shape[-2:]
    constraints: Mapping[str, int] = getattr(backbone, "padding_constraints", None) or {}
    if constraints.get("square_size", 0) > 0:
        return [(height, width)] * len(padding_mask)
    step = max(1, getattr(backbone, "size_divisibility", 0))
    sizes = image_sizes(padding_mask)
    return [(min(height, -(-h // step) * step), min(width, -(-w // step) * step)) for h, w in sizes]
