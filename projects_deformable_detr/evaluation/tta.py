"""Test-time augmentation: detections from resized and flipped views of an image, merged by class-wise NMS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image
from torchvision.transforms.v2 import functional as transforms

from ..data.images import resize_shortest_edge
from ..errors import ArgumentError, Fraction, PositiveInt, Range, check_ranges
from ..modeling import Detections, Predictions, postprocess
from ..modeling.postprocess import instance_masks
from ..modeling.structures import MaskLogits


@dataclass(frozen=True)
class TestTimeAugmentationConfig:
    """Views of an image and parameters for merging their detections.

    Attributes:
        min_sizes: lengths of the shorter side in pixels, one view each.
        max_size: upper limit of the longer side.
        flip: whether to add a horizontally flipped copy of each view.
        nms_threshold: IoU above which two detections of one class are duplicates.
    """

    __test__: ClassVar[bool] = False  # not a test case of pytest

    min_sizes: Annotated[tuple[int, ...], Range(1)]
    max_size: PositiveInt
    flip: bool
    nms_threshold: Fraction

    def __post_init__(self) -> None:
        check_ranges(TestTimeAugmentationConfig, vars(self))
        if not self.min_sizes:
            raise ArgumentError("min_sizes", "must be sizes in pixels, got ()")


@dataclass(frozen=True)
class _View:
    """Detections of each image in pixels of the original image, and mask logits in pixels of the view."""

    detections: list[Detections]
    mask_logits: MaskLogits | None
    is_flipped: bool

    def masks(self, image: int, size: tuple[int, int], rows: Tensor) -> Tensor:
        """Returns masks (len(rows), *size) bool of some detections of one image."""
        queries = self.detections[image].queries
        assert self.mask_logits is not None and queries is not None
        masks = instance_masks(self.mask_logits, image, queries[rows], size)
        return masks.flip(-1) if self.is_flipped else masks


def detect_with_tta(
    predict: Callable[[Tensor], Predictions],
    images: Tensor,
    config: TestTimeAugmentationConfig,
    topk: int,
    classes: Sequence[int] | None = None,
    score_threshold: float = 0.0,
) -> list[Detections]:
    """Returns the detections in N images of the same size, in pixels of the images.

    Args:
        predict: model that accepts images (N, 3, h, w) uint8.
        images: (N, 3, H, W) uint8.
        config: views and merging.
        topk: maximum number of detections of each view, and after merging.
        classes, score_threshold: as in `postprocess`.
    """
    height, width = size = images.shape[-2], images.shape[-1]
    views = []
    for min_size in config.min_sizes:
        resized = transforms.resize(
            images, list(resize_shortest_edge(*size, min_size, config.max_size)), antialias=True
        )
        for is_flipped in (False, True) if config.flip else (False,):
            predictions = predict(resized.flip(-1) if is_flipped else resized)
            # Masks use most of the memory, so they are only computed for the detections that remain after merging.
            detections = postprocess(
                replace(predictions, masks=None), [size] * len(images), topk, classes, score_threshold
            )
            if is_flipped:
                detections = [replace(item, boxes=_flip_boxes(item.boxes, width)) for item in detections]
            views.append(_View(detections, predictions.masks, is_flipped))

    return [
        merge_views(
            [view.detections[image] for view in views],
            size,
            config.nms_threshold,
            topk,
            None if views[0].mask_logits is None else [partial(view.masks, image, size) for view in views],
        )
        for image in range(len(images))
    ]


def merge_views(
    views: Sequence[Detections],
    size: tuple[int, int],
    nms_threshold: float,
    topk: int,
    masks: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> Detections:
    """Merges the detections of several views of one image by class-wise NMS.

    Args:
        views: detections of each view in pixels of the image; their masks are ignored.
        size: (H, W) of the image.
        nms_threshold: IoU above which two detections of one class are duplicates; the best one is kept.
        topk: maximum number of detections.
        masks: for each view, a function that returns masks (K, H, W) bool in pixels of the image for indices (K,) of
            detections; only called for the merged detections. None: no masks.
    """
    boxes = clip_boxes_to_image(torch.cat([view.boxes for view in views]), size)
    scores = torch.cat([view.scores for view in views])
    labels = torch.cat([view.labels for view in views])
    kept = batched_nms(boxes, scores, labels, nms_threshold)[:topk]
    merged = None
    if masks is not None:
        merged = torch.zeros(len(kept), *size, dtype=torch.bool, device=boxes.device)
        start = 0
        for view, view_masks in zip(views, masks, strict=True):
            end = start + len(view.scores)
            rows = ((kept >= start) & (kept < end)).nonzero()[:, 0]
            if len(rows):
                merged[rows] = view_masks(kept[rows] - start)
            start = end
    return Detections(boxes[kept], scores[kept], labels[kept], merged)


def _flip_boxes(boxes: Tensor, width: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack([width - right, top, width - left, bottom], 1)
