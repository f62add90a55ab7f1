"""Image reading: EXIF orientation, image modes, and errors that name the file."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from projects_deformable_detr import get_cfg
from projects_deformable_detr.config.data import data_config
from projects_deformable_detr.data.images import ImageReader, channels_first, read_image, resize_shortest_edge
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.errors import UserError


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


UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
    99: lambda p: p,  # invalid
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("suffix", ["png", "tiff"])  # Pillow rotates most TIFF files itself
def test_exif_orientation_is_applied_once_or_ignored(tmp_path, pixels, orientation, mode, suffix):
    image, exif = Image.fromarray(pixels).convert(mode), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"rotated.{suffix}", exif=exif)
    file, stored = tmp_path / f"rotated.{suffix}", np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(file), UPRIGHT[orientation](stored))
    np.testing.assert_array_equal(ImageReader(exif_orientation=False).read(file, (12, 20)), stored)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("CMYK", "tiff"), ("CMYK", "jpg")],
)
def test_other_modes_become_rgb(tmp_path, pixels, mode, suffix):
    file = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).convert(mode).save(file)
    np.testing.assert_array_equal(read_image(file), np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.filterwarnings("error")
def test_colors_under_transparency_are_kept(tmp_path, pixels):
    image = Image.fromarray(pixels)
    image.putalpha(Image.fromarray(pixels[:, :, 0]))
    image.save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), pixels)
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("dtype", "suffix", "window", "values", "expected"),
    [
        (np.uint16, "png", (), [3000, 3000], [12, 12]),
        (np.uint16, "png", (), [0, 90], [0, 0]),  # a dark image
        (np.uint16, "png", (), [0, 32768, 65535], [0, 128, 255]),
        (np.uint16, "tiff", (), [0, 257, 65535], [0, 1, 255]),
        (np.uint16, "ppm", (), [0, 32768, 65535], [0, 128, 255]),
        (np.uint16, "png", (1000, 2000), [0, 1000, 1500, 2000, 9000], [0, 0, 128, 255, 255]),
        (np.int32, "tiff", (), [0, 2**30, 2**31 - 1], [0, 128, 255]),
        (np.int32, "tiff", (-100, 100), [-200, -100, 10, 100], [0, 0, 140, 255]),
        (np.float32, "tiff", (), [0, 0.5, 1], [0, 128, 255]),
        (np.float32, "tiff", (0, 4000), [-1, 1000, np.nan, np.inf], [0, 64, 0, 255]),
        (np.uint8, "png", (0, 10), [0, 10, 20], [0, 10, 20]),
    ],
)
def test_gray_values_of_more_than_8_bits(tmp_path, dtype, suffix, window, values, expected):
    file = tmp_path / f"gray.{suffix}"
    Image.fromarray(np.array([values], dtype)).save(file)
    image = ImageReader(intensity_window=window).read(file)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.repeat(np.array([expected], np.uint8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    ("dtype", "values", "shown"),
    [(np.float32, [0, 3000], "0 to 3000"), (np.int32, [0, 3000], "0 to 3000"), (np.int32, [-5, 2**30], "-5 to")],
)
def test_values_that_the_range_of_the_type_cannot_show(tmp_path, dtype, values, shown):
    file = tmp_path / "gray.tiff"
    Image.fromarray(np.array([values], dtype)).save(file)
    with pytest.raises(DatasetError, match=rf"gray\.tiff has gray values from {shown}.*set the intensity window"):
        read_image(file)


@pytest.mark.parametrize("window", [(1,), (2, 1), (1, 1), (0, float("nan")), (0, float("inf"))])
def test_invalid_windows(window):
    with pytest.raises(ValueError, match="intensity_window must be two increasing numbers"):
        ImageReader(intensity_window=window)


@pytest.mark.parametrize("suffix", ["gif", "tiff", "png", "webp"])
def test_the_first_frame_is_read_with_one_warning(tmp_path, suffix, caplog):
    frames = [Image.new("RGB", (8, 6), (red, 0, 0)) for red in (200, 100)]
    for name in "ab":
        frames[0].save(tmp_path / f"{name}.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        assert (read_image(tmp_path / f"{name}.{suffix}") == (200, 0, 0)).all()
    assert [record.getMessage() for record in caplog.records] == [
        f"Images in {tmp_path}, such as a.{suffix}, have several frames or pages, of which the first is read"
    ]


def test_the_current_folder_is_not_named_in_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Image.new("I;16", (8, 6)).save("a.png")
    read_image("a.png")
    assert caplog.messages == ["Images such as a.png have gray values of more than 8 bits, which are scaled to 8 bits"]


@pytest.mark.parametrize("size", [(1, 1), (10_000, 1), (1, 10_000)])
def test_extreme_shapes(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "thin.png")
    assert read_image(tmp_path / "thin.png").shape == (*size[::-1], 3)
    height, width = resize_shortest_edge(*size[::-1], 800, 1333)
    assert min(height, width) >= 1 and max(height, width) in (800, 1333)


def test_decompression_bomb(tmp_path, file, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DatasetError, match=r"photo\.png has too many pixels.*tiles"):
        read_image(file)


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


def test_image_files_in_a_new_process(tmp_path):
    names = ("a.jpg", "b/c.PNG", "d.mpo", "e.h5", "f.txt", "g.mpg")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    code = "import sys; from pathlib import Path; from projects_deformable_detr.data.images import list_images; "
    code += "print(*(path.name for path in list_images(Path(sys.argv[1]))))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found == ["a.jpg", "c.PNG", "d.mpo"]


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DatasetError, match=r"lost\.jpg does not exist"):
        read_image(tmp_path / "lost.jpg")
    with pytest.raises(DatasetError, match=str(tmp_path)):
        read_image(tmp_path)


def test_unexpected_size(file):
    with pytest.raises(DatasetError, match=r"photo\.png is 20 x 12 .* 12 x 20 in its record"):
        read_image(file, expected_size=(20, 12))


def test_config_keys():
    cfg = get_cfg("standalone")
    cfg.INPUT.FORMAT, cfg.INPUT.INTENSITY_WINDOW, cfg.INPUT.EXIF_ORIENTATION = "BGR", [0, 4095], False
    assert data_config(cfg).reader == ImageReader("BGR", (0, 4095), False)
    for key, value in (("FORMAT", "L"), ("INTENSITY_WINDOW", (5, 5))):
        cfg = get_cfg("standalone")
        cfg.INPUT[key] = value
        with pytest.raises(UserError, match=rf"INPUT\.{key} must be"):
            data_config(cfg)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first_equals_the_transposed_image(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    for view in (pixels, pixels[:, ::-1], pixels.transpose(1, 0, 2)):
        found = channels_first(view)
        assert np.array_equal(found, view.transpose(2, 0, 1)) and found.flags.c_contiguous
