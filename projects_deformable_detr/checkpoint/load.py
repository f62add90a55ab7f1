"""Loads weights of any supported format into a detector and reports all keys that do not match."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..zoo import TORCHVISION, locate
from ..zoo.files import DownloadError
from .classes import ClassHead, ClassReport, class_names_of, count_logits, fit_class_heads, shorten
from .files import CheckpointError, Weights, read_weights
from .formats import import_state
from .formats.backbones import CAFFE2_RESNET, is_group_norm, match_backbone
from .formats.base import Format, Names, State
from .formats.detector import CLASS_HEAD, NATIVE, is_deformable

logger = logging.getLogger(__name__)
_MASKS = "mask_head."
_COUNTER = "num_batches_tracked"  # step counter of batch norms, which frozen batch norms lack
# Parameters that ImageNet models lack: offsets of deformable convolutions, and norms of Swin Transformer features.
_NOT_IN_IMAGENET = re.compile(r"\.conv2(\.|_)offset\.|\.norms\.res\d\.")


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading weights into a detector.

    Attributes:
        allow_partial: whether to load the weights that match and leave the rest of the detector unchanged.
        for_evaluation: whether to raise an error if parameters would keep their initial values.
        keep_logits: whether to load class heads unchanged instead of mapping classes.
        class_names: class names of the model; None if unknown.
        input_format: order of the image channels of the model, ``"RGB"`` or ``"BGR"``.
    """

    allow_partial: bool = False
    for_evaluation: bool = False
    keep_logits: bool = False
    class_names: tuple[str, ...] | None = None
    input_format: str = "RGB"


@dataclass(frozen=True)
class LoadReport:
    """Result of loading weights.

    Attributes:
        format: name of the file's format, or ``"none"`` if nothing was loaded.
        missing: keys of the model that the file lacks; these keep their initial values.
        unexpected: keys of the file that the model lacks; these are unused.
        mismatched: keys whose shapes differ between file and model; these also keep their initial values.
        classes: result of fitting class heads.
    """

    format: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    classes: ClassReport = ClassReport("none")


def load_weights(detector: nn.Module, source: str | Path, options: LoadOptions | None = None) -> LoadReport:
    """Loads a file, ``zoo://NAME`` or ``torchvision://resnet50`` (ImageNet weights) into the detector in place.

    Backbone weights are loaded into the backbone. Detector weights must match the detector except for the class heads
    (see `classes`), unless ``allow_partial`` is set. A summary is logged, as a warning if tensors keep their initial
    weights or are unused. The detector is unchanged if an error is raised.

    Raises:
        DownloadError: if published weights cannot be downloaded.
        CheckpointError: if the file cannot be read, has an unknown format, or does not match the detector; with
            ``for_evaluation``, also if the source is empty or contains only backbone weights.
    """
    options = options or LoadOptions()
    if options.for_evaluation and not str(source):
        raise CheckpointError("evaluation requires `weights`: set it to a checkpoint, such as model_final.pth")
    is_imagenet = str(source).startswith(TORCHVISION)
    if is_imagenet and options.for_evaluation:
        raise _backbone_only(str(source))
    try:
        path = locate(source)
    except DownloadError as error:
        raise DownloadError(f"{source}: {error}{_from_scratch(detector) if is_imagenet else ''}") from error
    fitting, report = fit(detector, read_weights(path), str(source), options)
    detector.load_state_dict(fitting, strict=False)
    return report


def _backbone_only(source: str) -> CheckpointError:
    return CheckpointError(
        f"{source}: contains only weights of a backbone; for evaluation, set `weights` to a trained detector, such as "
        "model_final.pth"
    )


def _from_scratch(detector: nn.Module) -> str:
    """Returns advice for training without ImageNet weights, to append to a message."""
    advice = "; to train from scratch, set `weights` to ''"
    if any(type(module).__name__ == "FrozenBatchNorm2d" for module in detector.modules()):
        advice += ", use BN or GN as norm, and do not freeze stages"  # untrained frozen batch norms are the identity
    return advice


