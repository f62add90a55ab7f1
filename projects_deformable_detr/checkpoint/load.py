"""Loads weights of any known format into a detector; whatever does not fit is reported by name."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from .classes import ClassHead, ClassReport, class_names_of, count_logits, fit_class_heads, shorten
from .files import TORCHVISION, CheckpointError, DownloadError, Weights, download, read_weights
from .formats import detect, import_state
from .formats.backbones import CAFFE2_RESNET, is_group_norm, match_backbone
from .formats.base import Format, Names, State
from .formats.detector import OURS, is_deformable

logger = logging.getLogger(__name__)
_MASKS = "mask_head."
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
        config_keys: config keys that replace the names of arguments in messages.
    """

    allow_partial: bool = False
    for_evaluation: bool = False
    keep_logits: bool = False
    class_names: tuple[str, ...] | None = None
    input_format: str = "RGB"
    config_keys: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def name(self, argument: str) -> str:
        """Returns the name of an argument for messages: its config key if there is one."""
        return self.config_keys.get(argument, argument)

    def setting(self, argument: str, value: object) -> str:
        """Returns the text that sets an argument: ``KEY value`` in a config, else ``argument=value``."""
        return f"{self.config_keys[argument]} {value}" if argument in self.config_keys else f"{argument}={value}"


@dataclass(frozen=True)
class LoadReport:
    """Result of loading weights.

    Attributes:
        format: name of the file's format, or ``"none"`` if nothing was loaded.
        missing: keys of the model that the file lacks; these keep their initial values.
        unexpected: keys of the file that the model lacks.
        mismatched: keys whose shapes differ between file and model; these also keep their initial values.
        classes: result of fitting class heads.
    """

    format: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    classes: ClassReport = ClassReport("none")


def load_weights(detector: nn.Module, source: str | Path, options: LoadOptions | None = None) -> LoadReport:
    """Loads a file, or ``torchvision://resnet50`` (ImageNet weights), into the detector in place.

    Backbone weights are loaded into the backbone. Detector weights must fit except for the class heads (see `classes`),
    unless ``allow_partial`` is set; then a warning lists what does not fit. If ImageNet weights cannot be downloaded,
    the detector is left unchanged after a warning.

    Raises:
        CheckpointError: if the file cannot be read, has an unknown format, or does not fit; if ``for_evaluation``, also
            for an empty source and for backbone weights. The detector is then unchanged.
    """
    options = options or LoadOptions()
    if options.for_evaluation and not str(source):
        raise CheckpointError(f"evaluation needs {options.name('weights')}: a checkpoint, such as model_final.pth")
    if str(source).startswith(TORCHVISION):
        if options.for_evaluation:
            raise _backbone_only(str(source), options)
        try:
            source = download(str(source))
        except DownloadError as error:
            _warn_without_weights(detector, error, options)
            return LoadReport("none")
    fitting, report = fit(detector, read_weights(source), str(source), options)
    detector.load_state_dict(fitting, strict=False)
    return report


def _backbone_only(source: str, options: LoadOptions) -> CheckpointError:
    return CheckpointError(
        f"{source}: these are weights of a backbone; for evaluation set {options.name('weights')} to a trained "
        "detector, such as model_final.pth"
    )


def _warn_without_weights(detector: nn.Module, error: DownloadError, options: LoadOptions) -> None:
    advice = ""
    if any(type(module).__name__ == "FrozenBatchNorm2d" for module in detector.modules()):
        advice = (
            f" Its frozen norms are the identity, which trains badly: set {options.name('norm')} to BN or GN and "
            f"{options.setting('freeze_at', 0)}, or download the file elsewhere and set {options.name('weights')}."
        )
    logger.warning("%s: the backbone is trained FROM SCRATCH.%s", error, advice)


def fit(detector: nn.Module, weights: Weights, source: str, options: LoadOptions) -> tuple[State, LoadReport]:
    """Converts weights for ``detector.load_state_dict`` and logs what does not fit.

    Args:
        detector: the detector; it is not changed.
        weights: weights of a known format.
        source: name of the file for messages.
        options: see `LoadOptions`.

    Raises:
        CheckpointError: if the format is unknown or the weights do not fit.
    """
    format = detect(weights.state)
    if format is None:
        raise CheckpointError(
            f"{source}: the keys ({', '.join(list(weights.state)[:4])} …) are of no known detector or backbone"
        )
    if format.is_backbone and options.for_evaluation:
        raise _backbone_only(source, options)
    if format is CAFFE2_RESNET:
        _check_caffe2(detector, weights.state, source, options)
    source = f"{source} ({format.name} weights)"
    own = detector.state_dict()
    state = match_backbone(import_state(weights.state, format), own)
    # Frozen norms lack the step counter of batch norm.
    state = {key: value for key, value in state.items() if key in own or not key.endswith("num_batches_tracked")}
    no_object = bool(getattr(detector, "no_object", False))
    head = _class_head(format, state, weights.class_names, no_object)
    state, classes = fit_class_heads(
        state, own, head, ClassHead(options.class_names, no_object), keep_logits=options.keep_logits
    )
    state, new_masks = _fit_masks(state, own, source, options)
    expected = _imagenet_keys(own) if format.is_backbone else list(own)
    known = {*state, *new_masks}
    report = LoadReport(
        format.name,
        missing=tuple(key for key in expected if key not in known and not key.endswith("num_batches_tracked")),
        unexpected=tuple(
            key for key in state if key not in own and not (format.is_backbone and _is_unused_stage(key, own))
        ),
        mismatched=tuple(key for key in state if key in own and own[key].shape != state[key].shape),
        classes=classes,
    )
    _check(report, own, state, source, options)
    fitting = {key: value for key, value in state.items() if key in own and key not in report.mismatched}
    logger.info("Loading %d of %d tensors from %s", len(fitting), len(own), source)
    return fitting, report


