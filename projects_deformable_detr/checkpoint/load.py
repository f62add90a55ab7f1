"""Loads weights of any known format into a detector; whatever does not fit is reported by name."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from .classes import ClassHead, ClassReport, class_names_of, count_logits, fit_class_heads, shorten
from .download import DownloadError
from .files import CheckpointError, Weights, read_weights
from .formats import import_state
from .formats.backbones import CAFFE2_RESNET, is_group_norm, match_backbone
from .formats.base import Format, Names, State
from .formats.detector import CLASS_HEAD, OURS, is_deformable
from .zoo import TORCHVISION, locate

logger = logging.getLogger(__name__)
_MASKS = "mask_head."
_COUNTER = "num_batches_tracked"  # step counter of batch norms, which frozen norms lack
# Parameters that ImageNet models lack: offsets of deformable convolutions, and norms of a Swin Transformer's features.
_NOT_IN_IMAGENET = re.compile(r"\.conv2(\.|_)offset\.|\.norms\.res\d\.")


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading weights into a detector.

    Attributes:
        allow_partial: load what fits, and leave the rest of the detector unchanged.
        for_evaluation: raise an error where parameters would keep their initial values.
        keep_logits: load class heads without mapping classes.
        class_names: names of the model's classes, None if unknown.
        input_format: order of the model's image channels, ``"RGB"`` or ``"BGR"``.
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

    Backbone weights are loaded into the backbone. Detector weights must fit except for the class heads (see `classes`),
    unless ``allow_partial`` is set. One summary is logged, as a warning if tensors keep their initial weights or are
    unused.

    Raises:
        DownloadError: if published weights cannot be downloaded. The detector is then unchanged.
        CheckpointError: if the file cannot be read, has an unknown format, or does not fit; if ``for_evaluation``, also
            for an empty source and for backbone weights. The detector is then unchanged.
    """
    options = options or LoadOptions()
    if options.for_evaluation and not str(source):
        raise CheckpointError("evaluation needs `weights`: a checkpoint, such as model_final.pth")
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
        f"{source}: these are weights of a backbone; for evaluation set `weights` to a trained detector, such as "
        "model_final.pth"
    )


def _from_scratch(detector: nn.Module) -> str:
    """Returns the end of a message that describes how to train without ImageNet weights."""
    advice = "; to train from scratch, set `weights` to ''"
    if any(type(module).__name__ == "FrozenBatchNorm2d" for module in detector.modules()):
        advice += ", choose BN or GN as the norm and freeze no stage"  # frozen batch norms would be the identity
    return advice


def fit(detector: nn.Module, weights: Weights, source: str, options: LoadOptions) -> tuple[State, LoadReport]:
    """Converts weights for ``detector.load_state_dict`` and logs a summary.

    Args:
        detector: the detector; it is not changed.
        weights: weights of a known format.
        source: name of the file for messages.
        options: see `LoadOptions`.

    Raises:
        CheckpointError: if the format is unknown, the weights do not fit, or some of them are NaN or infinite.
    """
    format, state = import_state(weights.state)
    if format is None:
        raise CheckpointError(
            f"{source}: the keys ({', '.join(list(state)[:4])} …) are of no known detector or backbone"
        )
    if format.is_backbone and options.for_evaluation:
        raise _backbone_only(source)
    if format is CAFFE2_RESNET:
        _check_caffe2(detector, weights.state, source, options)
    source = source if format is OURS else f"{source} ({format.name} weights)"
    own = detector.state_dict()
    state = match_backbone(state, own)
    state = {key: value for key, value in state.items() if key in own or not key.endswith(_COUNTER)}
    check_finite(state, source)
    no_object = bool(getattr(detector, "no_object", False))
    head = _class_head(format, state, weights.class_names, no_object)
    state, classes = fit_class_heads(
        state, own, head, ClassHead(options.class_names, no_object), keep_logits=options.keep_logits
    )
    state, reinitialized, notes = _fit_masks(state, own, source, options)
    expected = _imagenet_keys(own) if format.is_backbone else [key for key in own if not key.endswith(_COUNTER)]
    if classes.action == "new":
        reinitialized += [key for key in own if CLASS_HEAD.fullmatch(key)]
    report = LoadReport(
        format.name,
        missing=tuple(key for key in expected if key not in state and key not in reinitialized),
        unexpected=tuple(
            key for key in state if key not in own and not (format.is_backbone and _is_unused_stage(key, own))
        ),
        mismatched=tuple(key for key in state if key in own and own[key].shape != state[key].shape),
        classes=classes,
    )
    problems = _check(report, own, state, source, options)
    fitting = {key: value for key, value in state.items() if key in own and key not in report.mismatched}
    count = f"{sum(key in fitting for key in expected)} of {len(expected)} tensors"
    count += " of the backbone are loaded" if format.is_backbone else " are loaded"
    level = logging.WARNING if problems or reinitialized or classes.new else logging.INFO
    logger.log(
        level, "%s", "\n".join([f"{source}: {count}", *filter(None, [f"  {classes.message}", *notes, *problems])])
    )
    return fitting, report


