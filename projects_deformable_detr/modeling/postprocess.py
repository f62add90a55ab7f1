"""Converts predictions to detections and panoptic segmentations."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, clip_boxes_to_image

from .mask_head import resize_mask_logits
from .structures import Detections, MaskLogits, Predictions


@dataclass(frozen=True)
class PanopticSegmentation:
    """Panoptic segmentation of one image; each pixel belongs to at most one segment.

    Attributes:
        ids: (H, W) int32 segment ids from 1; 0 (void) only if no segment was found.
        segments: in order of ids: ``id``, ``category_id`` (contiguous), ``isthing``, ``score`` of the best query in
            [0, 1], and ``area`` in pixels; ``segments_info`` in Detectron2.
    """

    ids: Tensor
    segments: list[dict[str, Any]]


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    image_sizes: Sequence[tuple[int, int]],
    topk: int = 100,
    classes: Sequence[int] | None = None,
    score_threshold: float = 0.0,
) -> list[Detections]:
    """Selects the detections of every image, best first.

    Sigmoid scores (arXiv 2010.04159, appendix A.4): the ``min(topk, Q * classes)`` best pairs of query and class.
    Softmax (arXiv 2005.12872, section 4): the ``min(topk, Q)`` best queries, with their best class apart from "no
    object". Queries that represent padding are dropped.

    Args:
        predictions: predictions of N images.
        image_sizes: N sizes (H, W) in pixels for boxes and masks, usually the sizes of the original files.
        topk: maximum number of detections, >= 1.
        classes: classes of the detections, such as the things of a panoptic model; None for all. Other
            classes do not count toward ``topk``: their sigmoid scores are ignored, and softmax queries with another
            best class are dropped.
        score_threshold: minimum score of a detection.

    Raises:
        ValueError: if the number of sizes is not N, ``topk`` is less than 1, or ``classes`` has unknown classes.
    """
    _check_sizes(predictions, image_sizes)
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    scores, labels, query = top_scores(predictions, topk, classes)
    corners = box_convert(predictions.boxes[-1].float(), "cxcywh", "xyxy").gather(1, query[..., None].expand(-1, -1, 4))
    detections = []
    for image, (height, width) in enumerate(image_sizes):
        # 0: padding (logit -1e4), -1: another class, see `top_scores`.
        kept = (scores[image] >= score_threshold) & (scores[image] > 0)
        scaled = corners[image, kept] * corners.new_tensor((width, height, width, height))
        masks = None
        if predictions.masks is not None:
            masks = instance_masks(predictions.masks, image, query[image, kept], (height, width))
        boxes = clip_boxes_to_image(scaled, (height, width))
        detections.append(Detections(boxes, scores[image, kept], labels[image, kept], masks, query[image, kept]))
    return detections


@torch.no_grad()
def panoptic_postprocess(
    predictions: Predictions,
    image_sizes: Sequence[tuple[int, int]],
    things: Collection[int],
    score_threshold: float = 0.85,
    min_area: int = 4,
) -> list[PanopticSegmentation]:
    """Computes the panoptic segmentations of all images (arXiv 2005.12872, section 4.4).

    Each query is assigned its most likely class; queries with class "no object" or a score not above the threshold are
    dropped. A pixel belongs to the mask with the largest logit. Stuff masks of one class form one segment. Segments of
    at most ``min_area`` pixels are dropped and their pixels reassigned to the remaining masks, until all segments are
    larger. Reassignment considers all masks of a stuff segment, while the published code keeps only the first one.

    Args:
        predictions: predictions of N images, with masks.
        image_sizes: N sizes (H, W) in pixels, usually the sizes of the original files.
        things: classes of things; the others are stuff.
        score_threshold: in [0, 1).
        min_area: in pixels of ``image_sizes``, >= 0.

    Raises:
        ValueError: if the predictions have no masks, or the number of sizes is not N.
    """
    if predictions.masks is None:
        raise ValueError("panoptic segmentation needs a detector with a mask head")
    _check_sizes(predictions, image_sizes)
    logits = predictions.logits[-1].float()
    scores, labels = (logits.softmax(-1) if predictions.no_object else logits.sigmoid()).max(-1)
    kept = scores > score_threshold
    if predictions.no_object:
        kept &= labels != logits.shape[-1] - 1
    segmentations = []
    for image, size in enumerate(image_sizes):
        queries = kept[image].nonzero()[:, 0]
        masks = image_logits(predictions.masks, image, queries)
        segmentations.append(
            _segment(masks, scores[image, queries], labels[image, queries].tolist(), size, things, min_area)
        )
    return segmentations


def image_logits(masks: MaskLogits, image: int, queries: Tensor) -> Tensor:
    """Computes mask logits (K, h, w) of one image's queries (K,) at the size of the input image without padding."""
    height, width = masks.image_sizes[image]
    logits = masks.padding_mask.new_zeros(len(queries), height, width, dtype=torch.float32)
    for out, chunk in zip(logits.split(masks.chunk_size), queries.split(masks.chunk_size), strict=True):
        if not len(chunk):
            continue
        found = masks(torch.full_like(chunk, image), chunk).float()
        if masks.logit_sizes is None:
            out.copy_(resize_mask_logits(found, masks.padding_mask.shape[-2:])[:, :height, :width])
        else:
            rows, columns = masks.logit_sizes[image]
            out.copy_(resize_mask_logits(found[:, :rows, :columns], (height, width)))
    return logits