def fit(detector: nn.Module, weights: Weights, source: str, options: LoadOptions) -> tuple[State, LoadReport]:
    """Converts weights for ``detector.load_state_dict`` and logs a summary.

    Args:
        detector: detector, which is not modified.
        weights: weights of a supported format.
        source: name of the file for messages.
        options: see `LoadOptions`.

    Returns:
        The converted weights that match the detector, and a report.

    Raises:
        CheckpointError: if the format is unknown, the weights do not match, or some of them are NaN or infinite.
    """
    format, state = import_state(weights.state)
    if format is None:
        raise CheckpointError(
            f"{source}: the keys ({', '.join(list(state)[:4])} …) do not match any supported detector or backbone"
        )
    if format.is_backbone and options.for_evaluation:
        raise _backbone_only(source)
    if format is CAFFE2_RESNET:
        _check_caffe2(detector, weights.state, source, options)
    source = source if format is NATIVE else f"{source} ({format.name} weights)"
    model = detector.state_dict()
    state = match_backbone(state, model)
    state = {key: value for key, value in state.items() if key in model or not key.endswith(_COUNTER)}
    check_finite(state, source)
    no_object = bool(getattr(detector, "no_object", False))
    head = _class_head(format, state, weights.class_names, no_object)
    state, classes = fit_class_heads(
        state, model, head, ClassHead(options.class_names, no_object), keep_logits=options.keep_logits
    )
    state, reinitialized, notes = _fit_masks(state, model, source, options)
    expected = _imagenet_keys(model) if format.is_backbone else [key for key in model if not key.endswith(_COUNTER)]
    if classes.action == "new":
        reinitialized += [key for key in model if CLASS_HEAD.fullmatch(key)]
    report = LoadReport(
        format.name,
        missing=tuple(key for key in expected if key not in state and key not in reinitialized),
        unexpected=tuple(
            key for key in state if key not in model and not (format.is_backbone and _is_unused_stage(key, model))
        ),
        mismatched=tuple(key for key in state if key in model and model[key].shape != state[key].shape),
        classes=classes,
    )
    problems = _check(report, model, state, source, options)
    fitting = {key: value for key, value in state.items() if key in model and key not in report.mismatched}
    count = f"{sum(key in fitting for key in expected)} of {len(expected)} tensors"
    count += " of the backbone are loaded" if format.is_backbone else " are loaded"
    level = logging.WARNING if problems or reinitialized or classes.new else logging.INFO
    mapped = [f"  {classes.message}"] if classes.message else []
    logger.log(level, "%s", "\n".join([f"{source}: {count}", *mapped, *notes, *problems]))
    return fitting, report


