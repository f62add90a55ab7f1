"""Runtimes of exported files: device, threads, file names."""

import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from projects_deformable_detr import build_detector
from projects_deformable_detr.config.inference import ModelMetadata
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.export import GraphSpec, calibration_images, export_model
from projects_deformable_detr.inference import Detector
from projects_deformable_detr.inference.exported import KEY, ExportedModel, encode_metadata

METADATA = ModelMetadata(("ant", "bee"), min_size=64, max_size=64)
INPUTS = torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)


class Brightness(nn.Module):
    """Predicts logits that are proportional to the mean of the image, and one box."""

    def forward(self, images, mask):
        logits = images.mean((2, 3))[:, None, :2] + 0 * mask.float().mean()
        return logits, torch.cat((logits, logits), dim=2) * 0 + 0.5


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def exported(request, tmp_path_factory):
    """An exported file of `Brightness`."""
    graph = GraphSpec(request.param, preprocess=False, postprocess=False, input_type="float32")
    text, folder = encode_metadata(METADATA, graph), tmp_path_factory.mktemp("exported")
    if request.param == "openvino":
        openvino = pytest.importorskip("openvino")
        model = openvino.convert_model(Brightness(), example_input=INPUTS)
        model.set_rt_info(text, [KEY])
        openvino.save_model(model, folder / "model.xml")
        return folder / "model.xml"
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(Brightness().eval(), INPUTS, dynamo=True, verbose=False)
    program.model.metadata_props[KEY] = text
    program.save(folder / "model.onnx")
    return folder / "model.onnx"


def test_automatic_device_is_one_of_the_runtime(exported, monkeypatch):
    """PyTorch's GPU is not used if the runtime does not support it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Detector.load(exported).device.type == "cpu"


def test_threads(exported):
    """Concurrent calls return the results of their own inputs, which later calls do not change."""
    model = ExportedModel(exported)
    failures = []

    def work(value):
        try:
            results = [model(torch.full((1, 3, 64, 64), value), INPUTS[1]).logits for _ in range(200)]
            assert all((logits - value).abs().max() < 1e-5 for logits in results)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(float(value),)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_padding_of_small_images_is_reported_once(tmp_path, caplog):
    """Graphs do not mask padding: see `mask_padding` of the model."""
    graph = GraphSpec("torchscript", preprocess=False, postprocess=False, input_type="float32", min_side=65)
    traced, files = torch.jit.trace(Brightness(), INPUTS), {KEY: encode_metadata(METADATA, graph)}
    torch.jit.save(traced, tmp_path / "model.torchscript", _extra_files=files)
    model = ExportedModel(tmp_path / "model.torchscript")
    for side, count in ((65, 0), (64, 1), (64, 1)):
        logits = model(torch.ones(1, 3, side, side), torch.zeros(1, side, side, dtype=torch.bool)).logits
        torch.testing.assert_close(logits, torch.full_like(logits, (side / 65) ** 2))
        assert caplog.text.count(f"images of {side} x {side} pixels are padded to at least 65") == count


def test_files_of_an_earlier_version_must_be_exported_again(tmp_path):
    class Earlier(nn.Module):
        def forward(self, images, sizes):
            boxes = images.float().mean((2, 3))[:, None, [0, 1, 2, 0]]
            return boxes, boxes[..., 0], boxes[..., 0].long()

    inputs = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]])
    traced, text = torch.jit.trace(Earlier(), inputs), encode_metadata(METADATA, GraphSpec("torchscript"))
    torch.jit.save(traced, tmp_path / "model.torchscript", _extra_files={KEY: text})
    with pytest.raises(UserError, match="has 3 outputs, .* export the model again"):
        Detector.load(tmp_path / "model.torchscript")(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float.onnx", "prepared.onnx", "model.xml", "model.pt2"])
def test_int8_files(make_cfg, tmp_path, name):
    """Quantized files have any name, and are smaller than those in float32, apart from compiled code."""
    for package in ("onnxscript", "onnxruntime", "openvino", "nncf", "torchao"):
        pytest.importorskip(package)
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "1.png")
    detector = build_detector(make_cfg("detr", ENC_LAYERS=1, DEC_LAYERS=1)).eval()
    metadata = ModelMetadata(tuple("abcde"), detector.no_object, min_size=64, max_size=96)
    path = tmp_path / name
    images = calibration_images(folder, metadata, 1)
    format = {".onnx": "onnx", ".xml": "openvino", ".pt2": "aoti"}[path.suffix]
    export_model(detector, metadata, path, GraphSpec(format, "int8"), calibration=images)
    size = sum(file.stat().st_size for file in tmp_path.iterdir() if file.is_file())
    assert format == "aoti" or size < 2 * sum(parameter.numel() for parameter in detector.parameters())  # bytes
    if format == "aoti":
        with zipfile.ZipFile(path) as archive:
            code = b"".join(archive.read(item) for item in archive.namelist() if item.endswith(".cpp"))
        assert code.count(b"qconv") and code.count(b"qlinear")
    found, expected = (
        item(pixels, score_threshold=0.0).scores for item in (Detector.load(path), Detector(detector, metadata))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)
