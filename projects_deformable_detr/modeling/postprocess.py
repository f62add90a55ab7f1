"""From predictions to detections: the best scores of the last layer, no threshold, no NMS."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, clip_boxes_to_image

from .classification import class_scores
from .masks import instance_masks
from .structures import Detections, Predictions


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    image_sizes: Sequence[tuple[int, int]],
    topk: int = 100,
    num_things: int | None = None,
    score_threshold: float = 0.0,
) -> list[Detections]:
    """Detections of every image, best first.

    Sigmoid scores (arXiv 2010.04159, appendix A.4): a query gives one detection for each class among the
    ``min(topk, Q * classes)`` best scores of its image. Softmax (arXiv 2005.12872, section 4): a query gives one
    detection, of its best class, "no object" apart; the ``min(topk, Q)`` best.

    Args:
        predictions: of N images.
        image_sizes: N sizes (H, W) in pixels in which boxes and masks are wanted, usually those of the original files.
        topk: how many detections at the most, >= 1.
        num_things: give detections of the first ``num_things`` classes only, the others being stuff; None: of all.
            Stuff takes none of the ``topk``: its sigmoid scores are not looked at, and softmax queries whose best class
            it is are left out.
        score_threshold: leave out detections of lower scores.

    Raises:
        ValueError: if the number of sizes is not N or topk is less than 1.
    """
    logits, boxes = predictions.logits[-1].float(), predictions.boxes[-1].float()
    if len(image_sizes) != len(logits):
        raise ValueError(f"predictions are of {len(logits)} images, image_sizes of {len(image_sizes)}")
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    num_things = predictions.num_classes if num_things is None else num_things
    scores, labels, query = _best(
        class_scores(logits, predictions.no_object), topk, num_things, one_each=predictions.no_object
    )
    corners = box_convert(boxes, "cxcywh", "xyxy").gather(1, query[..., None].expand(-1, -1, 4))
    detections = []
    for image, (height, width) in enumerate(image_sizes):
        kept = (labels[image] < num_things) & (scores[image] >= score_threshold)
        scaled = corners[image, kept] * corners.new_tensor((width, height, width, height))
        masks = None
        if predictions.masks is not None:
            masks = instance_masks(predictions.masks, image, query[image, kept], (height, width))
        boxes = clip_boxes_to_image(scaled, (height, width))
        detections.append(Detections(boxes, scores[image, kept], labels[image, kept], masks))
    return detections


def best_of_views(
    boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int], nms_threshold: float, topk: int
) -> tuple[Tensor, Tensor]:
    """One set of detections of an image from those of several views of it, which find each object once each.

    Args:
        boxes: (K, 4) of all views, as (x1, y1, x2, y2) in pixels of the image.
        scores, labels: (K,) of them.
        size: (H, W) of the image.
        nms_threshold: of boxes of one class that overlap by more (IoU), the best stays.
        topk: how many stay at the most.

    Returns:
        boxes (M, 4), clipped to the image, best score first, and which ones they are, (M,) int64.
    """
    boxes = clip_boxes_to_image(boxes, size)
    kept = batched_nms(boxes, scores, labels, nms_threshold)[:topk]
    return boxes[kept], kept


def _best(scores: Tensor, topk: int, num_things: int, one_each: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (N, Q, classes) to the best scores, their classes and queries, (N, K) each; ``one_each``: of a query.

    With ``one_each``, queries of stuff come last, where there are not ``topk`` others.
    """
    if one_each:
        scores, labels = scores.max(-1)
        scores = scores.masked_fill(labels >= num_things, -1.0)
        scores, query = scores.topk(min(topk, scores.shape[1]), dim=1)
        return scores, labels.gather(1, query), query
    scores = scores[..., :num_things]
    classes = scores.shape[-1]
    scores, best = scores.flatten(1).topk(min(topk, scores.shape[1] * classes), dim=1)
    return scores, best % classes, torch.div(best, classes, rounding_mode="floor")
