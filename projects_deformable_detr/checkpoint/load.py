"""Loading weights of any known kind into a detector, never silently in part."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from . import stem
from .classes import Heads, Names, Outcome, fit_class_heads, names_in_file
from .files import CheckpointError, Weights, read_weights
from .imagenet import TORCHVISION, CannotDownloadError, download
from .keys import is_backbone, recognise, to_dialect_of, to_ours
from .layout import is_deformable
from .names import State

logger = logging.getLogger(__name__)
_SHOWN = 8
_MASKS = "mask_head."
# Offsets of deformable convolutions, ours and Detectron2's, and the norms of a Swin Transformer's feature maps.
_NEW = re.compile(r"\.conv2(\.|_)offset\.|\.norms\.res\d\.")
_ONLY_A_BACKBONE = (
    "these are weights of a backbone; to evaluate, set MODEL.WEIGHTS to a trained detector, such as "
    "OUTPUT_DIR/model_final.pth"
)


@dataclass(frozen=True)
class LoadOptions:
    """What a load may do, and what is known of the model beyond its modules.

    Attributes:
        allow_partial: load what fits, and leave the rest as it is (``MODEL.DETR.ALLOW_PARTIAL_WEIGHTS``).
        for_evaluation: refuse what would leave parameters untrained.
        keep_logits: take class heads as they are (``MODEL.DETR.KEEP_CLASS_LOGITS``).
        class_names: of the model's classes in their order, where they are known.
        input_format: ``"RGB"`` or ``"BGR"`` (``INPUT.FORMAT``).
    """

    allow_partial: bool = False
    for_evaluation: bool = False
    keep_logits: bool = False
    class_names: tuple[str, ...] | None = None
    input_format: str = "RGB"

    @staticmethod
    def of(cfg: Any, *, for_evaluation: bool = False, class_names: tuple[str, ...] | None = None) -> "LoadOptions":
        """Those of a config."""
        detr = cfg.MODEL.DETR
        return LoadOptions(
            detr.ALLOW_PARTIAL_WEIGHTS, for_evaluation, detr.KEEP_CLASS_LOGITS, class_names, cfg.INPUT.FORMAT
        )


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        kind: as `keys.recognise` tells it, or ``"none"`` if nothing was loaded.
        missing: parameters that kept their initial values.
        unexpected: weights of the file that the model has no place for.
        mismatched: weights whose shape differs from the model's; these kept their initial values too.
        classes: what became of the class heads.
    """

    kind: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    classes: Outcome = Outcome("none")


def load_weights(detector: nn.Module, source: str | Path, options: LoadOptions | None = None) -> LoadReport:
    """Loads a file, or ``torchvision://resnet50`` (its ImageNet weights), into the detector, in place.

    Backbone weights fill the backbone and leave the rest as it is. A whole detector must fit exactly but for its class
    heads (see `classes`), unless a partial load is allowed: then what fits is loaded and the rest is warned of, by
    name. ImageNet weights that cannot be downloaded are a warning, and the backbone starts from scratch; not so for
    evaluation, which needs a whole, trained detector.

    Raises:
        CheckpointError: if the file cannot be read, is of no known kind, or does not fit; it lists what is
            missing, unexpected and of another shape. The detector is unchanged then. For evaluation also for an empty
            source and for weights of a backbone alone.
    """
    options = options or LoadOptions()
    if options.for_evaluation and not str(source):
        raise CheckpointError("evaluation needs MODEL.WEIGHTS: a checkpoint, such as OUTPUT_DIR/model_final.pth")
    if str(source).startswith(TORCHVISION):
        if options.for_evaluation:
            raise CheckpointError(f"{source}: {_ONLY_A_BACKBONE}")
        try:
            source = download(str(source))
        except CannotDownloadError as error:
            logger.warning("%s", error)
            _warn_from_scratch(detector, source)
            return LoadReport("none")
    weights = read_weights(source)
    if recognise(weights.state) == "unknown":
        raise CheckpointError(
            f"{source}: its keys ({', '.join(list(weights.state)[:4])} …) are of no detector or backbone that is known "
            "here"
        )
    fitting, report = fit(detector, weights, str(source), options)
    detector.load_state_dict(fitting, strict=False)
    return report


def _warn_from_scratch(detector: nn.Module, source: str | Path) -> None:
    advice = ""
    if any(type(module).__name__ == "FrozenBatchNorm2d" for module in detector.modules()):
        advice = (
            " Its norms are frozen at the identity, which trains badly: set MODEL.RESNETS.NORM to BN or GN and "
            "MODEL.BACKBONE.FREEZE_AT to 0, or put the weights where the network is not needed and set MODEL.WEIGHTS"
        )
    logger.warning("Without the weights %s the backbone starts FROM SCRATCH.%s", source, advice)


def fit(detector: nn.Module, weights: Weights, source: str, options: LoadOptions) -> tuple[State, LoadReport]:
    """The weights that ``detector.load_state_dict`` is to be given, by its names, and what to say of them, in the log.

    Args:
        detector: unchanged.
        weights: of a recognised kind.
        source: its name in messages.
        options: see there.

    Raises:
        CheckpointError: if they do not fit.
    """
    kind = recognise(weights.state)
    if options.for_evaluation and is_backbone(kind):
        raise CheckpointError(f"{source}: {_ONLY_A_BACKBONE}")
    if kind == "resnet-caffe2":
        stem.check_caffe2(detector, weights.state, source, options.input_format)
    own = detector.state_dict()
    state = to_dialect_of(own, to_ours(weights.state, kind))
    state = {key: value for key, value in state.items() if not _is_counter(key, own)}
    state, classes = _fit_classes(detector, state, own, kind, weights, options)
    state, new_masks = _fit_masks(state, own, f"{source} ({kind} weights)", options)
    scope = _imagenet_keys(own) if is_backbone(kind) else list(own)
    mismatched = tuple(key for key in state if key in own and own[key].shape != state[key].shape)
    unexpected = tuple(key for key in state if key not in own and not _is_unbuilt_stage(key, own, kind))
    given = {*state, *new_masks, *_counters(own)}
    missing = tuple(key for key in scope if key not in given)
    report = LoadReport(kind, missing, unexpected, mismatched, classes)
    fitting = {key: value for key, value in state.items() if key in own and key not in mismatched}
    _tell(report, own, state, f"{source} ({kind} weights)", options)
    logger.info("Loading %d of %d tensors from %s (%s weights)", len(fitting), len(own), source, kind)
    return fitting, report


