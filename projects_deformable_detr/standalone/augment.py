"""Augmentation of an image with its boxes and masks by torchvision's transforms v2."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms
from torchvision.tv_tensors import BoundingBoxes, Mask

from ..data.images import resize_shortest_edge
from ..training import AugmentationPolicy


def augment(
    image: Image.Image,
    boxes: BoundingBoxes,
    policy: AugmentationPolicy,
    rng: np.random.Generator,
    masks: np.ndarray | None = None,
) -> tuple[Image.Image, BoundingBoxes, Tensor | None]:
    """Applies the policy with random numbers from ``rng``. Boxes are clipped to the image and may become empty.

    ``masks`` (T, H, W), bool, are returned as a tensor of the new size, resized by nearest-neighbor interpolation.
    """
    mask = None if masks is None else Mask(torch.from_numpy(masks))

    def apply(operation: Callable[..., Any], *arguments: Any) -> None:
        nonlocal image, boxes, mask
        image, boxes = operation(image, *arguments), operation(boxes, *arguments)
        if mask is not None and operation is transforms.resize:  # its "nearest" mode is shifted by half a pixel
            options = {"size": arguments[0], "mode": "nearest-exact"}
            # interpolate accepts an empty batch, but no images without channels.
            mask = Mask(nn.functional.interpolate(mask[:, None].to(torch.uint8), **options)[:, 0].bool())
        elif mask is not None:
            mask = operation(mask, *arguments)

    if policy.flip_prob and rng.random() < policy.flip_prob:
        apply(transforms.horizontal_flip)
    if policy.crop_prob and rng.random() < policy.crop_prob:
        shorter = int(rng.choice(policy.crop_resize))
        apply(transforms.resize, list(resize_shortest_edge(image.height, image.width, shorter, policy.crop_max_size)))
        low, high = policy.crop_range
        height, width = (int(rng.integers(min(low, side), min(high, side) + 1)) for side in (image.height, image.width))
        top = int(rng.integers(image.height - height + 1))
        left = int(rng.integers(image.width - width + 1))
        apply(transforms.crop, top, left, height, width)
    shorter = policy.min_sizes[0] if len(policy.min_sizes) == 1 else int(rng.choice(policy.min_sizes))
    size = resize_shortest_edge(image.height, image.width, shorter, policy.max_size)
    if size != (image.height, image.width):
        apply(transforms.resize, list(size))
    return image, boxes, None if mask is None else mask.as_subclass(Tensor)
