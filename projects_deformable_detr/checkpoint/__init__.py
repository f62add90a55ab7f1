"""Reads and writes checkpoints, including weights in the formats of other projects."""

from .files import (
    CLASS_NAMES,
    CheckpointError,
    Weights,
    atomic_file,
    read_checkpoint,
    read_weights,
    save_detector,
    write_atomically,
)
from .formats import import_state
from .formats.hugging_face import write_hugging_face
from .formats.official import write_official
from .load import LoadOptions, LoadReport, fit, load_weights
from .pickles import read_pickle

__all__ = [
    "CLASS_NAMES",
    "CheckpointError",
    "LoadOptions",
    "LoadReport",
    "Weights",
    "atomic_file",
    "fit",
    "load_weights",
    "read_checkpoint",
    "read_pickle",
    "read_weights",
    "save_detector",
    "import_state",
    "write_atomically",
    "write_hugging_face",
    "write_official",
]
