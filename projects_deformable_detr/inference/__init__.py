"""Object detection in images: `Detector` and its results, `Detections`."""

from ..config.inference import ModelMetadata
from .detections import Detection, Detections
from .detector import Detector
from .explanation import Explanation
from .images import ImageError
from .model import Runner

__all__ = ["Detection", "Detections", "Detector", "Explanation", "ImageError", "ModelMetadata", "Runner"]
