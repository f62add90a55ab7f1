"""Reads images for training, evaluation and prediction in both engines."""

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ArgumentError, check_choice
from .problems import DatasetError, IntensityError

_logger = logging.getLogger(__name__)
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
ImageSource = str | os.PathLike[str] | IO[bytes] | Image.Image
_ORIENTATION = 0x0112  # EXIF tag
# Maps EXIF orientations to their inverse transforms.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_AS_STORED = {6: 8, 8: 6}  # orientations whose inverse transforms undo each other
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # single-channel images of more than 8 bits
_REMEDY = "replace the file, or remove its record from the data set"
_noted: set[tuple[str, str]] = set()  # (folder, property) of images for which a warning has been logged


class ImageFileError(DatasetError):
    """Raised for an image that cannot be read.

    Attributes:
        problem: message without the remedy, which applies to data sets.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}: {remedy}" if remedy else problem)
        self.problem = problem


@dataclass(frozen=True)
class ImageReader:
    """Reads image files as 8-bit pixels with three channels.

    Alpha channels are dropped. The first frame or page is read. Gray values of 16 bits, 32 bits or floats are scaled
    linearly and clipped. A warning is logged for images with several frames or scaled values.

    Attributes:
        format: order of the channels, ``"RGB"`` or ``"BGR"``.
        intensity_window: values that are mapped to 0 and 255 in gray images of more than 8 bits; empty: the range of
            the type, [0, 65535] for 16 bits, [0, 2**31 - 1] for 32 bits and [0, 1] for floats.
        exif_orientation: whether to apply the EXIF orientation.
    """

    format: str = "RGB"
    intensity_window: tuple[float, ...] = ()
    exif_orientation: bool = True

    def __post_init__(self) -> None:
        check_choice("format", self.format, ("RGB", "BGR"))
        window = self.intensity_window
        if len(window) not in (0, 2) or not all(map(math.isfinite, window)) or (window and window[0] >= window[1]):
            raise ArgumentError("intensity_window", f"must be two increasing numbers, or empty, got {window}")

    def read(self, path: ImageSource, expected_size: tuple[int, int] | None = None) -> Pixels:
        """Reads the pixels of an image file.

        Args:
            path: file in any format that Pillow reads: its path, an open file, or an image opened by Pillow.
            expected_size: (height, width) according to the record; None: not checked.

        Returns:
            (H, W, 3) uint8, contiguous.

        Raises:
            DatasetError: if the file is missing, cannot be decoded, does not have the expected size, or has values
                outside the range of the type.
        """
        name = source_name(path)
        with open_image(path) as image:
            notes, limits, orientation = describe(image), self._limits(image), read_orientation(image)
            image.load()
            turned = self._turn(image, orientation)
            pixels = self._scale(turned, limits, name) if limits else _to_rgb(turned)
        for note in notes:
            _warn(Path(name), note)
        if expected_size is not None and pixels.shape[:2] != tuple(expected_size):
            raise DatasetError(
                f"{name} is {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height"
                f"{', after its EXIF orientation' * self.exif_orientation}), but {expected_size[1]} x "
                f"{expected_size[0]} in its record: correct the width and height of the record, or replace the file"
            )
        return np.ascontiguousarray(pixels if self.format == "RGB" else pixels[:, :, ::-1])

    def _turn(self, image: Image.Image, orientation: int) -> Image.Image:
        """Applies or reverts the EXIF orientation; ``orientation`` is its value before the image was loaded."""
        is_turned = orientation != read_orientation(image)  # Pillow applies the orientation of TIFF files on loading
        if is_turned == self.exif_orientation:
            return image
        method = _UPRIGHT.get(_AS_STORED.get(orientation, orientation) if is_turned else orientation)
        return image if method is None else image.transpose(method)

    def _limits(self, image: Image.Image) -> tuple[float, ...]:
        """Returns the values that are mapped to 0 and 255, or () for images of 8 bits."""
        if image.mode not in _WIDE_MODES or self.intensity_window:
            return self.intensity_window if image.mode in _WIDE_MODES else ()
        if image.mode == "F":
            return 0.0, 1.0
        has_16_bits = image.mode != "I" or image.format in ("PNG", "PPM")
        return 0.0, 2.0 ** (16 if has_16_bits else 31) - 1

    def _scale(self, image: Image.Image, limits: tuple[float, ...], name: str) -> Pixels:
        values = np.asarray(image).astype(np.float64)
        low, high = limits
        scaled = np.rint((np.nan_to_num(values, nan=low) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        if not self.intensity_window:
            first, last = float(np.nanmin(values, initial=np.inf)), float(np.nanmax(values, initial=-np.inf))
            # A 16-bit image with a single scaled value may just be dark.
            is_lost = high > 2**16 and first < last and scaled.min() == scaled.max()
            if first < low or last > high or is_lost:
                raise IntensityError(
                    f"{name} has gray values from {first:g} to {last:g}, which cannot be represented in the range of "
                    f"their type, {low:g} to {high:g}: set the intensity window to the values of black and white"
                )
        return np.repeat(scaled[:, :, None], 3, axis=2)


def list_images(folder: Path) -> list[Path]:
    """Returns the image files in a folder and its subfolders, in alphabetical order."""
    extensions = Image.registered_extensions()  # also registers the formats in Image.OPEN
    readable = {*Image.OPEN, "MPO"} - {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # which Pillow identifies without reading
    suffixes = {suffix for suffix, format in extensions.items() if format in readable}
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def read_image(
    path: str | os.PathLike[str], format: str = "RGB", expected_size: tuple[int, int] | None = None
) -> Pixels:
    """Reads an image file with the default options; see `ImageReader.read`."""
    return ImageReader(format).read(path, expected_size)


def resize_shortest_edge(height: int, width: int, min_size: int, max_size: int | None = None) -> tuple[int, int]:
    """Returns (height, width) scaled so that the shorter side is ``min_size`` and the longer at most ``max_size``.

    Rounds like Detectron2's ``ResizeShortestEdge``, but to at least 1 pixel. A ``min_size`` of 0 keeps the size.
    """
    if min_size == 0:
        return height, width
    scale = min_size / min(height, width)
    new_height, new_width = height * scale, width * scale
    if max_size is not None and max(new_height, new_width) > max_size:
        scale = max_size / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


@contextlib.contextmanager
def open_image(path: ImageSource) -> Iterator[Image.Image]:
    """Opens an image file and converts all errors of Pillow, including those inside the context, to `DatasetError`."""
    name = source_name(path)
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(path, Image.Image):
                yield path
                return
            # Given a path, Pillow maps some TIFF files into memory, with swapped sides if the image is rotated.
            file = stack.enter_context(open(path, "rb")) if isinstance(path, str | os.PathLike) else path
            yield stack.enter_context(Image.open(file))
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise ImageFileError(
            f"image file {name} does not exist", "add it, or remove its record from the data set"
        ) from error
    except UnidentifiedImageError as error:
        size = f" ({os.stat(path).st_size} bytes)" if isinstance(path, str | os.PathLike) else ""
        raise ImageFileError(f"{name}{size} is not an image in a format that Pillow supports", _REMEDY) from error
    except Image.DecompressionBombError as error:
        raise ImageFileError(
            f"{name} has too many pixels ({error})", "reduce its size, or cut it into tiles"
        ) from error
    except Exception as error:  # Pillow's decoders raise many types of exceptions for corrupt files
        raise ImageFileError(f"{name} cannot be decoded as an image ({error})", _REMEDY) from error


def channels_first(pixels: Pixels) -> Pixels:
    """Converts pixels (H, W, C) to contiguous (C, H, W), with OpenCV, which is faster than a transposed copy."""
    planes: Pixels = np.empty((pixels.shape[2], *pixels.shape[:2]), pixels.dtype)
    cv2.split(np.ascontiguousarray(pixels), list(planes))
    return planes


def source_name(path: ImageSource) -> str:
    """Returns the path of an image for messages; ``"image"`` if it has none."""
    if isinstance(path, str | os.PathLike):
        return os.fspath(path)
    name = getattr(path, "filename" if isinstance(path, Image.Image) else "name", "")
    return name if isinstance(name, str) and name else "image"


def read_orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation; 1 (upright) if it is absent or unreadable."""
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # getexif would also do so, but errors in it are ignored below
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # only the metadata is corrupt
        return 1


