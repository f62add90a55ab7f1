"""Exports detectors to files for other runtimes."""

from ..inference.exported import GraphSpec
from .formats import PRECISIONS, export_model, suffix
from .quantization import calibration_images

__all__ = ["PRECISIONS", "GraphSpec", "calibration_images", "export_model", "suffix"]
