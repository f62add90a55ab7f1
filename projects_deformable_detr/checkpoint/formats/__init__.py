"""Checkpoint formats, one object per format; `import_state` detects the format of a state dict from its keys."""

import re

from .backbones import RESNETS, TORCHVISION_SWIN
from .base import Format, State
from .detector import NATIVE
from .hugging_face import HUGGING_FACE
from .mmdetection import MMDETECTION
from .official import DETREX, OFFICIAL

FORMATS: tuple[Format, ...] = (NATIVE, OFFICIAL, DETREX, HUGGING_FACE, MMDETECTION, TORCHVISION_SWIN, *RESNETS)
# Prefixes of distributed and compiled modules, of the engines, and of the detector in a model with masks.
_WRAPPERS = re.compile(r"^(?:module\.|detector\.|detr\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
_MODEL = "model."  # prefix of all keys if the network is an attribute ``model``, and of some keys in Hugging Face files


def import_state(state: State) -> tuple[Format | None, State]:
    """Returns the format of a state dict, and the state dict converted to the detector's keys and layout.

    For an unknown format, returns None and the state dict unchanged.
    """
    format, unwrapped = _unwrap(state)
    return format, format.import_state(unwrapped) if format else state


def _unwrap(state: State) -> tuple[Format | None, State]:
    """Returns the format of a state dict, and the state dict without wrapper prefixes."""
    while True:
        state = {_WRAPPERS.sub("", key): value for key, value in state.items()}
        format = next((format for format in FORMATS if format.detect(state)), None)
        if format or not state or not all(key.startswith(_MODEL) for key in state):
            return format, state
        state = {key.removeprefix(_MODEL): value for key, value in state.items()}
