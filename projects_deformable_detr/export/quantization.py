"""Post-training quantization to INT8: weights and activations, calibrated with images."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ..config.inference import ModelMetadata
from ..data.images import list_images, resize_shortest_edge
from ..errors import ArgumentError, UserError
from ..inference.exported import GraphSpec
from .graph import INPUT_NAMES

Arrays = dict[str, "np.ndarray[Any, Any]"]


def calibration_images(folder: str | Path, metadata: ModelMetadata, count: int = 100) -> Iterator[Tensor]:
    """Returns an iterator over evenly spaced images of a folder: (3, h, w) uint8 RGB, resized as for prediction.

    Raises:
        ArgumentError: if ``count`` is not positive.
        UserError: if the folder has no images.
    """
    if count < 1:
        raise ArgumentError("count", f"must be at least 1, got {count}")
    files = list_images(Path(folder))
    if not files:
        raise UserError(
            f"{folder} has no images: calibration needs images that are similar to those of the application"
        )
    chosen = [files[index * len(files) // min(count, len(files))] for index in range(min(count, len(files)))]
    return (_read(path, metadata) for path in chosen)


def _read(path: Path, metadata: ModelMetadata) -> Tensor:
    pixels = metadata.reader.read(path)
    image = torch.tensor(pixels).permute(2, 0, 1)
    if metadata.reader.format == "BGR":
        image = image.flip(0)
    size = resize_shortest_edge(image.shape[1], image.shape[2], metadata.min_size, metadata.max_size)
    return transforms.resize(image, list(size))


def _feeds(graph: GraphSpec, images: Iterable[Tensor], metadata: ModelMetadata) -> Iterator[Arrays]:
    """Yields the inputs of the graph for batches of one image."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (metadata.pixel_mean, metadata.pixel_std))
    for image in images:
        batch = image[None]
        if graph.preprocess:
            inputs = batch if graph.input_type == "uint8" else batch.float(), torch.tensor([batch.shape[2:]])
        else:
            ordered = batch.flip(1) if metadata.reader.format == "BGR" else batch
            inputs = (ordered.float() - mean) / std, torch.zeros(1, *batch.shape[2:], dtype=torch.bool)
        names = INPUT_NAMES[graph.preprocess]
        yield {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}


def quantize_openvino(model: Any, graph: GraphSpec, metadata: ModelMetadata, images: Iterable[Tensor]) -> Any:
    """Quantizes all convolutions and matrix products of an OpenVINO model with NNCF."""
    import nncf

    feeds = list(_feeds(graph, images, metadata))
    return nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
    )


def quantize_onnx(
    source: Path, target: Path, graph: GraphSpec, metadata: ModelMetadata, images: Iterable[Tensor]
) -> None:
    """Quantizes the convolutions of an ONNX file, and its matrix products with constant weights, with onnxruntime.

    A preprocessed copy of ``source`` is written to the same folder, which should be temporary.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            self.feeds = _feeds(graph, images, metadata)

        def get_next(self) -> Arrays | None:
            return next(self.feeds, None)

    prepared = source.with_name("prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        extra_options={"MatMulConstBOnly": True},
    )
