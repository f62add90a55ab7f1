"""Formats of checkpoints, one object per format; `detect` finds the format of a state dict by its keys."""

from collections.abc import Iterable

from .backbones import RESNETS, TORCHVISION_SWIN
from .base import Format, State
from .detector import OURS
from .hugging_face import HUGGING_FACE
from .mmdetection import MMDETECTION
from .official import DETREX, OFFICIAL

FORMATS: tuple[Format, ...] = (OURS, OFFICIAL, DETREX, HUGGING_FACE, MMDETECTION, TORCHVISION_SWIN, *RESNETS)
# Prefixes of all keys: of distributed training, of our engines, and of the detector in a model with masks.
_PREFIXES = ("module.", "detector.", "detr.", "detr.")


def detect(keys: Iterable[str]) -> Format | None:
    """Returns the format of a state dict with these keys, or None if it is unknown."""
    bare = {_remove_prefixes(key) for key in keys}
    return next((format for format in FORMATS if format.detect(bare)), None)


def import_state(state: State, format: Format) -> State:
    """Converts a state dict of the format to the detector's keys and layout."""
    return format.import_state({_remove_prefixes(key): value for key, value in state.items()})


def _remove_prefixes(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key
