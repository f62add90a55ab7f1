"""From predictions to a panoptic segmentation (arXiv 2005.12872, section 4.4)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .masks import image_logits
from .structures import Predictions


@dataclass(frozen=True)
class PanopticSegmentation:
    """One image, every pixel in one segment at most.

    Attributes:
        ids: (H, W) int32 segment ids from 1; 0, void, only where nothing at all was found.
        segments: for each id, in order: ``id``, ``category_id`` (contiguous), ``isthing``, ``score`` of its best query
            in [0, 1], and ``area`` in pixels. It is what Detectron2 calls ``segments_info``.
    """

    ids: Tensor
    segments: list[dict[str, Any]]


@torch.no_grad()
def panoptic_postprocess(
    predictions: Predictions,
    image_sizes: Sequence[tuple[int, int]],
    things: Collection[int],
    score_threshold: float = 0.85,
    min_area: int = 4,
) -> list[PanopticSegmentation]:
    """Panoptic segmentations of all images.

    Each query says its best class; those that say "no object", or whose score is not over the threshold, are dropped.
    A pixel belongs to the mask with the largest logit there. Stuff masks of one class are one segment. Segments of at
    most ``min_area`` pixels are dropped and their pixels given to the other masks, until none is so small.

    Unlike the published code, which merges the stuff of a class once and then drops all its masks but the first, giving
    their pixels to the strongest mask that is left, all of them stay in the segment.

    Args:
        predictions: of N images, with masks.
        image_sizes: N sizes (H, W) in pixels, usually those of the original files.
        things: the classes that are things; the others are stuff.
        score_threshold: in [0, 1).
        min_area: in pixels of ``image_sizes``, >= 0.

    Raises:
        ValueError: if the predictions have no masks, or the number of sizes is not N.
    """
    logits = predictions.logits[-1].float()
    if predictions.masks is None:
        raise ValueError("a panoptic segmentation needs a detector with a mask head")
    if len(image_sizes) != len(logits):
        raise ValueError(f"predictions are of {len(logits)} images, image_sizes of {len(image_sizes)}")
    probability = logits.softmax(-1) if predictions.no_object else logits.sigmoid()
    scores, labels = probability.max(-1)
    kept = scores > score_threshold
    if predictions.no_object:
        kept &= labels != logits.shape[-1] - 1
    found = []
    for image, size in enumerate(image_sizes):
        queries = kept[image].nonzero()[:, 0]
        masks = image_logits(predictions.masks, image, queries)
        found.append(_segment(masks, scores[image, queries], labels[image, queries].tolist(), size, things, min_area))
    return found


def _segment(
    masks: Tensor, scores: Tensor, labels: list[int], size: tuple[int, int], things: Collection[int], min_area: int
) -> PanopticSegmentation:
    """Mask logits (K, h, w), scores (K,) and labels of the kept queries of one image."""
    # The segment of each query: its own, or for stuff that of the first query of its class.
    first = {label: index for index, label in reversed(list(enumerate(labels))) if label not in things}
    segment_of = torch.tensor([first.get(label, index) for index, label in enumerate(labels)], device=masks.device)
    alive = torch.ones(len(labels), dtype=torch.bool, device=masks.device)
    while alive.any():
        queries = alive.nonzero()[:, 0]
        owners = segment_of[queries[masks[alive].argmax(0)]]
        owners = F.interpolate(owners[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
        areas = owners.flatten().bincount(minlength=len(labels))
        large = areas[segment_of] > min_area
        if bool((large | ~alive).all()):
            return _listed(owners, areas, scores, labels, things, segment_of)
        alive &= large
    return PanopticSegmentation(torch.zeros(size, dtype=torch.int32, device=masks.device), [])


def _listed(
    owners: Tensor, areas: Tensor, scores: Tensor, labels: list[int], things: Collection[int], segment_of: Tensor
) -> PanopticSegmentation:
    """Segments numbered from 1, of owners (H, W): the query that each pixel's segment is named after."""
    numbers = torch.zeros(len(labels), dtype=torch.int32, device=owners.device)
    segments: list[dict[str, Any]] = []
    for index in areas.nonzero()[:, 0].tolist():
        numbers[index] = len(segments) + 1
        segments.append(
            {
                "id": len(segments) + 1,
                "category_id": labels[index],
                "isthing": labels[index] in things,
                "score": float(scores[segment_of == index].max()),
                "area": int(areas[index]),
            }
        )
    return PanopticSegmentation(numbers[owners], segments)
