"""The shared augmentation policy on one image, its boxes and its masks, by torchvision's transforms v2."""

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
    shapes: np.ndarray | None = None,
) -> tuple[Image.Image, BoundingBoxes, Tensor | None]:
    """Carries out the policy with decisions drawn from ``rng``; boxes are clipped and may lose their area.

    ``shapes``: masks (T, H, W) bool, or None; they become a tensor of the new size, resized by nearest neighbour.
    """
    outlines = None if shapes is None else Mask(torch.from_numpy(shapes))

    def both(operation: Callable[..., Any], *arguments: Any) -> None:
        nonlocal image, boxes, outlines
        image, boxes = operation(image, *arguments), operation(boxes, *arguments)
        if outlines is not None and operation is transforms.resize:  # its own takes a pixel's corner for its middle
            wanted = {"size": arguments[0], "mode": "nearest-exact"}
            # One channel each: interpolate takes a batch of none, but no image of no channels.
            outlines = Mask(nn.functional.interpolate(outlines[:, None].to(torch.uint8), **wanted)[:, 0].bool())
        elif outlines is not None:
            outlines = operation(outlines, *arguments)

    if policy.flip_prob and rng.random() < policy.flip_prob:
        both(transforms.horizontal_flip)
    if policy.crop_prob and rng.random() < policy.crop_prob:
        shorter = int(rng.choice(policy.crop_resize))
        both(transforms.resize, list(resize_shortest_edge(image.height, image.width, shorter)))
        low, high = policy.crop_range
        height, width = (int(rng.integers(min(low, side), min(high, side) + 1)) for side in (image.height, image.width))
        top = int(rng.integers(image.height - height + 1))
        left = int(rng.integers(image.width - width + 1))
        both(transforms.crop, top, left, height, width)
    shorter = policy.min_sizes[0] if len(policy.min_sizes) == 1 else int(rng.choice(policy.min_sizes))
    size = resize_shortest_edge(image.height, image.width, shorter, policy.max_size)
    if size != (image.height, image.width):
        both(transforms.resize, list(size))
    return image, boxes, None if outlines is None else outlines.as_subclass(Tensor)
