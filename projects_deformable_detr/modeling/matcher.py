"""Hungarian matching of queries to targets (arXiv 2005.12872, eq. 1), for all layers at once."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from ..errors import ArgumentError, NonNegative, UserError, check_ranges
from .losses import Classification
from .structures import Match, Predictions, Targets, image_name

_Array = npt.NDArray[np.float32]


class HungarianMatcher:
    """Finds the one-to-one assignment of queries to targets with the lowest total cost, for every layer and image.

    The cost is ``cost_class * classification cost + cost_bbox * L1 - cost_giou * GIoU`` on normalized boxes.

    Args:
        classification: the criterion's classification loss.
        cost_class, cost_bbox, cost_giou: weights, not all 0.
    """

    def __init__(
        self,
        classification: Classification,
        cost_class: NonNegative = 2.0,
        cost_bbox: NonNegative = 5.0,
        cost_giou: NonNegative = 2.0,
    ) -> None:
        check_ranges(HungarianMatcher, locals())
        if cost_class == cost_bbox == cost_giou == 0:
            raise ArgumentError("cost_class", "must not be 0 if `cost_bbox` and `cost_giou` are 0")
        self.classification = classification
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the assignment runs on the host
    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, targets: list[Targets], first_layer: int = 0
    ) -> tuple[Match, Match | None]:
        """Matches all decoder layers, and the proposals of a two-stage model, with one device-to-host copy.

        Args:
            predictions: predictions of N images.
            targets: N items, on the predictions' device.
            first_layer: index of the first decoder layer in ``predictions``, for error messages.

        Returns:
            The match of the decoder layers, and the match of the proposals (one layer; every target has class 0) or
            None.

        Raises:
            UserError: if an image has more targets than queries, or a cost is not finite.
        """
        labels, boxes = _pad(targets)
        costs = [self._cost(predictions.logits, predictions.boxes, labels, boxes)]
        names = [[f"decoder layer {first_layer + index}" for index in range(len(predictions.logits))]]
        if predictions.proposals is not None:
            logits, proposed = (tensor[None] for tensor in predictions.proposals)
            costs.append(self._cost(logits, proposed, torch.zeros_like(labels), boxes))
            names.append(["the encoder proposals"])
        device = predictions.logits.device
        matches = [_assign(cost, targets, layers, device) for cost, layers in zip(_to_host(costs), names, strict=True)]
        return matches[0], matches[1] if len(matches) > 1 else None

    def _cost(self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
        """Computes costs (layers, N, Q, T): logits (layers, N, Q, classes), boxes (layers, N, Q, 4), labels (N, T)."""
        layers = logits.shape[0]
        boxes = boxes.float()
        labels = labels.expand(layers, *labels.shape)
        target_boxes = target_boxes.expand(layers, *target_boxes.shape)
        giou = generalized_box_iou(box_convert(boxes, "cxcywh", "xyxy"), box_convert(target_boxes, "cxcywh", "xyxy"))
        return (
            self.cost_class * self.classification.cost(logits.float(), labels)
            + self.cost_bbox * torch.cdist(boxes, target_boxes, p=1)
            - self.cost_giou * giou
        )


def _pad(targets: list[Targets]) -> tuple[Tensor, Tensor]:
    """Pads labels to (N, T) and boxes to (N, T, 4), where T is the largest number of targets."""
    labels = torch.nn.utils.rnn.pad_sequence([target.labels for target in targets], batch_first=True)
    boxes = torch.nn.utils.rnn.pad_sequence(
        [target.boxes.float() for target in targets], batch_first=True, padding_value=0.5
    )
    return labels, boxes


def _to_host(costs: list[Tensor]) -> list[_Array]:
    """Copies all costs to the host at once; no other operation of a training step synchronizes with the device."""
    flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
    ends = np.cumsum([cost.numel() for cost in costs])
    return [part.reshape(cost.shape) for part, cost in zip(np.split(flat, ends[:-1]), costs, strict=True)]


def _assign(costs: _Array, targets: list[Targets], names: list[str], device: torch.device) -> Match:
    """Solves the assignments for costs (layers, N, Q, T); the targets of an image are the first columns."""
    from scipy.optimize import linear_sum_assignment  # inference does not need it, and its import takes 0.4 s

    sizes = [len(target) for target in targets]
    layers, _, num_queries, _ = costs.shape
    offsets = np.cumsum([0, *sizes[:-1]])
    queries: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(layers)]
    matched: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(layers)]
    for image, size in enumerate(sizes):
        if size > num_queries:
            raise UserError(
                f"{image_name(targets, image)} has {size} ground-truth boxes, but there are {num_queries} queries: "
                "increase `num_queries` (a two-stage model has at most one query per token: enlarge small images)"
            )
        for layer in range(layers):
            cost = costs[layer, image, :, :size]
            if not np.isfinite(cost).all():
                raise UserError(
                    f"the matching cost of {image_name(targets, image)} in {names[layer]} is not finite: training "
                    "diverged (lower `base_lr`), or an input image or ground-truth box is not finite"
                )
            rows, columns = linear_sum_assignment(cost)
            queries[layer].append(rows)
            matched[layer].append(columns + offsets[image])
    pairs = np.stack([[np.concatenate(part) for part in parts] for parts in (queries, matched)]).astype(np.int64)
    query, target = torch.from_numpy(pairs).to(device, non_blocking=True)  # (layers, M) each
    images = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(device, non_blocking=True)
    return Match(images, query, target)
