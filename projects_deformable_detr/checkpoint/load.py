"""Loading weights of any known kind into a detector, never silently in part."""

import logging
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torchvision
from torch import Tensor, nn

from .files import CheckpointError, read_state
from .keys import State, recognise, to_ours

logger = logging.getLogger(__name__)
_TORCHVISION = "torchvision://"
_SHOWN = 8
_ONLY_A_BACKBONE = (
    "these are weights of a backbone; to evaluate, set MODEL.WEIGHTS to a trained detector, such as "
    "OUTPUT_DIR/model_final.pth"
)


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        kind: ``"ours"``, ``"official"``, ``"hugging-face"``, ``"resnet"``, or ``"none"`` if nothing was loaded.
        missing: parameters that kept their initial values.
        unexpected: weights of the file that the model has no place for.
        mismatched: weights whose shape differs from the model's; these kept their initial values too.
    """

    kind: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


def load_weights(
    detector: nn.Module, source: str | Path, *, allow_partial: bool = False, for_evaluation: bool = False
) -> LoadReport:
    """Loads a file, or ``torchvision://resnet50`` (its ImageNet weights), into the detector, in place.

    Backbone weights fill the backbone and leave the rest as it is. A whole detector must fit exactly, unless
    ``allow_partial`` is set: then what fits is loaded and the rest is warned of, by name. ImageNet weights that
    cannot be downloaded are a warning, and the backbone starts from scratch; not so ``for_evaluation``, which needs
    a whole, trained detector.

    Raises:
        CheckpointError: if the file cannot be read, is of no known kind, or does not fit; it lists what is
            missing, unexpected and of another shape. The detector is unchanged then. With ``for_evaluation``
            also for an empty source and for weights of a backbone alone.
    """
    if for_evaluation and not str(source):
        raise CheckpointError("evaluation needs MODEL.WEIGHTS: a checkpoint, such as OUTPUT_DIR/model_final.pth")
    if for_evaluation and str(source).startswith(_TORCHVISION):
        raise CheckpointError(f"{source}: {_ONLY_A_BACKBONE}")
    state = _torchvision_weights(str(source)) if str(source).startswith(_TORCHVISION) else read_state(source)
    if state is None:
        _warn_from_scratch(detector, source)
        return LoadReport("none")
    kind = recognise(state)
    if kind == "unknown":
        raise CheckpointError(
            f"{source}: its keys ({', '.join(list(state)[:4])} …) are of no detector or backbone that is known here"
        )
    if for_evaluation and kind == "resnet":
        raise CheckpointError(f"{source}: {_ONLY_A_BACKBONE}")
    return _load(detector, to_ours(state, kind), kind, str(source), allow_partial)


def _torchvision_weights(source: str) -> State | None:
    name = source.removeprefix(_TORCHVISION)
    try:
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: torchvision has no such ImageNet weights; try torchvision://resnet50"
        ) from error
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except RuntimeError as error:  # the file's hash
        raise CheckpointError(f"{source}: the download is damaged ({error}): delete it and start again") from error
    except (URLError, OSError) as error:
        logger.warning("%s could not be downloaded (%s).", source, error)
        return None


def _warn_from_scratch(detector: nn.Module, source: str | Path) -> None:
    advice = ""
    if any(type(module).__name__ == "FrozenBatchNorm2d" for module in detector.modules()):
        advice = (
            " Its norms are frozen at the identity, which trains badly: set MODEL.RESNETS.NORM to BN or GN and "
            "MODEL.BACKBONE.FREEZE_AT to 0, or put the weights where the network is not needed and set MODEL.WEIGHTS"
        )
    logger.warning("Without the weights %s the backbone starts FROM SCRATCH.%s", source, advice)


def _load(detector: nn.Module, state: State, kind: str, source: str, allow_partial: bool) -> LoadReport:
    own = detector.state_dict()
    state = {key: value for key, value in state.items() if not _is_counter(key, own)}
    scope = [key for key in own if kind != "resnet" or key.startswith("backbone.")]
    mismatched = tuple(key for key in state if key in own and own[key].shape != state[key].shape)
    unexpected = tuple(key for key in state if key not in own and not _is_unbuilt_stage(key, own, kind))
    missing = tuple(key for key in scope if key not in state and not key.endswith("num_batches_tracked"))
    report = LoadReport(kind, missing, unexpected, mismatched)
    if missing or unexpected or mismatched:
        text = _describe(report, own, state)
        if not allow_partial:
            raise CheckpointError(
                f"{source} ({kind} weights) is of another architecture than the config:\n{text}\nUse its own "
                "config, or set MODEL.DETR.ALLOW_PARTIAL_WEIGHTS True to load what fits and train the rest anew."
            )
        logger.warning("%s (%s weights) was loaded in part:\n%s", source, kind, text)
    fitting = {key: value for key, value in state.items() if key in own and key not in mismatched}
    detector.load_state_dict(fitting, strict=False)
    logger.info("Loaded %d of %d tensors from %s (%s weights)", len(fitting), len(own), source, kind)
    return report


def _is_counter(key: str, own: dict[str, Tensor]) -> bool:
    """Batch norm's step counter, which a frozen norm does not have."""
    return key.endswith("num_batches_tracked") and key not in own


def _is_unbuilt_stage(key: str, own: dict[str, Tensor], kind: str) -> bool:
    """Stages of an ImageNet model beyond the last feature map in use."""
    stage = ".".join(key.split(".")[:2]) + "."
    return kind == "resnet" and key.startswith("backbone.layer") and not any(name.startswith(stage) for name in own)


def _describe(report: LoadReport, own: dict[str, Tensor], state: State) -> str:
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
