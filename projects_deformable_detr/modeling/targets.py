"""Checks the ground truth of a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from ..errors import ArgumentError, UserError
from .structures import Targets, image_name

_SLACK = 1.0  # pixels by which a box may extend beyond its image, due to rounding


def check_targets(targets: Sequence[Targets], num_classes: int) -> None:
    """Checks labels, boxes and masks of a batch, which data sets, mappers and custom training loops provide.

    The values of tensors on devices other than the CPU are not checked, because this would synchronize with the device;
    check targets before moving them.

    Raises:
        ArgumentError: if an item is not `Targets`.
        UserError: if a tensor has a wrong shape or type, a label is not a class, or a box is not finite, has exchanged
            corners or leaves its image. The message contains ``Targets.name``.
    """
    for index, target in enumerate(targets):
        if not isinstance(target, Targets):
            raise ArgumentError("targets", f"must be a list of Targets, got {type(target).__name__}")
        name = image_name(targets, index)
        _check_types(name, target)
        if target.labels.device.type == "cpu" and len(target):
            _check_values(name, target, num_classes)


def _check_types(name: str, target: Targets) -> None:
    labels, boxes, masks = target.labels, target.boxes, target.masks
    count = len(labels)
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise UserError(f"labels of {name} must be int64 class ids (T,), got {_describe(labels)}")
    if boxes.shape != (count, 4) or not boxes.is_floating_point():
        raise UserError(f"boxes of {name} must be floats ({count}, 4) for its {count} labels, got {_describe(boxes)}")
    if masks is not None and masks.shape != (size := (count, *(target.size or masks.shape[-2:]))):
        raise UserError(f"masks of {name} must have shape {size}, got {_describe(masks)}")


def _check_values(name: str, target: Targets, num_classes: int) -> None:
    labels, boxes = target.labels, target.boxes.float()
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        raise UserError(
            f"{name} has class id {int(labels[wrong][0])}, but the model has {num_classes} classes (0 to "
            f"{num_classes - 1}): class ids must be contiguous, and `num_classes` their number"
        )
    if target.size is None:
        # The slack is a whole image, because the size of a pixel is unknown; this still rejects boxes in pixels.
        slack = boxes.new_ones(4)
    else:
        height, width = target.size
        slack = boxes.new_tensor([_SLACK / width, _SLACK / height] * 2)
    corners = box_convert(boxes, "cxcywh", "xyxy")
    faults = {
        "is not finite": ~boxes.isfinite().all(1),
        "has exchanged corners: width and height must be at least 0": (boxes[:, 2:] < 0).any(1),
        "leaves its image: boxes must be normalized by the size of the image, and clipped to it": (
            (corners < -slack) | (corners > 1 + slack)
        ).any(1),
    }
    for problem, wrong in faults.items():
        if wrong.any():
            raise UserError(f"box {_box(corners[wrong][0], target.size)} of {name} {problem}")


def _box(corners: Tensor, size: tuple[int, int] | None) -> str:
    """Formats a box as corners, in pixels if the size of the image is known."""
    height, width = size or (1, 1)
    values = (corners * corners.new_tensor([width, height] * 2)).tolist()
    return "({:.5g}, {:.5g}, {:.5g}, {:.5g})".format(*values) + (f" in pixels of {height} x {width}" if size else "")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
