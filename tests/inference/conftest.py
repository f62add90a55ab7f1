"""A checkpoint of a tiny model with random weights, and images of several sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import save_detector
from projects_deformable_detr.inference import Detector

NAMES = ("ant", "bee", "cat", "dog", "elk")
SIZES = ((40, 56), (56, 40), (40, 56), (30, 90))


@pytest.fixture
def save_tiny(make_cfg: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Returns ``save_tiny(variant, class_names, KEY=value…)``, which writes a checkpoint of a tiny model."""

    def save(variant: str = "multi_scale", class_names: tuple[str, ...] | None = NAMES, **changes: Any) -> Path:
        panoptic = changes.pop("panoptic", False)
        cfg = make_cfg(variant, **{"NORM": "GN"} | changes)
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
        cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (48, 64), 128
        if panoptic:
            cfg.MODEL.DETR.PANOPTIC.ENABLED, cfg.MODEL.DETR.PANOPTIC.NUM_THING_CLASSES = True, 3
            cfg.MODEL.DETR.PANOPTIC.SCORE_THRESH = 0.01
        torch.manual_seed(1)
        detector = build_detector(cfg)
        with torch.no_grad():
            for parameter in detector.parameters():  # so that classes and boxes differ between queries and images
                parameter.add_(torch.randn_like(parameter) * 0.1)
        path = tmp_path / "model_final.pth"
        save_detector(path, detector, iteration=0, cfg_text=cfg.dump(), class_names=class_names)
        return path

    return save


_detectors: list[Detector] = []


@pytest.fixture
def detector(save_tiny: Callable[..., Path]) -> Detector:
    """A detector of boxes, loaded once."""
    if not _detectors:
        _detectors.append(Detector.load(save_tiny()))
    return _detectors[0]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Images of different sizes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = []
    for index, size in enumerate(SIZES):
        coarse = rng.integers(0, 256, (size[0] // 10, size[1] // 10, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size[::-1]).save(folder / f"{index}.png")
        paths.append(str(folder / f"{index}.png"))
    return paths
