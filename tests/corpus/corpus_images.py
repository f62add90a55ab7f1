"""Rows of the corpus: image files."""

import struct
import zlib
from typing import Any

import cv2
import numpy as np
from corpus_annotations import plain
from corpus_inputs import (
    HEIGHT,
    WIDTH,
    Inputs,
    accept,
    encode,
    entries,
    error,
    files,
    options,
    picture,
    skip,
    together,
    warn,
)
from PIL import Image


def pixel(*expected: int) -> Any:
    """Returns a check of the top left pixel of a training image; ``expected`` is RGB or gray."""

    def check(result: Any) -> None:
        found = [image[:, 0, 0].tolist() for image in result.images]
        assert all(value == list(expected * (3 // len(expected))) for value in found), found

    return check


def shape(height: int, width: int) -> Any:
    """Returns a check of the size of the training images."""

    def check(result: Any) -> None:
        assert {tuple(image.shape[1:]) for image in result.images} == {(height, width)}

    return check


def array(values: Any, dtype: Any, format: str = "PNG", **options: Any) -> bytes:
    """Returns an image file of one gray value, or of given values."""
    return encode(Image.fromarray(np.broadcast_to(np.array(values, dtype), (HEIGHT, WIDTH)).copy()), format, **options)


def converted(mode: str, format: str = "PNG", **options: Any) -> bytes:
    return encode(picture(mode), format, **options)


def wide_rgb(value: int) -> bytes:
    """Returns a PNG file of one gray value in three channels of 16 bits."""
    return cv2.imencode(".png", np.full((HEIGHT, WIDTH, 3), value, np.uint16))[1].tobytes()


def frames(format: str, **options: Any) -> bytes:
    return encode(picture(), format, save_all=True, append_images=[picture("L").convert("RGB")] * 2, **options)


def turned(format: str, orientation: int = 6) -> bytes:
    """Returns a file whose stored pixels are rotated by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture().transpose(Image.Transpose.ROTATE_90), format, exif=exif)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """Returns a PNG file of 60,000 x 60,000 pixels in its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def corrupt(content: bytes) -> bytes:
    """Replaces the start of the compressed pixels of a PNG file."""
    start = content.index(b"IDAT") + 4
    return content[:start] + b"\xff" * 20 + content[start + 20 :]


def sized(width: int, height: int) -> Any:
    """Returns a function that replaces all images and records with gray images of one size, which the boxes fill."""

    def change(inputs: Inputs) -> None:
        files(encode(Image.new("RGB", (width, height), (9, 9, 9))))(inputs)
        entries("images", width=width, height=height)(inputs)
        entries("annotations", bbox=[0, 0, width, height], area=width * height, segmentation=...)(inputs)
        inputs.truth[:] = [(label, (0.5, 0.5, 1.0, 1.0)) for label in (0, 1)]

    return change


def transparent(inputs: Inputs) -> None:
    files(encode(picture("P"), transparency=0))(inputs)


NOTE = r"such as \S+, have gray values of more than 8 bits"
EXCEEDS = r"images whose values exceed the range of their type \(5\)(.|\n)*INPUT\.INTENSITY_WINDOW"
WINDOW = ("INPUT.INTENSITY_WINDOW", "(1000.0, 5000.0)")
SKIP = ("DATASETS.UNREADABLE_IMAGES", "skip")
UNREADABLE = r"image files that cannot be read \(1\): \S*/2\.\w+"
SKIPPED = r"1 of 5 images are skipped because they cannot be read: \S*/2\.\w+"
TRUNCATED_JPEG = converted("RGB", "JPEG")[:-300]

IMAGES = [
    accept("8-bit gray PNG", files(converted("L")), pixel(128)),
    accept("1-bit PNG", files(array(True, bool)), pixel(255)),
    accept("palette PNG", files(converted("P")), plain),
    accept("palette PNG with transparency", transparent, plain),
    accept("RGBA PNG", files(converted("RGBA")), pixel(128)),
    accept("gray PNG with alpha", files(converted("LA")), pixel(128)),
    accept("CMYK JPEG", files(converted("CMYK", "JPEG", quality=100), suffix="jpg"), pixel(128)),
    accept("gray JPEG", files(array(100, np.uint8, "JPEG", quality=100), suffix="jpg"), pixel(100)),
    accept("BMP", files(converted("RGB", "BMP"), suffix="bmp"), pixel(128)),
    accept("WebP", files(converted("RGB", "WEBP", lossless=True), suffix="webp"), pixel(128)),
    accept("PNG named .jpg", files(converted("RGB"), suffix="jpg"), pixel(128)),
    accept("16-bit RGB PNG", files(wide_rgb(3000)), pixel(11)),
    warn("16-bit PNG", NOTE, files(array(3000, np.uint16)), pixel(12)),
    warn("16-bit PNG in a window", NOTE, together(files(array(3000, np.uint16)), options(*WINDOW)), pixel(128)),
    warn("16-bit TIFF", NOTE, files(array(3000, np.uint16, "TIFF"), suffix="tif"), pixel(12)),
    warn("float TIFF in [0, 1]", NOTE, files(array(0.5, np.float32, "TIFF"), suffix="tif"), pixel(128)),
    error(
        "float TIFF of counts",
        EXCEEDS,
        files(array(3000, np.float32, "TIFF"), suffix="tif"),
    ),
    warn(
        "float TIFF of counts in a window",
        NOTE,
        together(files(array(3000, np.float32, "TIFF"), suffix="tif"), options(*WINDOW)),
        pixel(128),
    ),
    error(
        "32-bit TIFF of counts",
        EXCEEDS,
        files(array(np.linspace(100, 5000, WIDTH), np.int32, "TIFF"), suffix="tif"),
    ),
    warn("animated GIF", "several frames or pages", files(frames("GIF"), suffix="gif"), plain),
    warn("animated PNG", "several frames or pages", files(frames("PNG")), pixel(128)),
    warn("TIFF of three pages", "several frames or pages", files(frames("TIFF"), suffix="tif"), pixel(128)),
    accept("JPEG with EXIF orientation", files(turned("JPEG"), suffix="jpg"), shape(HEIGHT, WIDTH)),
    accept("TIFF with EXIF orientation", files(turned("TIFF"), suffix="tif"), shape(HEIGHT, WIDTH)),
    accept("PNG with EXIF orientation", files(turned("PNG")), pixel(128)),
    error(
        "TIFF with EXIF orientation that is ignored, record as turned",
        r"images whose records apply the EXIF orientation \(5\)(.|\n)*INPUT\.EXIF_ORIENTATION",
        together(files(turned("TIFF"), suffix="tif"), options("INPUT.EXIF_ORIENTATION", "False")),
    ),
    error(
        "records with swapped width and height",
        r"records with swapped width and height \(1\): \S*/2\.png is 64 x 80",
        files(encode(picture().transpose(Image.Transpose.ROTATE_90)), 1),
    ),
    error(
        "JPEG with EXIF orientation, record as stored",
        r"images whose records ignore the EXIF orientation \(5\)(.|\n)*INPUT\.EXIF_ORIENTATION",
        together(files(turned("JPEG"), suffix="jpg"), entries("images", width=HEIGHT, height=WIDTH)),
    ),
    accept(
        "JPEG with EXIF orientation that is ignored",
        together(
            files(turned("JPEG"), suffix="jpg"),
            entries("images", width=HEIGHT, height=WIDTH),
            entries("annotations", bbox=[4, 6, 20, 16], area=320, segmentation=...),
            options("INPUT.EXIF_ORIENTATION", "False"),
        ),
        shape(WIDTH, HEIGHT),
        ap=None,
    ),
    accept("1 x 1 pixels", sized(1, 1), shape(64, 64)),
    accept("1 x 10,000 pixels", sized(1, 10_000), shape(160, 1)),
    accept("10,000 x 1 pixels", sized(10_000, 1), shape(1, 160)),
    error("decompression bomb", UNREADABLE + r".*too many pixels", files(bomb(), 1)),
    error("zero-byte image", UNREADABLE + r" \(0 bytes\)", files(b"", 1)),
    skip("zero-byte image, skipped", SKIPPED, together(files(b"", 1), options(*SKIP)), plain),
    error("truncated JPEG", UNREADABLE, files(TRUNCATED_JPEG, 1, suffix="jpg")),
    skip("truncated JPEG, skipped", SKIPPED, together(files(TRUNCATED_JPEG, 1, suffix="jpg"), options(*SKIP)), plain),
    error("PNG with corrupt pixels", r"\d\.png cannot be decoded", files(corrupt, 0, 1, 2, 3, 4)),
    error("truncated PNG", UNREADABLE, files(converted("RGB")[:-100], 1)),
    error("truncated TIFF", UNREADABLE, files(converted("RGB", "TIFF")[:-500], 1, suffix="tif")),
    error("web page named .jpg", UNREADABLE + ".*not an image", files(b"<html></html>", 1, suffix="jpg")),
    error(
        "image of another size than in its record",
        r"images whose size differs from their record \(1\): \S*/2\.png is 10 x 10 .*80 x 64",
        files(encode(Image.new("RGB", (10, 10))), 1),
    ),
    error("missing image", r"missing image files \(1\)", lambda inputs: inputs.pictures.pop("2.png")),
]
