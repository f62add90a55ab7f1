"""How classes are scored: one object that the matcher and the loss share, so that they cannot disagree."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from ..errors import UserError


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

    def __post_init__(self) -> None:
        # torchvision's loss would take -1 for "no weighting", which the cost does not.
        if not 0 <= self.alpha <= 1:
            raise UserError(f"MODEL.DETR.FOCAL_ALPHA must be in [0, 1], got {self.alpha}")
        if not self.gamma >= 0:
            raise UserError(f"MODEL.DETR.FOCAL_GAMMA must be at least 0, got {self.gamma}")

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Matching cost: the focal loss of calling a query its target's class, less that of not calling it so.

        Args:
            logits: (…, Q, classes), float32.
            labels: (…, T) int64.

        Returns:
            (…, Q, T).
        """
        scores = logits.gather(-1, labels[..., None, :].expand(*logits.shape[:-1], labels.shape[-1]))
        probability = scores.sigmoid()
        called = self.alpha * (1 - probability) ** self.gamma * F.softplus(-scores)
        not_called = (1 - self.alpha) * probability**self.gamma * F.softplus(scores)
        return called - not_called

    def loss(self, logits: Tensor, matched: Tensor) -> Tensor:
        """Focal loss summed over images, queries and classes.

        Args:
            logits: (layers, N, Q, classes).
            matched: (layers, N, Q) int64, the class of a matched query, -1 for none.

        Returns:
            (layers,), not yet divided by the number of boxes.
        """
        classes = torch.arange(logits.shape[-1], device=logits.device)
        targets = (matched[..., None] == classes).to(logits.dtype)
        return sigmoid_focal_loss(logits, targets, self.alpha, self.gamma, reduction="none").sum((1, 2, 3))

    def foreground(self, logits: Tensor) -> Tensor:
        """(…, Q) bool: the queries that call some class with a probability over one half."""
        return logits.max(-1).values > 0
