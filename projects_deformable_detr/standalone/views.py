"""Test-time augmentation (``TEST.AUG``): several views of an image, one set of detections."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ..modeling import Detections, Predictions, best_of_views, postprocess
from .augment import resized
from .config import ConfigError


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
            ConfigError: for sizes that are none, or a panoptic model, whose segments are not merged.
        """
        keys = cfg.TEST.AUG
        if not keys.ENABLED:
            return None
        if cfg.MODEL.DETR.PANOPTIC.ENABLED:
            raise ConfigError(
                "TEST.AUG.ENABLED True merges instances, not panoptic segments: set MODEL.DETR.PANOPTIC.ENABLED or "
                "TEST.AUG.ENABLED to False"
            )
        if not keys.MIN_SIZES or min(keys.MIN_SIZES) < 1 or keys.MAX_SIZE < 1:
            sizes = f"MIN_SIZES {tuple(keys.MIN_SIZES)}, MAX_SIZE {keys.MAX_SIZE}"
            raise ConfigError(f"TEST.AUG.{sizes}: name sizes of images in pixels")
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
        found = []
        for shorter in self.min_sizes:
            view = transforms.resize(images, list(resized(*size, shorter, self.max_size)), antialias=True)
            found.append(postprocess(predict(view), [size] * len(images), topk, **options))
            if self.flip:
                mirrored = postprocess(predict(view.flip(-1)), [size] * len(images), topk, **options)
                found.append([_mirrored(item, size[1]) for item in mirrored])
        return [self._merged(list(parts), size, topk) for parts in zip(*found, strict=True)]

    def _merged(self, parts: list[Detections], size: tuple[int, int], topk: int) -> Detections:
        scores, labels = torch.cat([part.scores for part in parts]), torch.cat([part.labels for part in parts])
        boxes = torch.cat([part.boxes for part in parts])
        boxes, kept = best_of_views(boxes, scores, labels, size, self.nms_threshold, topk)
        masks = None
        if parts[0].masks is not None:
            masks = torch.cat([part.masks for part in parts if part.masks is not None])[kept]
        return Detections(boxes, scores[kept], labels[kept], masks)


def _mirrored(found: Detections, width: int) -> Detections:
    left, top, right, bottom = found.boxes.unbind(1)
    masks = None if found.masks is None else found.masks.flip(-1)
    return Detections(torch.stack([width - right, top, width - left, bottom], 1), found.scores, found.labels, masks)
