"""Exported files: predictions at several sizes and batch sizes, metadata, and errors."""

import copy
import dataclasses
import importlib.util
import pickle
import subprocess
import sys

import pytest
import torch
from ms_deform_attn import MSDeformAttn

from projects_deformable_detr import build_detector
from projects_deformable_detr.config.inference import ModelMetadata
from projects_deformable_detr.data.images import ImageReader
from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.evaluation import EvaluationConfig
from projects_deformable_detr.export import GraphSpec, export_model, suffix
from projects_deformable_detr.inference import Detector
from projects_deformable_detr.inference.exported import ExportedModel, read_exported_metadata
from projects_deformable_detr.modeling import batch_images, postprocess

SIZES = [(1, 70, 100), (3, 65, 97), (1, 96, 128)]
TINY = {"ENC_LAYERS": 0, "DEC_LAYERS": 1, "NUM_FEATURE_LEVELS": 1, "IN_FEATURES": ["res5"]}
NAMES = ("ant", "bee", "cow", "dog", "elk")
RAW = {"preprocess": False, "postprocess": False, "input_type": "float32"}


def export(make_cfg, folder, graph, variant="two_stage", metadata=None, changes=TINY, **options):
    """Exports a tiny model; returns the detector and the opened file."""
    detector = build_detector(make_cfg(variant, **changes)).eval()
    with torch.no_grad():
        for parameter in detector.parameters():  # zero initial weights would hide errors in what they multiply
            parameter += 0.03 * torch.randn_like(parameter)
    metadata = metadata or ModelMetadata(NAMES, detector.no_object, detector.mask_head is not None)
    path = export_model(detector, metadata, folder / f"model{suffix(graph.format)}", graph, **options)
    assert {file.stem for file in folder.iterdir()} == {"model"}
    model = ExportedModel(path)
    stored = model.metadata
    assert stored.class_names == metadata.class_names
    if graph.format != "onnx" or importlib.util.find_spec("onnx"):
        assert read_exported_metadata(path)[0] == stored
    return detector, model


def check(detector, model, sizes=SIZES):
    """Compares detections: boxes differ by at most 1e-3 of the image, classes not at all."""
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in (model.metadata.pixel_mean, model.metadata.pixel_std)
    )
    for count, height, width in sizes:
        # The last image of a batch has padding.
        shapes = [(height, width)] * (count - 1) + [(height, width - 7 * (count > 1))]
        pixels = [torch.randint(256, (3, *shape)) for shape in shapes]
        if model.metadata.reader.format == "BGR":
            pixels = [image.flip(0) for image in pixels]
        images, mask = batch_images([(image - mean) / std for image in pixels])
        detector.mask_padding = "never"  # as in an exported graph
        found, expected = (postprocess(run(images, mask), shapes, 10) for run in (model, detector))
        for actual, reference in zip(found, expected, strict=True):
            assert actual.labels.tolist() == reference.labels.tolist()
            torch.testing.assert_close(actual.scores, reference.scores, rtol=0, atol=1e-4)
            torch.testing.assert_close(actual.boxes, reference.boxes, rtol=0, atol=1e-3 * min(height, width))
            if reference.masks is not None:
                assert float((actual.masks != reference.masks).float().mean()) < 1e-3


def test_onnx_with_detections_as_output(make_cfg, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    detector, model = export(make_cfg, tmp_path, GraphSpec("onnx"))
    check(detector, model)
    check(detector, pickle.loads(pickle.dumps(model)), SIZES[:1])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [item.name for item in session.get_inputs()] == ["images", "image_sizes"]
    names = ["boxes", "scores", "labels", "queries", "logits", "query_boxes"]
    assert [item.name for item in session.get_outputs()] == names
    pixels = torch.randint(256, (1, 3, 70, 100), dtype=torch.uint8)
    inputs = {"images": pixels.numpy(), "image_sizes": torch.tensor([[70, 100]]).numpy()}
    boxes, scores, labels, queries, logits, _ = map(torch.from_numpy, session.run(None, inputs))
    torch.testing.assert_close(scores, logits.sigmoid()[0, queries[0], labels[0]][None])
    assert scores.diff().le(0).all() and boxes.min() >= 0 and boxes[..., 0::2].max() <= 100


def test_options_of_detector_apply_to_all_queries(make_cfg, tmp_path):
    """The graph returns the best two detections; the options of a call select among all queries."""
    metadata = ModelMetadata(NAMES, evaluation=EvaluationConfig(max_detections=2), min_size=64, max_size=96)
    graph, size = GraphSpec("torchscript"), (64, 96)
    model, _ = export(make_cfg, tmp_path, graph, metadata=metadata, size=size)
    detectors = [
        Detector(model, dataclasses.replace(metadata, input_size=size)),
        Detector.load(tmp_path / "model.torchscript"),
    ]
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    for options in (
        {"classes": ["dog"]},
        {"top_k": 20},
        {"score_threshold": {"ant": 0.9, "dog": 0.0}, "top_k": 30},
        {"nms_threshold": 0.5, "top_k": 10},
    ):
        expected, found = (detector(image, **{"score_threshold": 0.0} | options) for detector in detectors)
        assert len(found) == len(expected) > 2 or "classes" in options
        assert found.labels.tolist() == expected.labels.tolist()
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0.1)


class Attention(torch.nn.Module):
    """MSDeformAttn on two levels, of which the sizes depend on the input."""

    def __init__(self):
        super().__init__()
        self.attention = MSDeformAttn(16, 2, 2, 3)

    def forward(self, fine, coarse, query, points):
        tokens = torch.cat((fine.flatten(1, 2), coarse.flatten(1, 2)), dim=1)
        return self.attention(query, points, tokens, [fine.shape[1:3], coarse.shape[1:3]])


