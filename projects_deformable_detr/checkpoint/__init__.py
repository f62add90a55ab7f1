"""Checkpoints: reading and writing files, and other projects' weights by their keys."""

from .files import CheckpointError, read_state, save_detector, write_atomically
from .keys import recognise, to_ours
from .load import LoadReport, load_weights

__all__ = [
    "CheckpointError",
    "LoadReport",
    "load_weights",
    "read_state",
    "recognise",
    "save_detector",
    "to_ours",
    "write_atomically",
]