def check_finite(state: State, source: str) -> None:
    """Raises `CheckpointError` if weights are NaN or infinite."""
    if broken := [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise CheckpointError(
            f"{source} has NaN or infinite values in {len(broken)} of {len(state)} tensors "
            f"({', '.join(shorten(broken, 3))}): the training that wrote it diverged; use an earlier checkpoint"
        )


def file_classes(weights: Weights, no_object: bool) -> tuple[Format | None, int, Names | None]:
    """Returns the format of a file, the number of a detector's classes in it, and their names if known.

    Args:
        weights: content of the file.
        no_object: whether a detector of this project has a logit for "no object"; other formats determine it.
    """
    format, state = import_state(weights.state)
    if format is None:
        return None, 0, None
    head = _class_head(format, state, weights.class_names, no_object)
    return format, max(0, count_logits(state) - head.no_object), head.names


def _class_head(format: Format, state: State, stored: Sequence[str] | None, no_object: bool) -> ClassHead:
    """Describes the class head in a file; in this project's files, ``no_object`` is assumed to be the model's."""
    no_object = no_object if format is OURS else not is_deformable(state)
    return ClassHead(class_names_of(format, count_logits(state) - no_object, stored), no_object)


def _fit_masks(state: State, own: State, source: str, options: LoadOptions) -> tuple[State, list[str], list[str]]:
    """Returns the state without masks that the model lacks, the keys of masks that the file lacks, and notes."""
    theirs = [key for key in state if key.startswith(_MASKS)]
    ours = [key for key in own if key.startswith(_MASKS)]
    if theirs and not ours:
        return {key: state[key] for key in state if key not in theirs}, [], ["  the file's mask head is unused"]
    if theirs or not ours or not any(key.startswith("encoder.") for key in state):
        return state, [], []
    if options.for_evaluation and not options.allow_partial:
        raise CheckpointError(f"{source} has no mask head: set `mask_head=False`, or choose a detector with masks")
    return state, ours, ["  the mask head keeps its initial weights: the file has none"]


def _check(report: LoadReport, own: State, state: State, source: str, options: LoadOptions) -> list[str]:
    """Returns lines that list the keys that do not fit.

    Raises:
        CheckpointError: if there are any, or classes without weights in evaluation, unless ``allow_partial`` is set.
    """
    lists = (("missing", report.missing), ("unexpected", report.unexpected))
    lines = [f"  {name} in the file ({len(keys)}): {', '.join(shorten(keys))}" for name, keys in lists if keys]
    for key in report.mismatched[:8]:
        lines.append(f"  different shapes: {key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} here")
    if lines and not options.allow_partial:
        text = "\n".join(lines)
        raise CheckpointError(
            f"{source} has another architecture than the model:\n{text}\nUse the config that it was trained with, "
            "or set `allow_partial=True` to load what fits and train the rest."
        )
    if report.classes.new and options.for_evaluation and not options.allow_partial:
        raise CheckpointError(
            f"{source} lacks some of the model's classes. {report.classes.message} To load the file's own logits, set "
            "`keep_logits=True` and `num_classes` to their number."
        )
    return lines


def _imagenet_keys(own: Iterable[str]) -> list[str]:
    """Returns the keys that backbone weights must have, without those of an FPN."""
    prefix = "backbone.bottom_up." if any(key.startswith("backbone.bottom_up.") for key in own) else "backbone."
    keys = [key for key in own if key.startswith(prefix) and not key.endswith(_COUNTER)]
    return [key for key in keys if not _NOT_IN_IMAGENET.search(key)]


def _is_unused_stage(key: str, own: Iterable[str]) -> bool:
    """Returns whether a key belongs to a stage after the last used feature map, which the model lacks."""
    stage = re.match(r".*\.(?:layer|res|features\.)\d\.", key)
    return stage is not None and not any(name.startswith(stage[0]) for name in own)


def _check_caffe2(detector: nn.Module, state: State, source: str, options: LoadOptions) -> None:
    """Checks for BGR images and, except with group norm, strides in the 1x1 convolutions, as in Caffe2's training."""
    in_1x1, found = not is_group_norm(state), _strides_in_1x1(detector)
    if options.input_format == "BGR" and found in (in_1x1, None):
        return
    std = "[1.0,1.0,1.0]" if in_1x1 else "[57.375,57.120,58.395]"
    needed = f"`input_format=BGR`, `pixel_mean=[103.530,116.280,123.675]`, `pixel_std={std}`, `stride_in_1x1={in_1x1}`"
    if in_1x1:
        needed += ", `backbone=build_resnet_backbone` (Detectron2's; ours strides in the 3x3)"
    strides = "" if found is None else f" and strides in the {'1x1' if found else '3x3'}"
    raise CheckpointError(
        f"{source}: these weights were trained in Caffe2, on BGR images and with strides in the "
        f"{'1x1' if in_1x1 else '3x3'} convolutions; the model has {options.input_format} images{strides}. Set "
        f"{needed}; or use {TORCHVISION}resnet50, as the configs do"
    )


def _strides_in_1x1(detector: nn.Module) -> bool | None:
    """Returns whether the ResNet's second stage downsamples in its first convolution, None for other backbones."""
    for name, module in detector.named_modules():
        if name.endswith(("layer2.0", "res3.0")):
            strides = [getattr(getattr(module, conv, None), "stride", None) for conv in ("conv1", "conv2")]
            if hasattr(module, "conv3") and None not in strides:
                return strides[0] in (2, (2, 2))
    return None