@pytest.mark.parametrize("values", [2, 4])
@pytest.mark.parametrize("sampling", ["gather", "gridsample"])
def test_attention_in_onnx(tmp_path, sampling, values):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from projects_deformable_detr.export.onnx_attention import translation_table

    def inputs(n, height, width, queries):
        maps = torch.randn(n, height, width, 16), torch.randn(n, height // 2, width // 2, 16)
        return *maps, torch.randn(n, queries, 16), 1.4 * torch.rand(n, queries, 2, values) - 0.2

    module = Attention().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    free = torch.export.Dim.DYNAMIC
    axes = (dict.fromkeys(axes, free) for axes in ((0, 1, 2), (0, 1, 2), (0, 1), (0, 1)))
    program = torch.export.export(module, inputs(2, 6, 8, 5), dynamic_shapes=tuple(axes))
    file = tmp_path / "attention.onnx"
    torch.onnx.export(program, f=file, custom_translation_table=translation_table(sampling), verbose=False)
    session = onnxruntime.InferenceSession(file)
    names = [item.name for item in session.get_inputs()]
    for sizes in ((2, 6, 8, 5), (1, 9, 4, 12), (3, 2, 13, 2)):
        tensors = inputs(*sizes)
        found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})[0]
        torch.testing.assert_close(torch.from_numpy(found), module(*tensors), rtol=1e-4, atol=1e-4)


def test_torch_export_loads_with_the_operator_only(make_cfg, tmp_path):
    metadata = ModelMetadata(NAMES, reader=ImageReader("BGR"))
    changes = TINY | {"NUM_OBJECT_QUERIES": 10}  # the second size has fewer tokens
    detector, model = export(make_cfg, tmp_path, GraphSpec("torch-export"), metadata=metadata, changes=changes)
    check(detector, model, [(1, 70, 100), (2, 60, 90)])
    code = """
        import sys, torch, ms_deform_attn
        images, sizes = torch.zeros(1, 3, 70, 100, dtype=torch.uint8), torch.tensor([[70, 100]])
        boxes, *_ = torch.export.load(sys.argv[1]).module()(images, sizes)
        assert boxes.shape == (1, 50, 4) and "projects_deformable_detr" not in sys.modules
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    subprocess.run([sys.executable, "-c", code, tmp_path / "model.pt2"], check=True)


@pytest.mark.parametrize("is_raw", [False, True])
def test_torchscript_has_a_fixed_size(make_cfg, tmp_path, is_raw):
    graph = GraphSpec("torchscript", **RAW) if is_raw else GraphSpec("torchscript", input_type="float32")
    changes = {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8, "ENC_LAYERS": 1, "DEC_LAYERS": 1}
    detector, model = export(make_cfg, tmp_path, graph, "detr", None, changes, size=(70, 100))
    assert (model.metadata.input_size, model.metadata.batch_size) == ((70, 100), 1)
    check(detector, model, SIZES[:1])


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch-export", "aoti", "onnx", "openvino"])
def test_fewer_tokens_than_queries(make_cfg, tmp_path, format):
    if format in ("onnx", "openvino"):
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime" if format == "onnx" else "openvino")
    check(*export(make_cfg, tmp_path, GraphSpec(format), changes=TINY | {"NUM_OBJECT_QUERIES": 20}))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch-export", "aoti", "onnx", "openvino"])
@pytest.mark.parametrize("variant", ["single_scale", "box_refine", "own_level", "encoder_only", "detr", "masks"])
def test_all_formats(make_cfg, tmp_path, format, variant):
    if format in ("onnx", "openvino"):
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime" if format == "onnx" else "openvino")
    changes = {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8} if variant == "masks" else {}
    variant = "two_stage" if variant == "masks" else variant
    check(*export(make_cfg, tmp_path, GraphSpec(format), variant, None, changes))


def test_invalid_arguments_and_files(make_cfg, tmp_path):
    detector, metadata = build_detector(make_cfg()), ModelMetadata(NAMES)
    with pytest.raises(ArgumentError, match="suffix .onnx"):
        export_model(detector, metadata, tmp_path / "model.pt2", GraphSpec("onnx"))
    with pytest.raises(ArgumentError, match="precision must be one of 'float32', 'int8'"):
        export_model(detector, metadata, tmp_path / "model.onnx", GraphSpec("onnx", "bfloat16"))
    with pytest.raises(ArgumentError, match="calibration must be given"):
        export_model(detector, metadata, tmp_path / "model.onnx", GraphSpec("onnx", "int8"))
    with pytest.raises(ArgumentError, match="calibration must have at least one image"):
        export_model(detector, metadata, tmp_path / "model.onnx", GraphSpec("onnx", "int8"), calibration=iter([]))
    for format, precision, kind in (("aoti", "int8", "aoti in int8"), ("torch-export", "float32", "torch-export")):
        images = [torch.zeros(3, 64, 64, dtype=torch.uint8)] if precision == "int8" else None
        with pytest.raises(ArgumentError, match=f"must be on the CPU for {kind}: load"):
            graph = GraphSpec(format, precision)
            export_model(copy.deepcopy(detector).to("meta"), metadata, tmp_path / "m.pt2", graph, calibration=images)
    for name in ("model.torchscript", "model.pt2"):
        (tmp_path / name).write_bytes(b"no model")
        with pytest.raises(UserError, match=f"{name} cannot be opened as a model"):
            ExportedModel(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} cannot be read as a model"):
            read_exported_metadata(tmp_path / name)
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), tmp_path / "other.torchscript")
    for read in (ExportedModel, read_exported_metadata):
        with pytest.raises(UserError, match="no metadata: write it with deformable-detr export"):
            read(tmp_path / "other.torchscript")
