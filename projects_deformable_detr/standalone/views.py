"""Test-time augmentation (``TEST.AUG``): several views of an image, one set of detections."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ..config.checks import check_views
from ..modeling import Detections, Predictions, best_of_views, postprocess
from ..modeling.masks import instance_masks
from ..modeling.structures import MaskLogits
from .augment import resized


@dataclass(frozen=True)
class Views:
    """What each image is seen as.

    Attributes:
        min_sizes: the shorter side becomes each of them, in pixels.
        max_size: but the longer side at most this.
        flip: each view also mirrored.
        nms_threshold: detections of one class that overlap by more (IoU) are of one object.
    """

    min_sizes: tuple[int, ...]
    max_size: int
    flip: bool
    nms_threshold: float

    @classmethod
    def of(cls, cfg: Any) -> "Views | None":
        """Those of ``TEST.AUG``; None where it is off.

        Raises:
            UserError: as `check_views`.
        """
        keys = cfg.TEST.AUG
        if not keys.ENABLED:
            return None
        check_views(cfg)
        return cls(tuple(keys.MIN_SIZES), keys.MAX_SIZE, keys.FLIP, cfg.MODEL.DETR.TTA_NMS_THRESH)

    def detect(
        self, predict: Callable[[Tensor], Predictions], images: Tensor, topk: int, **options: Any
    ) -> list[Detections]:
        """Detections of N images of one size, in their pixels, the ``topk`` best of all views.

        Args:
            predict: the model, from (N, 3, h, w) uint8.
            images: (N, 3, H, W) uint8.
            topk: of each view, and of all.
            options: further ones of `postprocess`.
        """
        size = images.shape[-2], images.shape[-1]
        found: list[list[_Seen]] = [[] for _ in images]
        for shorter in self.min_sizes:
            view = transforms.resize(images, list(resized(*size, shorter, self.max_size)), antialias=True)
            for mirrored in (False, True) if self.flip else (False,):
                predictions = predict(view.flip(-1) if mirrored else view)
                # Masks of all views would be most of the memory in use: they wait until it is known which are wanted.
                boxes = postprocess(replace(predictions, masks=None), [size] * len(images), topk, **options)
                for image, item in enumerate(boxes):
                    found[image].append(_Seen(item, mirrored, predictions.masks))
        return [self._merged(seen, image, size, topk) for image, seen in enumerate(found)]

    def _merged(self, seen: list["_Seen"], image: int, size: tuple[int, int], topk: int) -> Detections:
        """Of one image."""
        scores, labels = (torch.cat([getattr(one.found, name) for one in seen]) for name in ("scores", "labels"))
        boxes = torch.cat([one.boxes(size[1]) for one in seen])
        boxes, kept = best_of_views(boxes, scores, labels, size, self.nms_threshold, topk)
        masks = None
        if seen[0].masks is not None:
            masks = torch.zeros(len(kept), *size, dtype=torch.bool, device=boxes.device)
            ends = torch.tensor([len(one.found.scores) for one in seen], device=kept.device).cumsum(0)
            views = torch.bucketize(kept, ends, right=True)
            for index, one in enumerate(seen):
                rows = (views == index).nonzero()[:, 0]
                masks[rows] = one.masks_of(image, kept[rows] - ends[index] + len(one.found.scores), size)
        return Detections(boxes, scores[kept], labels[kept], masks)


@dataclass(frozen=True)
class _Seen:
    """What was found in one view of an image; ``masks`` are of all images of the batch, in the view's pixels."""

    found: Detections
    mirrored: bool
    masks: MaskLogits | None

    def boxes(self, width: int) -> Tensor:
        """In pixels of the image, which is not mirrored."""
        if not self.mirrored:
            return self.found.boxes
        left, top, right, bottom = self.found.boxes.unbind(1)
        return torch.stack([width - right, top, width - left, bottom], 1)

    def masks_of(self, image: int, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """Of chosen detections, (len(rows), H, W) bool in pixels of the image."""
        assert self.masks is not None and self.found.queries is not None
        masks = instance_masks(self.masks, image, self.found.queries[rows], size)
        return masks.flip(-1) if self.mirrored else masks