def _fit_classes(
    detector: nn.Module, state: State, own: State, kind: str, weights: Weights, options: LoadOptions
) -> tuple[State, Outcome]:
    softmax = bool(getattr(detector, "no_object", False))
    theirs = _heads(state, kind, weights, softmax)
    if theirs is None:
        return state, Outcome("none")
    return fit_class_heads(state, own, theirs, Heads(options.class_names, softmax), keep_logits=options.keep_logits)


def _fit_masks(state: State, own: State, source: str, options: LoadOptions) -> tuple[State, list[str]]:
    """Boxes come before masks: a detector without them may start a model with a mask head, and the other way round.

    Returns:
        the state without masks that the model does not have, and the mask head's keys if it starts anew.
    """
    theirs = [key for key in state if key.startswith(_MASKS)]
    ours = [key for key in own if key.startswith(_MASKS)]
    if theirs and not ours:
        logger.info("%s: the mask head is left out: MODEL.MASK_ON is False", source)
        return {key: value for key, value in state.items() if key not in theirs}, []
    if theirs or not ours or not any(key.startswith("encoder.") for key in state):
        return state, []
    if options.for_evaluation and not options.allow_partial:
        raise CheckpointError(f"{source} has no mask head: set MODEL.MASK_ON False, or name a detector with masks")
    logger.warning("%s has no mask head: it starts anew", source)
    return state, ours


def _heads(state: State, kind: str, weights: Weights, softmax: bool) -> Heads | None:
    """What is known of a file's class heads; ``softmax`` says it of our own, which nothing in a file tells."""
    head = next((key for key in state if key.startswith(("decoder.class_heads.0.", "queries.class_head."))), None)
    if head is None:
        return None
    softmax = softmax if kind == "ours" else not is_deformable(state)
    return Heads(names_in_file(kind, len(state[head]) - softmax, weights.class_names), softmax)


def file_classes(weights: Weights, softmax: bool) -> tuple[int, Names | None]:
    """The number of classes of a whole detector's file, and their names where they are known.

    ``softmax`` says whether a file of ours is of a detector with a logit for no object.
    """
    kind = recognise(weights.state)
    state = to_ours(weights.state, kind)
    heads = _heads(state, kind, weights, softmax)
    head = next((key for key in state if key.startswith(("decoder.class_heads.0.", "queries.class_head."))), None)
    if heads is None or head is None:
        return 0, None
    return len(state[head]) - heads.no_object, heads.names


def _tell(report: LoadReport, own: State, state: State, source: str, options: LoadOptions) -> None:
    """Refuses, or warns of, what is not as it should be."""
    classes = report.classes
    if report.missing or report.unexpected or report.mismatched:
        text = _describe(report, own, state)
        if not options.allow_partial:
            raise CheckpointError(
                f"{source} is of another architecture than the config:\n{text}\nUse its own config, or set "
                "MODEL.DETR.ALLOW_PARTIAL_WEIGHTS True to load what fits and train the rest anew."
            )
        logger.warning("%s was loaded in part:\n%s", source, text)
    if classes.new and options.for_evaluation and not options.allow_partial:
        raise CheckpointError(
            f"{source} does not know all of the model's classes. {classes.sentence} To take the file's own logits as "
            "they are, set MODEL.DETR.KEEP_CLASS_LOGITS True and their number in MODEL.DETR.NUM_CLASSES."
        )
    if classes.sentence:
        logger.log(logging.WARNING if classes.new else logging.INFO, "%s: %s", source, classes.sentence)


def _imagenet_keys(own: State) -> list[str]:
    """What weights of a backbone have to fill: not the pyramid on top, nor what ImageNet models do not have."""
    prefix = "backbone.bottom_up." if any(key.startswith("backbone.bottom_up.") for key in own) else "backbone."
    return [key for key in own if key.startswith(prefix) and not _NEW.search(key)]


def _counters(own: State) -> list[str]:
    return [key for key in own if key.endswith("num_batches_tracked")]


def _is_counter(key: str, own: State) -> bool:
    """Batch norm's step counter, which a frozen norm does not have."""
    return key.endswith("num_batches_tracked") and key not in own


def _is_unbuilt_stage(key: str, own: State, kind: str) -> bool:
    """Stages of an ImageNet model beyond the last feature map in use."""
    stage = re.match(r".*\.(?:layer|res|features\.)\d\.", key)
    return is_backbone(kind) and stage is not None and not any(name.startswith(stage[0]) for name in own)


def _describe(report: LoadReport, own: State, state: State) -> str:
    def listed(keys: tuple[str, ...]) -> str:
        return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")

    lines = []
    if report.missing:
        lines.append(f"  missing in the file ({len(report.missing)}): {listed(report.missing)}")
    if report.unexpected:
        lines.append(f"  unexpected in the file ({len(report.unexpected)}): {listed(report.unexpected)}")
    for key in report.mismatched[:_SHOWN]:
        lines.append(f"  of another shape: {key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} here")
    return "\n".join(lines)
