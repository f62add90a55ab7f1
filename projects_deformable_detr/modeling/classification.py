"""How classes are scored: one object that the matcher and the loss share, so that they cannot disagree."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError


class Classification(Protocol):
    """What the matcher and the criterion ask of a class loss."""

    @property
    def no_object(self) -> bool:
        """Whether the last logit stands for "no object"."""

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Matching cost (…, Q, T) of logits (…, Q, classes), float32, and labels (…, T) int64."""

    def loss(self, logits: Tensor, matched: Tensor, count: Tensor) -> Tensor:
        """Loss (layers,), normalised.

        Args:
            logits: (layers, N, Q, classes), float32.
            matched: (layers, N, Q) int64, the class of a matched query, -1 for none.
            count: scalar, the number of boxes to divide by, for a loss that is divided by it.
        """


@dataclass(frozen=True)
class FocalClassification:
    """Independent sigmoids with focal loss (arXiv 1708.02002), as Deformable DETR trains them.

    Args:
        alpha: weight of the positive class, in [0, 1].
        gamma: focusing exponent, >= 0.

    Raises:
        UserError: for values outside these ranges.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    no_object = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"MODEL.DETR.FOCAL_ALPHA must be in [0, 1], got {self.alpha}")
        if not self.gamma >= 0:
            raise UserError(f"MODEL.DETR.FOCAL_GAMMA must be at least 0, got {self.gamma}")

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The focal loss of calling a query its target's class, less that of not calling it so."""
        return self._of_calling(_of_labels(logits, labels))

    def loss(self, logits: Tensor, matched: Tensor, count: Tensor) -> Tensor:
        """Focal loss summed over images, queries and classes, divided by the number of boxes.

        Of all logits as if none was called for, and then what matched ones add to that: with many classes (LVIS has
        1,203) the targets of all logits would be most of a step's memory.
        """
        matched_logits = logits.gather(-1, matched.clamp(min=0)[..., None])[..., 0]
        added = self._of_calling(matched_logits).masked_fill(matched < 0, 0.0)
        return (self._not_called(logits).sum((1, 2, 3)) + added.sum((1, 2))) / count

    def _of_calling(self, scores: Tensor) -> Tensor:
        called = self.alpha * (1 - scores.sigmoid()) ** self.gamma * F.softplus(-scores)
        return called - self._not_called(scores)

    def _not_called(self, scores: Tensor) -> Tensor:
        return (1 - self.alpha) * (scores.sigmoid() ** self.gamma * F.softplus(scores))


@dataclass(frozen=True)
class SoftmaxClassification:
    """Softmax over the classes and "no object", the last logit, as DETR trains it (arXiv 2005.12872, section 3.1).

    Args:
        no_object_weight: weight of queries without an object, > 0: there are many more of these.

    Raises:
        UserError: for a weight that is not positive.
    """

    no_object_weight: float = 0.1
    no_object = True

    def __post_init__(self) -> None:
        if not self.no_object_weight > 0:
            raise UserError(f"MODEL.DETR.NO_OBJECT_WEIGHT must be above 0, got {self.no_object_weight}")

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The target's probability, negated: the paper prefers it to the logarithm, to be of the boxes' size."""
        return -_of_labels(logits.softmax(-1), labels)

    def loss(self, logits: Tensor, matched: Tensor, count: Tensor) -> Tensor:
        """Cross-entropy, the weighted mean over images and queries."""
        labels = torch.where(matched < 0, logits.shape[-1] - 1, matched)
        weights = torch.where(matched < 0, self.no_object_weight, 1.0)
        # Not by the number of boxes, as the other losses are: the weights' sum normalises it.
        entropy = -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        return (entropy * weights).sum((1, 2)) / weights.sum((1, 2))


def _of_labels(scores: Tensor, labels: Tensor) -> Tensor:
    """(…, Q, classes) and labels (…, T) to (…, Q, T)."""
    return scores.gather(-1, labels[..., None, :].expand(*scores.shape[:-1], labels.shape[-1]))


def class_scores(logits: Tensor, no_object: bool) -> Tensor:
    """Scores in [0, 1] of every class: logits (…, classes, and one more with ``no_object``) to (…, classes)."""
    return logits.softmax(-1)[..., :-1] if no_object else logits.sigmoid()


def calls_object(logits: Tensor, no_object: bool) -> Tensor:
    """(…,) bool: the queries that say that they see an object.

    Softmax: another class than "no object" is the most likely one. Sigmoid: some class has a probability over 1/2.
    """
    return logits.argmax(-1) != logits.shape[-1] - 1 if no_object else logits.max(-1).values > 0