def read_sizes(image: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (height, width) of an image that is not loaded, with and without its EXIF orientation."""
    size = image.height, image.width
    has_exif = image.format != "PNG" or "exif" in image.info  # Pillow would decode a PNG file to search for it
    if not has_exif or read_orientation(image) not in _SIDEWAYS:
        return size, size
    # For TIFF files, Pillow returns the size after orientation.
    return (size, size[::-1]) if image.format == "TIFF" else (size[::-1], size)


def describe(image: Image.Image) -> list[str]:
    """Returns the properties of an image that users are warned about: scaled values and additional frames."""
    notes = []
    if image.mode in _WIDE_MODES:
        notes.append("gray values of more than 8 bits, which are scaled to 8 bits (see `intensity_window`)")
    # MPO files are photographs with a preview.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append("several frames or pages, of which the first is read")
    return notes


def note_once(note: str, files: list[str]) -> bool:
    """Returns whether a property from `describe` has not been reported for the folder of a file, and records it."""
    keys = {(os.path.dirname(file), note) for file in files}
    is_new = not keys <= _noted
    _noted.update(keys)
    return is_new


def _warn(path: Path, note: str) -> None:
    """Logs a property from `describe` once per folder, in one worker of one process only."""
    key = str(path.parent), note
    # A reader in a worker of a DataLoader has PyTorch; commands that convert data do not need it.
    data = sys.modules.get("torch.utils.data")
    worker = data.get_worker_info() if data else None
    if key not in _noted and (worker is None or worker.id == 0) and os.environ.get("RANK", "0") == "0":
        _noted.add(key)
        note = note.partition(" (see")[0]  # the reader was not created by an engine
        where = f"Images such as {path.name}" if path.suffix else "Images"
        if path.suffix and path.parent != Path():
            where = f"Images in {path.parent}, such as {path.name},"
        _logger.warning("%s have %s", where, note)


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if it converts such an image to RGB
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