def instance_masks(masks: MaskLogits, image: int, queries: Tensor, size: tuple[int, int]) -> Tensor:
    """Computes masks (K, *size) bool of one image's queries (K,), which may repeat.

    Logits at the size of the input image are thresholded at probability 1/2, and the masks are resized to ``size`` by
    nearest-neighbor interpolation, as in the published code.
    """
    rows = defaultdict(list)
    for row, query in enumerate(queries.tolist()):
        rows[query].append(row)
    result = masks.padding_mask.new_zeros(len(queries), *size)  # filled in place to limit the peak memory
    for chunk in queries.unique().split(masks.chunk_size):
        binary = (image_logits(masks, image, chunk) > 0).to(torch.uint8)
        for query, mask in zip(chunk.tolist(), binary, strict=True):
            resized = F.interpolate(mask[None, None], size=tuple(size), mode="nearest")[0, 0]
            for row in rows[query]:
                result[row] = resized
    return result


def _check_sizes(predictions: Predictions, image_sizes: Sequence[tuple[int, int]]) -> None:
    if len(image_sizes) != predictions.logits.shape[1]:
        raise ValueError(f"predictions have {predictions.logits.shape[1]} images, image_sizes {len(image_sizes)}")


def top_scores(
    predictions: Predictions, topk: int, classes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the best scores (N, K) of the last layer, with their classes and queries.

    With "no object", each query has one score; queries whose best class is not in ``classes`` come last with score -1.
    """
    scores, num_classes = predictions.scores(), predictions.num_classes
    allowed = None
    if classes is not None and list(classes) != list(range(num_classes)):
        unknown = [index for index in classes if not 0 <= index < num_classes]
        if unknown:
            raise ValueError(f"classes {unknown} are not among the {num_classes} classes (0 to {num_classes - 1})")
        allowed = torch.tensor(list(classes), dtype=torch.int64, device=scores.device)
    if predictions.no_object:
        scores, labels = scores.max(-1)
        if allowed is not None:
            scores = scores.masked_fill(~torch.isin(labels, allowed), -1.0)
        scores, query = scores.topk(min(topk, scores.shape[1]), dim=1)
        return scores, labels.gather(1, query), query
    if allowed is not None:
        scores = scores[..., allowed]
    width = scores.shape[-1]
    scores, best = scores.flatten(1).topk(min(topk, scores.shape[1] * width), dim=1)
    labels = best % width
    return scores, labels if allowed is None else allowed[labels], torch.div(best, width, rounding_mode="floor")


def _segment(
    masks: Tensor, scores: Tensor, labels: list[int], size: tuple[int, int], things: Collection[int], min_area: int
) -> PanopticSegmentation:
    """Segments one image from mask logits (K, h, w), scores (K,) and labels of the kept queries."""
    # The segment of each query is its own index, or for stuff the index of the first query of its class.
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
            return _number_segments(owners, areas, scores, labels, things, segment_of)
        alive &= large
    return PanopticSegmentation(torch.zeros(size, dtype=torch.int32, device=masks.device), [])


def _number_segments(
    owners: Tensor, areas: Tensor, scores: Tensor, labels: list[int], things: Collection[int], segment_of: Tensor
) -> PanopticSegmentation:
    """Numbers the segments of owners (H, W), indices of queries, from 1."""
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
