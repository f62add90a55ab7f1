"""Writes models in the formats of `projects_deformable_detr.inference.exported`."""

import copy
import dataclasses
import io
import itertools
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..config.inference import ModelMetadata
from ..errors import ArgumentError, Range, check_choice
from ..inference.exported import KEY, SUFFIXES, GraphSpec, encode_metadata
from ..modeling import Detector
from .graph import INPUT_NAMES, OUTPUT_NAMES, DetectionGraph, capture, example_inputs, fold_norms

PRECISIONS = {
    "torch-export": ("float32", "bfloat16", "float16"),
    "aoti": ("float32", "bfloat16", "float16", "int8"),
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "float16", "int8"),
    "torchscript": ("float32", "bfloat16", "float16"),
}
OPSET = 18
_OPSETS = Range(18, 22)  # lower ones are ignored by the exporter; ONNX Runtime rejects its attention of opset 23


def suffix(format: str) -> str:
    """Returns the file suffix of a format."""
    return {**{name: end for end, name in SUFFIXES.items()}, "aoti": ".pt2"}[format]


def export_model(
    detector: Detector,
    metadata: ModelMetadata,
    path: str | os.PathLike[str],
    graph: GraphSpec,
    *,
    opset: int = OPSET,
    sampling: str = "gather",
    size: tuple[int, int] = (800, 800),
    calibration: Iterable[Tensor] | None = None,
) -> Path:
    """Writes a detector to a file that `Detector.load` opens.

    Args:
        detector: model in float32; not changed.
        metadata: classes, preprocessing and postprocessing, stored in the file.
        path: output file with the suffix of the format. For OpenVINO, the weights are written to a second file with the
            suffix ``.bin``.
        graph: format, precision, inputs and outputs. ``min_side`` and ``device`` are set by the export.
        opset: ONNX opset version, 18 to 22.
        sampling: sampling operators for ONNX and OpenVINO, ``"gather"`` or ``"gridsample"``. TensorRT 10.14 to 11.1
            miscompiles ``"gridsample"``.
        size: (height, width) of the images for TorchScript, which does not support dynamic shapes.
        calibration: images (3, h, w) uint8 RGB, representative of the application; required for ``"int8"``, otherwise
            None.

    Returns:
        The path.

    Raises:
        ArgumentError: for an invalid argument.
        ModuleNotFoundError: if a package that the format requires is not installed.
    """
    path = Path(path)
    check_choice("precision", graph.precision, PRECISIONS[graph.format])
    if path.suffix != suffix(graph.format):
        raise ArgumentError("path", f"must have the suffix {suffix(graph.format)} for {graph.format}, got {path}")
    if opset not in _OPSETS:
        raise ArgumentError("opset", f"must be {_OPSETS}, got {opset}")
    if (graph.precision == "int8") != (calibration is not None):
        raise ArgumentError("calibration", "must be given for int8, and for int8 only")
    if calibration is not None:
        calibration = iter(calibration)
        if (first := next(calibration, None)) is None:
            raise ArgumentError("calibration", "must have at least one image")
        calibration = itertools.chain([first], calibration)
    if size[0] < 1 or size[1] < 1:
        raise ArgumentError("size", f"must be positive, got {size}")
    if (graph.format != "aoti" or graph.precision == "int8") and next(detector.parameters()).device.type != "cpu":
        kind = f"{graph.format} in int8" if graph.format == "aoti" else graph.format
        raise ArgumentError("detector", f"must be on the CPU for {kind}: load it with device='cpu'")
    detector = copy.deepcopy(detector).eval()
    fold_norms(detector.backbone)  # AOTInductor would compute the folded weights in every call
    if graph.format == "aoti" and calibration is not None:
        from .quantized_layers import quantize_layers

        detector = quantize_layers(detector, metadata, calibration).to(torch.bfloat16)
    # If no parameter requires gradients, torch.export selects a matrix product with a fixed batch size.
    detector.requires_grad_()
    if graph.format != "openvino" and graph.precision in ("bfloat16", "float16"):
        detector = detector.to(getattr(torch, graph.precision))
    module = DetectionGraph(detector, metadata, graph).to(next(detector.parameters()).device).eval()
    graph = dataclasses.replace(graph, device=next(detector.parameters()).device.type)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        file = Path(folder) / path.name
        if graph.format == "torchscript":
            _write_torchscript(module, metadata, graph, file, size)
        else:
            program, min_side = capture(module, graph)
            graph = dataclasses.replace(graph, min_side=min_side)
            if graph.format in ("torch-export", "aoti"):
                _write_torch_program(program, encode_metadata(metadata, graph), graph, file)
            else:
                _write_onnx(program, metadata, graph, file, opset, sampling, calibration)
        for written in sorted(Path(folder).iterdir()):  # .bin before .xml
            os.replace(written, path.parent / written.name)
    return path


