"""Object detection in images: `Detector` and its results, `Detections`."""

from .detections import Detection, Detections
from .detector import Detector
from .images import ImageError
from .model import ModelMetadata, Runner

__all__ = ["Detection", "Detections", "Detector", "ImageError", "ModelMetadata", "Runner"]
