"""Exported models: files of torch.export, AOTInductor, ONNX, OpenVINO and TorchScript as runners of `Detector`."""

import json
import logging
import os
import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config.inference import ModelMetadata
from ..errors import UserError, check_choice
from ..modeling import Predictions
from ..modeling.padding import image_sizes
from .model import choose_device, to_predictions

FORMATS = ("torch-export", "aoti", "onnx", "openvino", "torchscript")
SUFFIXES = {".pt2": "torch-export", ".onnx": "onnx", ".xml": "openvino", ".torchscript": "torchscript"}
KEY = "deformable_detr"  # name of the metadata in all formats
_logger = logging.getLogger(__name__)
_Session = Callable[[Tensor, Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class GraphSpec:
    """Inputs, outputs and precision of an exported graph.

    The inputs are images (N, 3, H, W) and, with ``preprocess``, image sizes (N, 2) int64 as (height, width) without
    padding; otherwise the padding mask (N, H, W) bool. The outputs are boxes (N, K, 4) as (x1, y1, x2, y2) in pixels of
    the images, scores (N, K), labels (N, K) and query indices (N, K) with ``postprocess``; then, in any case, logits
    (N, Q, classes) and boxes (N, Q, 4) of all queries as normalized (cx, cy, w, h), and mask logits (N, Q, h, w) for
    models with a mask head.

    Attributes:
        format: one of `FORMATS`.
        precision: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"``.
        preprocess: whether images are RGB with values in 0–255 instead of normalized.
        postprocess: whether the first outputs are detections, best first.
        input_type: dtype of the images, ``"uint8"`` (only with ``preprocess``) or ``"float32"``.
        min_side: minimum H and W; smaller images must be padded.
        device: device type of the graph, for formats that cannot be moved to another device.
    """

    format: str
    precision: str = "float32"
    preprocess: bool = True
    postprocess: bool = True
    input_type: str = "uint8"
    min_side: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)
        check_choice("precision", self.precision, ("float32", "bfloat16", "float16", "int8"))
        check_choice("input_type", self.input_type, ("uint8", "float32") if self.preprocess else ("float32",))


def encode_metadata(metadata: ModelMetadata, graph: GraphSpec) -> str:
    """Returns the metadata of an exported file as JSON, with the objects ``model`` and ``graph``."""
    return json.dumps({"model": json.loads(metadata.to_json()), "graph": asdict(graph)})


def read_exported_metadata(path: str | os.PathLike[str]) -> tuple[ModelMetadata, GraphSpec]:
    """Reads model and graph of an exported file without its runtime and without executing code.

    Raises:
        UserError: if the file cannot be read or was not written by ``deformable-detr export``.
        ModuleNotFoundError: if the package ``onnx``, needed for ONNX files, is not installed.
    """
    path = _check_path(path)
    try:
        text = _read_text(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each format has its own exception types
        raise UserError(f"{path} cannot be read as a model in the format {SUFFIXES[path.suffix]}: {error}") from error
    return _decode_metadata(text, path)


def _read_text(path: Path) -> str:
    """Returns the text of `encode_metadata` in a file, "" if there is none."""
    if path.suffix == ".onnx":
        import onnx

        properties = onnx.load(path, load_external_data=False).metadata_props
        return next((item.value for item in properties if item.key == KEY), "")
    if path.suffix == ".xml":
        node = ElementTree.parse(path).find(f"rt_info/{KEY}")
        return "" if node is None else node.get("value", "")
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(f"/extra/{KEY}"):
                return archive.read(name).decode()
            if name.endswith("_metadata.json"):  # AOTInductor
                return str(json.loads(archive.read(name)).get(KEY, ""))
    return ""


def _decode_metadata(text: str, path: Path) -> tuple[ModelMetadata, GraphSpec]:
    """Returns the objects of `encode_metadata`."""
    if not text:
        raise UserError(f"{path} has no metadata: write it with deformable-detr export")
    try:
        stored = json.loads(text)
        return ModelMetadata.from_json(json.dumps(stored["model"])), GraphSpec(**stored["graph"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the metadata is invalid ({error}): export the model again") from error


def _check_path(path: str | os.PathLike[str]) -> Path:
    if not is_exported(path):
        raise UserError(f"{path}: exported models have the suffix {', '.join(SUFFIXES)}")
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file")
    return Path(path)


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path has the suffix of an exported model."""
    return Path(path).suffix in SUFFIXES


class ExportedModel:
    """Runner for an exported file. Can be pickled; unpickling opens the file again.

    Args:
        path: file with one of `SUFFIXES`.
        device: device of the computation; ``"auto"``: a GPU if there is one that the file and its runtime support.

    Attributes:
        metadata: classes, preprocessing and postprocessing of the model.
        graph: inputs and outputs of the file.
    """

    def __init__(self, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> None:
        self.path = _check_path(path)
        kind = "aoti" if _is_aoti(self.path) else SUFFIXES[self.path.suffix]
        self.device = _choose_device(kind) if device == "auto" else choose_device(device)
        try:
            self._run, text = _OPENERS[kind](self.path, self.device)
        except (ModuleNotFoundError, UserError):
            raise
        except Exception as error:  # each runtime has its own exception types
            raise UserError(f"{path} cannot be opened as a model in the format {kind}: {error}") from error
        self.metadata, self.graph = _decode_metadata(text, self.path)
        self._has_warned = False
        if kind == "aoti" and device == "auto":
            self.device = torch.device(self.graph.device)
        if self.device.type != self.graph.device and kind in ("aoti", "openvino"):
            raise UserError(f"{path} is compiled for {self.graph.device}: it cannot run on {self.device.type}")

    def __call__(self, images: Tensor, padding_mask: Tensor) -> Predictions:
        """Returns predictions; see `Runner` for the arguments."""
        right, down = (max(0, self.graph.min_side - images.shape[axis]) for axis in (-1, -2))
        if (right or down) and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "%s: images of %d x %d pixels are padded to at least %d, which can change detections. Use the "
                "checkpoint for images of this size.",
                self.path, images.shape[-1], images.shape[-2], self.graph.min_side,
            )  # fmt: skip
        images = F.pad(images, (0, right, 0, down))
        padding_mask = F.pad(padding_mask, (0, right, 0, down), value=True)
        sizes = torch.tensor(image_sizes(padding_mask), device=images.device)
        inputs = (self._pixels(images), sizes) if self.graph.preprocess else (images, padding_mask)
        # Detections of the graph are not used: the options of `Detector` apply to all queries.
        first = 4 if self.graph.postprocess else 0
        outputs = self._run(*inputs)
        if len(outputs) < first + 2:
            raise UserError(
                f"{self.path} has {len(outputs)} outputs, as an earlier version exported: export the model again"
            )
        logits, boxes, *masks = (output.to(images.device).float() for output in outputs[first:])
        return to_predictions(
            logits, boxes, masks[0] if masks else None, padding_mask, no_object=self.metadata.no_object
        )

    def _pixels(self, images: Tensor) -> Tensor:
        """Undoes the normalization; returns RGB values in 0–255 with the dtype of the graph's input."""
        mean, std = (
            images.new_tensor(values).view(-1, 1, 1) for values in (self.metadata.pixel_mean, self.metadata.pixel_std)
        )
        pixels = images * std + mean
        if self.metadata.reader.format == "BGR":
            pixels = pixels.flip(1)
        return pixels.round().clamp(0, 255).to(torch.uint8) if self.graph.input_type == "uint8" else pixels

    def __reduce__(self) -> tuple[type["ExportedModel"], tuple[Path, str]]:
        return type(self), (self.path, str(self.device))


def _choose_device(kind: str) -> torch.device:
    """Returns the device for ``"auto"``."""
    if kind == "onnx":
        import onnxruntime

        has_gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        return choose_device("auto" if has_gpu else "cpu")
    return torch.device("cpu") if kind == "openvino" else choose_device("auto")


def _is_aoti(path: Path) -> bool:
    if path.suffix != ".pt2" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/aotinductor/" in name for name in archive.namelist())


def _open_torch_export(path: Path, device: torch.device) -> tuple[_Session, str]:
    from torch.export.passes import move_to_device_pass

    files = {KEY: ""}
    program = torch.export.load(path, extra_files=files)
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    return program.module(), files[KEY]


def _open_aoti(path: Path, device: torch.device) -> tuple[_Session, str]:
    import torch._inductor

    model = torch._inductor.aoti_load_package(str(path))
    return model, model.get_metadata().get(KEY, "")


def _open_torchscript(path: Path, device: torch.device) -> tuple[_Session, str]:
    files = {KEY: ""}
    module = torch.jit.load(str(path), map_location=device, _extra_files=files)
    text = files[KEY]
    return module, text.decode() if isinstance(text, bytes) else text


def _open_onnx(path: Path, device: torch.device) -> tuple[_Session, str]:
    import onnxruntime

    provider = f"{device.type.upper()}ExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise UserError(f"{path}: the installed onnxruntime does not support {device.type}")
    session = onnxruntime.InferenceSession(str(path), providers=[provider])
    names = [item.name for item in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = (tensor.contiguous().cpu().numpy() for tensor in inputs)
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

    return run, session.get_modelmeta().custom_metadata_map.get(KEY, "")


def _open_openvino(path: Path, device: torch.device) -> tuple[_Session, str]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    text = str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else ""
    # By default, OpenVINO computes in bfloat16 on processors that support it.
    precision = "bf16" if '"precision": "bfloat16"' in text else "f32"
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    compiled: Any = core.compile_model(model, "CPU", options)

    requests = threading.local()  # a request is used by one thread at a time

    def run(*inputs: Tensor) -> list[Tensor]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        results = requests.own.infer([tensor.contiguous().numpy() for tensor in inputs])
        return [torch.from_numpy(results[output].copy()) for output in compiled.outputs]

    return run, text


_OPENERS: dict[str, Callable[[Path, torch.device], tuple[_Session, str]]] = {
    "torch-export": _open_torch_export,
    "aoti": _open_aoti,
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "torchscript": _open_torchscript,
}
