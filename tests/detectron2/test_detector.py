"""`Detector` finds what Detectron2's `DefaultPredictor` finds, and converts its results to ``Instances``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from projects_deformable_detr import Detector


@pytest.mark.parametrize("format", ["RGB", "BGR"])
@pytest.mark.parametrize(("height", "width"), [(50, 70), (90, 30)])
def test_detections_of_default_predictor(make_cfg, height, width, format):
    sizes = {"INPUT__MIN_SIZE_TEST": 64, "INPUT__MAX_SIZE_TEST": 96}
    cfg = make_cfg(MODEL__DEVICE="cpu", INPUT__FORMAT=format, VIS_PERIOD=20, **sizes)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    model = build_model(cfg)
    DetectionCheckpointer(model, str(folder)).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = DefaultPredictor(cfg)(pixels[:, :, ::-1])["instances"]
    Image.fromarray(pixels).save(folder / "image.png")
    found = Detector.load(folder)(folder / "image.png", score_threshold=0)
    instances = found.to_instances()
    assert len(instances) > 5 and instances.image_size == (height, width)
    torch.testing.assert_close(instances.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-5 * 90, rtol=0)
    torch.testing.assert_close(instances.scores, expected.scores, atol=1e-5, rtol=0)
    assert instances.pred_classes.tolist() == expected.pred_classes.tolist()
