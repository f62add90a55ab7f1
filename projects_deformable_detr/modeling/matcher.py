"""Hungarian matching of queries to targets (arXiv 2005.12872, eq. 1), for all layers at once."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from ..errors import UserError
from .classification import Classification
from .structures import Predictions, Targets


@dataclass(frozen=True)
class Match:
    """Matched pairs of one set of predictions with ``layers`` layers, M pairs in each.

    Every target of every image is matched once in each layer, so that all layers have the same M and the same
    images in the same order.

    Attributes:
        image: (M,) int64, the image of a pair.
        query: (layers, M) int64, its query.
        target: (layers, M) int64, its target, counted over the whole batch.
    """

    image: Tensor
    query: Tensor
    target: Tensor


class HungarianMatcher:
    """Finds, for every layer and image, the cheapest one-to-one assignment of queries to targets.

    The cost is ``class_weight * class cost + l1_weight * L1 + giou_weight * -GIoU`` on normalised boxes.
    """

    def __init__(
        self, classification: Classification, class_weight: float, l1_weight: float, giou_weight: float
    ) -> None:
        if class_weight == l1_weight == giou_weight == 0:
            raise UserError("all matching costs are 0: set one of MODEL.DETR.COST_CLASS, COST_BBOX, COST_GIOU")
        self.classification = classification
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, targets: list[Targets], first_layer: int = 0
    ) -> tuple[Match, Match | None]:
        """Matches all decoder layers, and the proposals of a two-stage model, with one copy from the device.

        Args:
            predictions: of N images.
            targets: N items, on the predictions' device.
            first_layer: the number of the first decoder layer in ``predictions``, for errors.

        Returns:
            The match of the decoder's layers, and that of the proposals (one layer; all targets are of class 0
            there) or None.

        Raises:
            UserError: if an image has more targets than there are queries, or a cost is not finite; it
                names the image, and the layer.
        """
        sizes = [len(target) for target in targets]
        labels, boxes = _pad(targets)
        costs = [self._cost(predictions.logits, predictions.boxes, labels, boxes)]
        if predictions.proposals is not None:
            logits, proposed = (tensor[None] for tensor in predictions.proposals)
            costs.append(self._cost(logits, proposed, torch.zeros_like(labels), boxes))
        decoder = [f"decoder layer {first_layer + index}" for index in range(len(predictions.logits))]
        names, device = (decoder, ["the encoder proposals"]), predictions.logits.device
        matches = [_assign(cost, sizes, layers, device) for cost, layers in zip(_to_host(costs), names, strict=False)]
        return matches[0], matches[1] if len(matches) > 1 else None

    def _cost(self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
        """logits (layers, N, Q, classes), boxes (layers, N, Q, 4), labels (N, T) to (layers, N, Q, T)."""
        layers = logits.shape[0]
        boxes = boxes.float()
        labels = labels.expand(layers, *labels.shape)
        target_boxes = target_boxes.expand(layers, *target_boxes.shape)
        overlap = generalized_box_iou(box_convert(boxes, "cxcywh", "xyxy"), box_convert(target_boxes, "cxcywh", "xyxy"))
        return (
            self.class_weight * self.classification.cost(logits.float(), labels)
            + self.l1_weight * torch.cdist(boxes, target_boxes, p=1)
            - self.giou_weight * overlap
        )


def _pad(targets: list[Targets]) -> tuple[Tensor, Tensor]:
    """Labels (N, T) and boxes (N, T, 4) with T the largest number of targets; the padding is never read back."""
    labels = torch.nn.utils.rnn.pad_sequence([target.labels for target in targets], batch_first=True)
    boxes = torch.nn.utils.rnn.pad_sequence(
        [target.boxes.float() for target in targets], batch_first=True, padding_value=0.5
    )
    return labels, boxes


def _to_host(costs: list[Tensor]) -> list[np.ndarray]:
    """All costs in one copy, which is the only point of a step where the host waits for the device."""
    flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
    ends = np.cumsum([cost.numel() for cost in costs])
    return [part.reshape(cost.shape) for part, cost in zip(np.split(flat, ends[:-1]), costs, strict=True)]


def _assign(costs: np.ndarray, sizes: list[int], names: list[str], device: torch.device) -> Match:
    """costs (layers, N, Q, T), of which each image has its own first columns, to pairs; names of the layers."""
    layers, _, num_queries, _ = costs.shape
    offsets = np.cumsum([0, *sizes[:-1]])
    queries: list[list[np.ndarray]] = [[] for _ in range(layers)]
    found: list[list[np.ndarray]] = [[] for _ in range(layers)]
    for image, size in enumerate(sizes):
        if size > num_queries:
            raise UserError(
                f"image {image} of the batch has {size} ground-truth boxes, more than the {num_queries} queries "
                "that could find them: raise MODEL.DETR.NUM_OBJECT_QUERIES (a two-stage model has no more queries than "
                "its images have tokens: enlarge images as tiny as that)"
            )
        for layer in range(layers):
            cost = costs[layer, image, :, :size]
            if not np.isfinite(cost).all():
                raise UserError(
                    f"the matching cost of image {image} of the batch in {names[layer]} is not finite: the "
                    "predictions diverged (lower SOLVER.BASE_LR, check the input) or a ground-truth box is not finite"
                )
            rows, columns = linear_sum_assignment(cost)
            queries[layer].append(rows)
            found[layer].append(columns + offsets[image])
    pairs = np.stack([[np.concatenate(part) for part in parts] for parts in (queries, found)]).astype(np.int64)
    moved = torch.from_numpy(pairs).to(device, non_blocking=True)  # (2, layers, M)
    images = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(device, non_blocking=True)
    return Match(images, moved[0], moved[1])
