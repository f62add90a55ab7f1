"""Checkpoints: reading and writing files, and other projects' weights by their keys."""

from .files import CLASS_NAMES, CheckpointError, Weights, read_state, read_weights, save_detector, write_atomically
from .imagenet import TORCHVISION, download
from .keys import recognise, to_ours
from .load import LoadOptions, LoadReport, fit, load_weights
from .pickles import read_pickle

__all__ = [
    "CLASS_NAMES",
    "CheckpointError",
    "LoadOptions",
    "LoadReport",
    "TORCHVISION",
    "Weights",
    "download",
    "fit",
    "load_weights",
    "read_pickle",
    "read_state",
    "read_weights",
    "recognise",
    "save_detector",
    "to_ours",
    "write_atomically",
]
