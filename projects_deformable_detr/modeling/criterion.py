"""The set-prediction loss (arXiv 2005.12872, eq. 2; 2010.04159, appendix A.4), for all layers at once."""

from dataclasses import replace

import torch
from torch import Tensor, distributed, nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from .classification import calls_object
from .masks import MaskLoss
from .matcher import HungarianMatcher, Match
from .structures import Predictions, Targets


class SetCriterion(nn.Module):
    """Matches predictions to targets and sums class, L1 and GIoU losses.

    Args:
        matcher: the Hungarian matcher; its classification is the class loss too.
        weights: factors of ``loss_ce``, ``loss_bbox`` and ``loss_giou``.
        deep_supervision: also train every earlier decoder layer.
        masks: the loss of the last layer's masks; None for models of boxes only.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        weights: dict[str, float],
        deep_supervision: bool = True,
        masks: MaskLoss | None = None,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.weights = dict(weights)
        self.deep_supervision = deep_supervision
        self.masks = masks

    def forward(self, predictions: Predictions, targets: list[Targets]) -> dict[str, Tensor]:
        """Losses, already weighted; their sum is what to minimise.

        Args:
            predictions: of N images.
            targets: N items, on the predictions' device. An image without objects has empty ones.

        Returns:
            ``loss_ce``, ``loss_bbox``, ``loss_giou`` of the last layer, with ``_0``, ``_1`` … of the earlier
            ones and ``_enc`` of the proposals; with masks, ``loss_mask`` and ``loss_dice`` of the last layer. Scalars,
            divided by the number of boxes of all ranks' batches averaged over the ranks (at least 1).

        Raises:
            ValueError: if the batch sizes differ, a label is not a class, an image has more targets than
                queries, or a matching cost is not finite.
        """
        self._check(predictions, targets)
        first = 0 if self.deep_supervision else len(predictions.logits) - 1
        predictions = replace(predictions, logits=predictions.logits[first:], boxes=predictions.boxes[first:])
        match, proposal_match = self.matcher(predictions, targets, first_layer=first)
        labels = torch.cat([target.labels for target in targets])
        boxes = torch.cat([target.boxes for target in targets]).to(predictions.boxes.dtype)
        count = _average_count(len(labels), predictions.logits.device)

        losses: dict[str, Tensor] = {}
        layers = self._layers(predictions.logits, predictions.boxes, labels, boxes, match, count)
        last = len(predictions.logits) - 1
        for index in range(last + 1):
            suffix = "" if index == last else f"_{index}"
            losses |= {name + suffix: values[index] for name, values in layers.items()}
        if predictions.proposals is not None and proposal_match is not None:
            logits, proposed = (tensor[None] for tensor in predictions.proposals)
            objects = torch.zeros_like(labels)  # proposals tell objects from background only
            encoder = self._layers(logits, proposed, objects, boxes, proposal_match, count)
            losses |= {f"{name}_enc": values[0] for name, values in encoder.items()}
        if self.masks is not None and predictions.masks is not None:
            losses |= self.masks(predictions.masks, match, targets, count)
        return losses

    def _layers(
        self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, match: Match, count: Tensor
    ) -> dict[str, Tensor]:
        """Every loss as (layers,)."""
        layers, batch, queries, _ = logits.shape
        layer = torch.arange(layers, device=logits.device)[:, None]
        matched = torch.full((layers, batch, queries), -1, dtype=torch.int64, device=logits.device)
        matched[layer, match.image, match.query] = labels[match.target]
        found, wanted = boxes[layer, match.image, match.query], target_boxes[match.target]  # (layers, M, 4)
        overlap = generalized_box_iou_loss(
            box_convert(found, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy"), reduction="none"
        )
        losses = {
            "loss_ce": self.matcher.classification.loss(logits.float(), matched, count),
            "loss_bbox": (found - wanted).abs().sum((1, 2)) / count,
            "loss_giou": overlap.sum(1) / count,
        }
        return {name: value * self.weights[name] for name, value in losses.items()}

    def _check(self, predictions: Predictions, targets: list[Targets]) -> None:
        batch, classes = predictions.logits.shape[1], predictions.num_classes
        if predictions.no_object != self.matcher.classification.no_object:
            raise ValueError(
                f"predictions {'have' if predictions.no_object else 'lack'} a logit for no object, unlike the class "
                "loss: build detector and criterion from one config"
            )
        if len(targets) != batch:
            raise ValueError(f"predictions are of {batch} images, targets of {len(targets)}")
        for image, target in enumerate(targets):
            # Targets that come from the device's memory are not read here: that would make the host wait.
            if target.labels.device.type != "cpu" or len(target) == 0:
                continue
            low, high = int(target.labels.min()), int(target.labels.max())
            if low < 0 or high >= classes:
                raise ValueError(
                    f"image {image} of the batch has class id {low if low < 0 else high}, but the head has {classes} "
                    f"classes (0 to {classes - 1}): ids must be contiguous and MODEL.DETR.NUM_CLASSES their number"
                )


def _average_count(count: int, device: torch.device) -> Tensor:
    """The number of boxes averaged over the ranks, at least 1, as a scalar tensor."""
    total = torch.full((), float(count), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    return total.clamp(min=1.0)


@torch.no_grad()
def cardinality_error(predictions: Predictions, targets: list[Targets]) -> Tensor:
    """The mean over images of | queries of the last layer that call an object - objects |: logged, not trained.

    What it is to call an object is `calls_object`'s affair.
    """
    called = calls_object(predictions.logits[-1], predictions.no_object).sum(-1)  # (N,)
    objects = called.new_tensor([len(target) for target in targets])
    return (called - objects).abs().float().mean()
