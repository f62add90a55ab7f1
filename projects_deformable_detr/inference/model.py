"""Interface between `Detector` and a model: metadata and the function that computes predictions."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

import torch
from torch import Tensor

from ..data.images import ImageReader
from ..errors import ArgumentError, PositiveInt, Range, UserError, check_choice, check_ranges
from ..evaluation import EvaluationConfig, TestTimeAugmentationConfig
from ..modeling import Predictions
from ..modeling.structures import MaskLogits

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Maps normalized images (N, 3, H, W) float32, zero on padding, and the padding mask (N, H, W) bool, True on padding, to
# predictions, of which only the last layer is used. Both arguments are on the device of the detector.
Runner = Callable[[Tensor, Tensor], Predictions]


@dataclass(frozen=True)
class ModelMetadata:
    """Properties of a model that `Detector` needs besides its weights; stored in exported files as JSON.

    Attributes:
        class_names: class names, indexed by class id.
        no_object: whether the last logit is "no object" (softmax). If False, all logits are classes (sigmoid).
        has_masks: whether the model has a mask head.
        pixel_mean, pixel_std: normalization of the channels in the order of ``reader.format``, for values in 0–255.
        min_size, max_size: images are resized to this shorter side, unless the longer side would exceed ``max_size``;
            a ``min_size`` of 0 keeps the size.
        reader: channel order and conversion of images.
        evaluation: postprocessing.
        tta: views of test-time augmentation, whether or not it is enabled.
        input_size: (H, W) of the input of a model with a fixed size, to which images are resized with their aspect
            ratio and padded; None for any size.
        batch_size: batch size of a model whose batch size is fixed; None for any batch size.
    """

    class_names: tuple[str, ...]
    no_object: bool = False
    has_masks: bool = False
    pixel_mean: Annotated[tuple[float, ...], Range()] = (123.675, 116.28, 103.53)
    pixel_std: Annotated[tuple[float, ...], Range(above=0)] = (58.395, 57.12, 57.375)
    min_size: Annotated[int, Range(0)] = 800
    max_size: PositiveInt = 1333
    reader: ImageReader = field(default_factory=ImageReader)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tta: TestTimeAugmentationConfig | None = None
    input_size: tuple[int, int] | None = None
    batch_size: Annotated[int | None, Range(1)] = None

    def __post_init__(self) -> None:
        check_ranges(ModelMetadata, vars(self))
        if not self.class_names:
            raise ArgumentError("class_names", "must have at least one name, got ()")

    def to_json(self) -> str:
        """Returns the metadata as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelMetadata":
        """Returns the metadata of a JSON object written by `to_json`.

        Raises:
            UserError: for invalid JSON, or unknown, missing or invalid fields.
        """
        try:
            return _build(cls, json.loads(text))
        except (ArgumentError, TypeError, ValueError) as error:
            raise UserError(f"the metadata of the model is invalid ({error}): export it again") from error


_NESTED = {
    "reader": ImageReader,
    "evaluation": EvaluationConfig,
    "tta": TestTimeAugmentationConfig,
}


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    """Builds a dataclass from JSON, in which tuples are lists and nested dataclasses are objects."""
    if unknown := values.keys() - {item.name for item in fields(kind)}:
        raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    nested = {name: _build(_NESTED[name], value) for name, value in arguments.items() if isinstance(value, dict)}
    return kind(**arguments | nested)


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
        no_object: see `ModelMetadata`.
    """
    mask_logits = None
    if masks is not None:
        if padding_mask is None:
            raise ArgumentError("padding_mask", "must be given with masks")
        found = masks

        def select(image: Tensor, query: Tensor) -> Tensor:
            return found[image, query]

        mask_logits = MaskLogits(select, padding_mask.to(torch.bool), masks.shape[1])
    return Predictions(logits[None], boxes[None], masks=mask_logits, no_object=no_object)


def choose_device(device: str | torch.device) -> torch.device:
    """Returns a device; ``"auto"`` is CUDA's current device, or the CPU if there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ArgumentError(
            "device", f"must be auto, cpu, cuda or cuda:N, and available, got {str(device)!r}"
        ) from error
    return found


def choose_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Returns one of `DTYPES` by its name."""
    name = str(dtype).removeprefix("torch.")
    check_choice("dtype", name, DTYPES)
    return DTYPES[name]
