"""Images that `Detector` accepts: files, open files, PIL images, arrays and tensors."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import ImageFileError, ImageReader, Pixels
from ..data.problems import DatasetError
from ..errors import ArgumentError, UserError

Source = str | os.PathLike[str] | IO[bytes] | Image.Image | np.ndarray[Any, Any] | Tensor


class ImageError(UserError):
    """Raised for an image that cannot be read.

    Attributes:
        source: path of the image, or its position in the input.
    """

    def __init__(self, message: str, source: str = "") -> None:
        super().__init__(message)
        self.source = source


@dataclass(frozen=True, eq=False)
class Picture:
    """Input image of `Detector`, whose pixels are read on demand.

    Attributes:
        source: file, array or tensor.
        name: path of the image, or its position in the input.
        reader: reader of files.
        color: channel order of arrays and tensors, ``"rgb"`` or ``"bgr"``.
    """

    source: Source
    name: str
    reader: ImageReader
    color: str = "rgb"

    def pixels(self) -> Pixels:
        """Returns the pixels (H, W, 3) uint8 in RGB.

        Raises:
            ImageError: if a file cannot be read.
            ArgumentError: for an array or tensor with an unsupported shape, dtype or range.
        """
        if isinstance(self.source, Tensor):
            pixels = _from_tensor(self.source, self.name)
            return pixels if self.color == "rgb" else np.ascontiguousarray(pixels[:, :, ::-1])
        source = self.source
        if isinstance(source, np.ndarray):
            if source.ndim != 2:
                return _from_array(source, self.name, self.color)
            source = _gray_image(source, self.name)
        try:
            return replace(self.reader, format="RGB").read(source)
        except DatasetError as error:
            message = error.problem if isinstance(error, ImageFileError) else str(error)
            message = message.removeprefix("image file ")
            if message.startswith("image "):  # an image without a path
                message = self.name + message.removeprefix("image")
            raise ImageError(message, self.name) from error

    def decoded(self) -> tuple["Picture", Pixels]:
        """Returns the picture and its pixels; a copy of the pixels replaces all sources except paths.

        Open files can be read only once, and the caller may reuse an array.
        """
        pixels = self.pixels()
        if isinstance(self.source, str | os.PathLike):
            return self, pixels
        if isinstance(self.source, np.ndarray | Tensor):
            pixels = pixels.copy()
        return replace(self, source=pixels, color="rgb"), pixels


KINDS = "paths, open files, PIL images, NumPy arrays or tensors"


def is_single(images: object) -> bool:
    """Returns whether the input is one image rather than several."""
    return isinstance(images, str | os.PathLike | Image.Image | np.ndarray | Tensor) or hasattr(images, "read")


def name_of(source: object, index: int) -> str:
    """Returns the path of an image for messages and results, or its position in the input.

    Raises:
        ArgumentError: for an object that is not an image.
        ImageError: for the path of a folder, or a glob pattern.
    """
    if not is_single(source):
        kind = type(source).__name__
        hint = "; nested lists are not supported" if isinstance(source, Iterable) else ""
        raise ArgumentError("images", f"must be {KINDS}, got {kind} at {index}{hint}")
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if not path or os.path.isdir(path) or (set(path) & set("*?") and not os.path.exists(path)):
            found = "a folder" if path and os.path.isdir(path) else "a pattern" if path else "an empty path"
            raise ImageError(
                f"{path!r} must be an image file, got {found}: pass the paths of its files, such as "
                "pathlib.Path('photos').glob('*.jpg'), or use the command deformable-detr predict",
                path,
            )
        return path
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return name if isinstance(name, str) else f"image {index}"


def _from_array(array: np.ndarray[Any, Any], name: str, color: str) -> Pixels:
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        remedy = ""
        if array.ndim == 3 and array.shape[2] in (1, 4):
            remedy = (
                "; pass array[:, :, :3] without the alpha channel" if array.shape[2] == 4 else "; pass array[:, :, 0]"
            )
        elif array.ndim == 3 and array.shape[0] == 3:
            remedy = "; pass array.transpose(1, 2, 0)"
        raise ArgumentError(
            "images", f"must be arrays (H, W, 3), or (H, W) for gray images, got shape {array.shape} ({name}){remedy}"
        )
    if array.dtype != np.uint8:
        remedy = (
            "; pass (255 * array).astype(numpy.uint8) if its values are in [0, 1]" if array.dtype.kind == "f" else ""
        )
        raise ArgumentError("images", f"must be uint8 arrays with values in 0–255, got {array.dtype} ({name}){remedy}")
    return np.ascontiguousarray(array if color == "rgb" else array[:, :, ::-1])


def _gray_image(array: np.ndarray[Any, Any], name: str) -> Image.Image:
    if 0 in array.shape or array.dtype not in (np.uint8, np.uint16, np.int32, np.float32):
        raise ArgumentError(
            "images",
            f"must be uint8, uint16, int32 or float32 arrays if they are gray (H, W), got {array.dtype} "
            f"{array.shape} ({name})",
        )
    return Image.fromarray(array)


def _from_tensor(tensor: Tensor, name: str) -> Pixels:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        hint = "; pass a batch as a list of images" if tensor.ndim == 4 else ""
        if tensor.ndim == 3 and tensor.shape[2] == 3:
            hint = "; pass tensor.permute(2, 0, 1)"
        raise ArgumentError("images", f"must be tensors (3, H, W), got shape {tuple(tensor.shape)} ({name}){hint}")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        low, high = tensor.aminmax()
        if not 0 <= low <= high <= 1:
            raise ArgumentError(
                "images", f"must be float tensors in [0, 1], got values in [{low:g}, {high:g}] ({name})"
            )
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise ArgumentError(
            "images", f"must be uint8 tensors in 0–255 or float tensors in [0, 1], got {tensor.dtype} ({name})"
        )
    return tensor.permute(1, 2, 0).contiguous().numpy()
