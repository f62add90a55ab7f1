"""From predictions to detections: the best scores of the last layer, no threshold, no NMS."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from .classification import class_scores
from .masks import instance_masks
from .structures import Detections, Predictions


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    image_sizes: Sequence[tuple[int, int]],
    topk: int = 100,
    classes: Sequence[int] | None = None,
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
        classes: give detections of these classes only, such as the things of a panoptic model; None: of all. The others
            take none of the ``topk``: their sigmoid scores are not looked at, and softmax queries whose best class is
            one of them are left out.
        score_threshold: leave out detections of lower scores.

    Raises:
        ValueError: if the number of sizes is not N, topk is less than 1, or ``classes`` has what is no class.
    """
    logits, boxes = predictions.logits[-1].float(), predictions.boxes[-1].float()
    if len(image_sizes) != len(logits):
        raise ValueError(f"predictions are of {len(logits)} images, image_sizes of {len(image_sizes)}")
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    wanted = _wanted(classes, predictions.num_classes, logits.device)
    scores, labels, query = _best(
        class_scores(logits, predictions.no_object), topk, wanted, one_each=predictions.no_object
    )
    corners = box_convert(boxes, "cxcywh", "xyxy").gather(1, query[..., None].expand(-1, -1, 4))
    detections = []
    for image, (height, width) in enumerate(image_sizes):
        kept = (scores[image] >= score_threshold) & (scores[image] >= 0)  # -1: not of a class that is wanted
        scaled = corners[image, kept] * corners.new_tensor((width, height, width, height))
        masks = None
        if predictions.masks is not None:
            masks = instance_masks(predictions.masks, image, query[image, kept], (height, width))
        boxes = clip_boxes_to_image(scaled, (height, width))
        detections.append(Detections(boxes, scores[image, kept], labels[image, kept], masks, query[image, kept]))
    return detections


def _wanted(classes: Sequence[int] | None, num_classes: int, device: torch.device) -> Tensor | None:
    """The wanted classes (K,), or None for all."""
    if classes is None or list(classes) == list(range(num_classes)):
        return None
    wrong = [index for index in classes if not 0 <= index < num_classes]
    if wrong:
        raise ValueError(f"classes {wrong} are none of the {num_classes} classes (0 to {num_classes - 1})")
    return torch.tensor(list(classes), dtype=torch.int64, device=device)


def _best(scores: Tensor, topk: int, wanted: Tensor | None, one_each: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (N, Q, classes) to the best scores, their classes and queries, (N, K) each; ``one_each``: of a query.

    With ``one_each``, queries of classes that are not wanted come last, with score -1, where there are not ``topk``
    others.
    """
    if one_each:
        scores, labels = scores.max(-1)
        if wanted is not None:
            scores = scores.masked_fill(~torch.isin(labels, wanted), -1.0)
        scores, query = scores.topk(min(topk, scores.shape[1]), dim=1)
        return scores, labels.gather(1, query), query
    if wanted is not None:
        scores = scores[..., wanted]
    classes = scores.shape[-1]
    scores, best = scores.flatten(1).topk(min(topk, scores.shape[1] * classes), dim=1)
    labels = best % classes
    return scores, labels if wanted is None else wanted[labels], torch.div(best, classes, rounding_mode="floor")