def _write_torch_program(program: ExportedProgram, text: str, graph: GraphSpec, file: Path) -> None:
    if graph.format == "torch-export":
        torch.export.save(program, file, extra_files={KEY: text})
        return
    from torch._inductor import aoti_compile_and_package

    options: dict[str, Any] = {"aot_inductor.metadata": {KEY: text}}
    # Freezing packs weights for oneDNN and selects INT8 kernels. Inductor cannot fold constants of graphs with sym_min.
    freezes = graph.device == "cpu" and all(node.target is not torch.sym_min for node in program.graph.nodes)
    if freezes:
        options["freezing"] = True
        for node in list(program.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:  # a second user of quantized tensors
                program.graph.erase_node(node)
    elif graph.precision == "int8":
        raise ArgumentError("postprocess", "must be False for an encoder-only model in int8 with aoti")
    with torch.set_grad_enabled(not freezes):  # freezing requires no_grad
        aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)


def _write_torchscript(
    module: DetectionGraph, metadata: ModelMetadata, graph: GraphSpec, file: Path, size: tuple[int, int]
) -> None:
    metadata = dataclasses.replace(metadata, input_size=size, batch_size=1)
    example = example_inputs(graph, 1, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the fixed size and the deprecation of TorchScript
        traced = torch.jit.trace(module, example, check_trace=False)
    # In memory first: if the disk is full, torch.jit.save ends the process.
    content = io.BytesIO()
    torch.jit.save(traced, content, _extra_files={KEY: encode_metadata(metadata, graph)})
    file.write_bytes(content.getvalue())


def _write_onnx(
    program: ExportedProgram,
    metadata: ModelMetadata,
    graph: GraphSpec,
    file: Path,
    opset: int,
    sampling: str,
    calibration: Iterable[Tensor] | None,
) -> None:
    """Writes an ONNX file, or converts it to OpenVINO's format."""
    from .onnx_attention import translation_table

    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings inside the exporter
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=INPUT_NAMES[graph.preprocess],
            output_names=OUTPUT_NAMES[graph.postprocess] + ("masks",) * metadata.has_masks,
            custom_translation_table=translation_table(sampling),
            verbose=False,
        )
    assert onnx_program is not None
    onnx_program.model.metadata_props[KEY] = encode_metadata(metadata, graph)
    if graph.format == "onnx" and calibration is None:
        onnx_program.save(file, external_data=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        float_file = Path(folder) / "float.onnx"
        onnx_program.save(float_file, external_data=False)
        if graph.format == "onnx":
            from .quantization import quantize_onnx

            assert calibration is not None
            quantize_onnx(float_file, file, graph, metadata, calibration)
        else:
            _convert_to_openvino(float_file, file, metadata, graph, calibration)


def _convert_to_openvino(
    source: Path, file: Path, metadata: ModelMetadata, graph: GraphSpec, calibration: Iterable[Tensor] | None
) -> None:
    import openvino

    model = openvino.convert_model(source)
    if calibration is not None:
        from .quantization import quantize_openvino

        model = quantize_openvino(model, graph, metadata, calibration)
    model.set_rt_info(encode_metadata(metadata, graph), [KEY])
    openvino.save_model(model, file, compress_to_fp16=graph.precision == "float16")
