"""Image reading: EXIF orientation, image modes, and errors that name the file."""

import numpy as np
import pytest
from PIL import Image

from projects_deformable_detr.data.images import read_image
from projects_deformable_detr.data.problems import DatasetError


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_channel_orders(file, pixels):
    rgb, bgr = read_image(file), read_image(str(file), "BGR", expected_size=(12, 20))
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous and bgr.flags.c_contiguous
    np.testing.assert_array_equal(rgb, pixels)
    np.testing.assert_array_equal(bgr, pixels[:, :, ::-1])
    with pytest.raises(ValueError, match="'L'"):
        read_image(file, "L")


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, lambda p: p), (2, lambda p: p[:, ::-1]), (3, lambda p: p[::-1, ::-1]), (4, lambda p: p[::-1]),
     (5, lambda p: p.transpose(1, 0, 2)), (6, lambda p: np.rot90(p, -1)),
     (7, lambda p: np.rot90(p, 2).transpose(1, 0, 2)), (8, lambda p: np.rot90(p)), (99, lambda p: p)],
)  # fmt: skip
def test_exif_orientation(tmp_path, pixels, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), upright(pixels))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path, pixels, mode):
    file = tmp_path / "image.tiff"
    Image.fromarray(pixels).convert(mode).save(file)
    image = read_image(file)
    np.testing.assert_array_equal(image, np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_truncated_files(tmp_path, ending, kept):
    file = tmp_path / f"image.{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])
    with pytest.raises(DatasetError, match=rf"image\.{ending} .*replace the file"):
        read_image(file)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(40)])
def test_files_that_are_not_images(tmp_path, data):
    (tmp_path / "odd.jpg").write_bytes(data)
    with pytest.raises(DatasetError, match=r"odd\.jpg.*image"):
        read_image(tmp_path / "odd.jpg")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DatasetError, match=r"lost\.jpg does not exist"):
        read_image(tmp_path / "lost.jpg")
    with pytest.raises(DatasetError, match=str(tmp_path)):
        read_image(tmp_path)


def test_unexpected_size(file):
    with pytest.raises(DatasetError, match=r"photo\.png is 20 x 12 .* 12 x 20 in its record"):
        read_image(file, expected_size=(20, 12))