def file_classes(weights: Weights, format: Format, no_object: bool) -> tuple[int, Names | None]:
    """Returns the number of a detector's classes in a file, and their names if known.

    Args:
        weights: content of the file.
        format: its format.
        no_object: whether a detector of this project has a logit for "no object"; other formats determine it.
    """
    state = import_state(weights.state, format)
    head = _class_head(format, state, weights.class_names, no_object)
    return max(0, count_logits(state) - head.no_object), head.names


def _class_head(format: Format, state: State, stored: Sequence[str] | None, no_object: bool) -> ClassHead:
    """Describes the class head in a file; in this project's files, ``no_object`` is assumed to be the model's."""
    no_object = no_object if format is OURS else not is_deformable(state)
    return ClassHead(class_names_of(format, count_logits(state) - no_object, stored), no_object)


def _fit_masks(state: State, own: State, source: str, options: LoadOptions) -> tuple[State, list[str]]:
    """Returns the state without masks that the model lacks, and the keys of a mask head that the file lacks."""
    theirs = [key for key in state if key.startswith(_MASKS)]
    ours = [key for key in own if key.startswith(_MASKS)]
    without = options.setting("mask_head", False)
    if theirs and not ours:
        logger.info("%s: the mask head is not loaded (%s)", source, without)
        return {key: value for key, value in state.items() if key not in theirs}, []
    if theirs or not ours or not any(key.startswith("encoder.") for key in state):
        return state, []
    if options.for_evaluation and not options.allow_partial:
        raise CheckpointError(f"{source} has no mask head: set {without}, or choose a detector with masks")
    logger.warning("%s has no mask head: it keeps its initial weights", source)
    return state, ours


def _check(report: LoadReport, own: State, state: State, source: str, options: LoadOptions) -> None:
    """Raises an error or logs a warning for weights that do not fit."""
    classes = report.classes
    if report.missing or report.unexpected or report.mismatched:
        text = _describe(report, own, state)
        if not options.allow_partial:
            raise CheckpointError(
                f"{source} has another architecture than the model:\n{text}\nUse the config that it was trained with, "
                f"or set {options.setting('allow_partial', True)} to load what fits and train the rest."
            )
        logger.warning("%s was loaded in part:\n%s", source, text)
    if classes.new and options.for_evaluation and not options.allow_partial:
        raise CheckpointError(
            f"{source} lacks some of the model's classes. {classes.message} To load the file's own logits, set "
            f"{options.setting('keep_logits', True)} and {options.name('num_classes')} to their number."
        )
    if classes.message:
        logger.log(logging.WARNING if classes.new else logging.INFO, "%s: %s", source, classes.message)


def _describe(report: LoadReport, own: State, state: State) -> str:
    lines = []
    for problem, keys in (("missing", report.missing), ("unexpected", report.unexpected)):
        if keys:
            lines.append(f"  {problem} in the file ({len(keys)}): {', '.join(shorten(keys))}")
    for key in report.mismatched[:8]:
        lines.append(f"  different shapes: {key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} here")
    return "\n".join(lines)


def _imagenet_keys(own: Iterable[str]) -> list[str]:
    """Returns the keys that backbone weights must have, without those of an FPN."""
    prefix = "backbone.bottom_up." if any(key.startswith("backbone.bottom_up.") for key in own) else "backbone."
    return [key for key in own if key.startswith(prefix) and not _NOT_IN_IMAGENET.search(key)]


def _is_unused_stage(key: str, own: Iterable[str]) -> bool:
    """Returns whether a key belongs to a stage after the last used feature map, which the model lacks."""
    stage = re.match(r".*\.(?:layer|res|features\.)\d\.", key)
    return stage is not None and not any(name.startswith(stage[0]) for name in own)


def _check_caffe2(detector: nn.Module, state: State, source: str, options: LoadOptions) -> None:
    """Checks for BGR images and, except with group norm, strides in the 1x1 convolutions, as in Caffe2's training."""
    group_norm = is_group_norm(state)
    strides_in_1x1 = _strides_in_1x1(detector)
    if options.input_format == "BGR" and strides_in_1x1 in (not group_norm, None):
        return
    settings = {
        "input_format": "BGR",
        "pixel_mean": "[103.530,116.280,123.675]",
        "pixel_std": "[57.375,57.120,58.395]" if group_norm else "[1.0,1.0,1.0]",
        "stride_in_1x1": not group_norm,
    }
    needed = ", ".join(options.setting(name, value) for name, value in settings.items())
    if not group_norm:
        needed += f", {options.setting('backbone', 'build_resnet_backbone')} (Detectron2's; ours strides in the 3x3)"
    found = f"{options.input_format} images"
    if strides_in_1x1 is not None:
        found += f" and strides in the {'1x1' if strides_in_1x1 else '3x3'}"
    raise CheckpointError(
        f"{source}: these weights were trained in Caffe2, on BGR images and with strides in the "
        f"{'3x3' if group_norm else '1x1'} convolutions; the model has {found}. Set {needed}; or use "
        f"{TORCHVISION}resnet50, as the configs do"
    )


def _strides_in_1x1(detector: nn.Module) -> bool | None:
    """Returns whether the ResNet's second stage downsamples in its first convolution, None for other backbones."""
    for name, module in detector.named_modules():
        if name.endswith(("layer2.0", "res3.0")):
            strides = [getattr(getattr(module, conv, None), "stride", None) for conv in ("conv1", "conv2")]
            if hasattr(module, "conv3") and None not in strides:
                return strides[0] in (2, (2, 2))
    return None
