"""deformable-detr export: Detector opens the file; options that have no effect are errors."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import save_detector
from projects_deformable_detr.cli.main import main
from projects_deformable_detr.inference import Detector


@pytest.fixture
def weights(make_cfg, tmp_path):
    """A checkpoint whose images have 64 x 96 pixels, with a picture next to it."""
    cfg = make_cfg("detr", ENC_LAYERS=0, DEC_LAYERS=1)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    detector = build_detector(cfg)
    names = ("ant", "bee", "cow", "dog", "elk")
    save_detector(tmp_path / "model_final.pth", detector, iteration=0, cfg_text=cfg.dump(), class_names=names)
    pixels = np.random.default_rng(0).integers(256, size=(128, 192, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "model_final.pth"


@pytest.mark.parametrize("format", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow)])
def test_detector_opens_the_exported_file(weights, capsys, format, monkeypatch):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    size = ["--size", "64", "96"] if format == "torchscript" else []
    assert main(["export", str(weights.parent), "--format", format, *size]) == 0
    path = weights.with_name(f"model.{format}")
    assert str(path) in capsys.readouterr().out
    picture = weights.with_name("picture.png")
    found, expected = (Detector.load(file, device="cpu")(picture, score_threshold=0.0) for file in (path, weights))
    assert len(found) == len(expected) == 7 and found.names == expected.names
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0.1)
    assert main(["export", str(path), "--format", "onnx"]) == 2
    assert "is an exported model: export the checkpoint" in capsys.readouterr().err
    assert main(["convert", str(path), "converted.pth"]) == 2
    assert "is an exported model: convert the checkpoint" in capsys.readouterr().err
    monkeypatch.delattr(torch.jit, "load")  # info does not open the runtime
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["info", str(path)]) == 0
    assert "classes    5: ant, bee, cow, dog, elk\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["onnx", "--size", "64", "64"], "--size is for --format torchscript"),
        (["aoti", "--opset", "18"], "--opset and --sampling are for --format onnx and openvino"),
        (["onnx", "--precision", "int8"], "--calibration DIR, a folder of images, must be used together"),
        (["torchscript", "--size", "0", "0"], "--size must be two positive numbers, got 0 0"),
        (["onnx", "--calibration-images", "0"], "--calibration-images must be at least 1, got 0"),
        (["onnx", "--device", "cuda"], "--device is for --format aoti"),
        (["onnx", "--precision", "int8", "--calibration", "{}/none"], "has no images"),
        (["onnx", "--opset", "17"], "opset must be in [18, 22], got 17"),
        (["onnx", "--opset", "99"], "opset must be in [18, 22], got 99"),
        (["onnx", "--output", "model.pt2"], "must have the suffix .onnx"),
    ],
)
def test_invalid_options(weights, capsys, options, message):
    assert main(["export", str(weights), "--format", *(word.format(weights.parent) for word in options)]) == 2
    assert message in capsys.readouterr().err