def check_finite(state: State, source: str) -> None:
    """Raises `CheckpointError` if weights are NaN or infinite."""
    if broken := [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise CheckpointError(
            f"{source} has NaN or infinite values in {len(broken)} of {len(state)} tensors "
            f"({', '.join(shorten(broken, 3))}): training diverged; use an earlier checkpoint"
        )


def file_classes(weights: Weights, no_object: bool) -> tuple[Format | None, int, Names | None]:
    """Returns the format of a file, its number of detector classes, and their names or None.

    Args:
        weights: content of the file.
        no_object: whether files in this project's format have a logit for "no object"; detected for other formats.
    """
    format, state = import_state(weights.state)
    if format is None:
        return None, 0, None
    head = _class_head(format, state, weights.class_names, no_object)
    return format, max(0, count_logits(state) - head.no_object), head.names


def _class_head(format: Format, state: State, stored: Sequence[str] | None, no_object: bool) -> ClassHead:
    """Describes the class head of a file; ``no_object`` applies to files in this project's format."""
    no_object = no_object if format is NATIVE else not is_deformable(state)
    return ClassHead(class_names_of(format, count_logits(state) - no_object, stored), no_object)


def _fit_masks(state: State, model: State, source: str, options: LoadOptions) -> tuple[State, list[str], list[str]]:
    """Removes an unused mask head from a state dict.

    Returns:
        The state dict, the keys of a mask head that keeps its initial weights, and lines for the log.
    """
    found = [key for key in state if key.startswith(_MASKS)]
    expected = [key for key in model if key.startswith(_MASKS)]
    if found and not expected:
        return {key: state[key] for key in state if key not in found}, [], ["  the mask head in the file is unused"]
    if found or not expected or not any(key.startswith("encoder.") for key in state):
        return state, [], []
    if options.for_evaluation and not options.allow_partial:
        raise CheckpointError(f"{source} has no mask head: set `mask_head=False`, or use weights of a mask detector")
    return state, expected, ["  the mask head keeps its initial weights, because the file has none"]


def _check(report: LoadReport, model: State, state: State, source: str, options: LoadOptions) -> list[str]:
    """Returns lines that list the keys that do not match.

    Raises:
        CheckpointError: if there are any, or if classes lack weights in evaluation, unless ``allow_partial`` is set.
    """
    lists = (("missing", report.missing), ("unexpected", report.unexpected))
    lines = [f"  {name} in the file ({len(keys)}): {', '.join(shorten(keys))}" for name, keys in lists if keys]
    for key in report.mismatched[:8]:
        shapes = f"{tuple(state[key].shape)} in the file, {tuple(model[key].shape)} in the model"
        lines.append(f"  shape mismatch: {key}: {shapes}")
    if lines and not options.allow_partial:
        text = "\n".join(lines)
        raise CheckpointError(
            f"{source} does not match the architecture of the model:\n{text}\nUse the config of its training, or set "
            "`allow_partial=True` to load the weights that match and train the others."
        )
    if report.classes.new and options.for_evaluation and not options.allow_partial:
        raise CheckpointError(
            f"{source} lacks some of the model's classes. {report.classes.message} To load its logits unchanged, set "
            "`keep_logits=True`, and `num_classes` to the number of logits (with `deformable-detr convert`, add "
            "--keep-logits)."
        )
    return lines


def _imagenet_keys(model: Iterable[str]) -> list[str]:
    """Returns the keys that backbone weights must contain, excluding those of an FPN."""
    prefix = "backbone.bottom_up." if any(key.startswith("backbone.bottom_up.") for key in model) else "backbone."
    keys = [key for key in model if key.startswith(prefix) and not key.endswith(_COUNTER)]
    return [key for key in keys if not _NOT_IN_IMAGENET.search(key)]


def _is_unused_stage(key: str, model: Iterable[str]) -> bool:
    """Returns whether a key belongs to a stage that the model lacks, because its feature map is unused."""
    stage = re.match(r".*\.(?:layer|res|features\.)\d\.", key)
    return stage is not None and not any(name.startswith(stage[0]) for name in model)


def _check_caffe2(detector: nn.Module, state: State, source: str, options: LoadOptions) -> None:
    """Checks for BGR images and, except with group norm, strides in the 1x1 convolutions, as in Caffe2 models."""
    in_1x1, found = not is_group_norm(state), _strides_in_1x1(detector)
    if options.input_format == "BGR" and found in (in_1x1, None):
        return
    std = "[1.0,1.0,1.0]" if in_1x1 else "[57.375,57.120,58.395]"
    needed = f"`input_format=BGR`, `pixel_mean=[103.530,116.280,123.675]`, `pixel_std={std}`, `stride_in_1x1={in_1x1}`"
    if in_1x1:
        needed += ", `backbone=build_resnet_backbone` (Detectron2's ResNet, because this project's has them in the 3x3)"
    strides = "" if found is None else f" and strides in the {'1x1' if found else '3x3'}"
    raise CheckpointError(
        f"{source}: these weights were trained in Caffe2 on BGR images, with strides in the "
        f"{'1x1' if in_1x1 else '3x3'} convolutions, but the model uses {options.input_format} images{strides}. Set "
        f"{needed}, or use {TORCHVISION}resnet50 as in the configs"
    )


def _strides_in_1x1(detector: nn.Module) -> bool | None:
    """Returns whether the second stage of a ResNet downsamples in its first convolution; None for other backbones."""
    for name, module in detector.named_modules():
        if name.endswith(("layer2.0", "res3.0")):
            strides = [getattr(getattr(module, conv, None), "stride", None) for conv in ("conv1", "conv2")]
            if hasattr(module, "conv3") and None not in strides:
                return strides[0] in (2, (2, 2))
    return None
