"""Interface between `Detector` and a model: the function that computes predictions, device and dtype."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ArgumentError, check_choice
from ..modeling import Predictions
from ..modeling.structures import ComputedMasks, MaskLogits

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Maps normalized images (N, 3, H, W) float32, zero on padding, and the padding mask (N, H, W) bool, True on padding, to
# predictions, of which only the last layer is used. Both arguments are on the device of the detector.
Runner = Callable[[Tensor, Tensor], Predictions]


def to_predictions(
    logits: Tensor,
    boxes: Tensor,
    masks: Tensor | None = None,
    padding_mask: Tensor | None = None,
    *,
    no_object: bool = False,
) -> Predictions:
    """Returns the predictions of a model that computes plain tensors, such as an exported one.

    Args:
        logits: (N, Q, classes) of the last layer; with ``no_object``, one more logit.
        boxes: (N, Q, 4) as (cx, cy, w, h), normalized by the size of the image without padding.
        masks: mask logits (N, Q, h, w) of the padded images; None without a mask head.
        padding_mask: (N, H, W) bool of the images; required with masks.
        no_object: whether the last logit is "no object" (softmax).
    """
    mask_logits = None
    if masks is not None:
        if padding_mask is None:
            raise ArgumentError("padding_mask", "must be given with masks")
        mask_logits = MaskLogits(ComputedMasks(masks), padding_mask.to(torch.bool), masks.shape[1])
    return Predictions(logits[None], boxes[None], masks=mask_logits, no_object=no_object)


def choose_device(device: str | torch.device) -> torch.device:
    """Returns a device; ``"auto"`` is CUDA's current device, or the CPU if there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError("device", f"must be auto, cpu, cuda or cuda:N, got {str(device)!r}") from error
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ArgumentError("device", f"must be a device of this machine, got {str(device)!r} ({error})") from error
    return found


def choose_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Returns one of `DTYPES` by its name."""
    name = str(dtype).removeprefix("torch.")
    check_choice("dtype", name, DTYPES)
    return DTYPES[name]
