"""Detectors of tiny models with random weights, whose scores are spread over [0, 1], and running servers."""

import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from projects_deformable_detr import build_detector
from projects_deformable_detr.evaluation import EvaluationConfig
from projects_deformable_detr.inference import Detector, ModelMetadata

NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture
def make_detector(make_cfg: Callable[..., Any]) -> Callable[..., Detector]:
    """Returns ``make_detector(variant, is_panoptic, KEY=value…)``."""

    def make(variant: str = "multi_scale", is_panoptic: bool = False, **changes: Any) -> Detector:
        torch.manual_seed(3)  # with which the panoptic model finds things and stuff
        model = build_detector(make_cfg(variant, NORM="GN", **changes))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "class_heads" in name and name.endswith("bias"):
                    parameter.zero_()
                parameter.add_(
                    torch.randn_like(parameter) * (0.5 if "class_heads" in name else 3 if "quer" in name else 0.1)
                )
        evaluation = EvaluationConfig()
        if is_panoptic:
            evaluation = EvaluationConfig(thing_classes=(0, 1, 2), is_panoptic=True, panoptic_score_threshold=0.01)
        has_masks = changes.get("MASK_ON", False)
        metadata = ModelMetadata(NAMES, model.no_object, has_masks, min_size=64, max_size=96, evaluation=evaluation)
        return Detector(model, metadata, device="cpu")

    return make


@pytest.fixture
def detector(make_detector: Callable[..., Detector]) -> Detector:
    """A detector of boxes."""
    return make_detector()


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Returns the content of an image file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def picture() -> bytes:
    """A PNG file of 56 x 40 pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return encode(Image.fromarray(coarse).resize((56, 40)))


class Gate:
    """A detector that waits until ``open`` is set."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.metadata = detector, detector.metadata
        self.open, self.entered, self.calls = threading.Event(), threading.Event(), 0

    def __call__(self, *images: Any, **options: Any) -> Any:
        self.calls += 1
        self.entered.set()
        assert self.open.wait(30)
        return self.detector(*images, **options)


@pytest.fixture
def gate(detector: Detector) -> Iterator[Gate]:
    """A detector that waits until ``gate.open`` is set."""
    gate = Gate(detector)
    yield gate
    gate.open.set()


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Any, str]]]:
    """Returns ``start(detector, **limits)``, which runs a server in a thread and returns it with its URL."""
    pytest.importorskip("uvicorn")
    from projects_deformable_detr.serve.app import create_app
    from projects_deformable_detr.serve.limits import Limits
    from projects_deformable_detr.serve.server import Server, open_socket

    running = []

    def run(detector: Any, **limits: Any) -> tuple[Any, str]:
        listener = open_socket("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        chosen = Limits(**limits)
        server = Server(create_app(detector, chosen), chosen, "started")
        server.thread = threading.Thread(target=server.run, args=([listener],))
        server.thread.start()
        running.append(server)
        return server, url

    yield run
    for server in running:
        server.should_exit = True
    for server in running:
        server.thread.join(30)
        assert not server.thread.is_alive()
