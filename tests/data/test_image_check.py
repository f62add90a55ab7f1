"""Check of image files before training: all problems at once, cached, unreadable images skipped."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from projects_deformable_detr import get_cfg
from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.config.data import data_config, load
from projects_deformable_detr.config.loading import load_cfg
from projects_deformable_detr.data import image_check
from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.image_check import check_images
from projects_deformable_detr.data.images import ImageReader
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.shapes.dataset import generate

READER = ImageReader()
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def dataset(tmp_path):
    """Returns a function that writes a data set of images with one object each; all records are 40 x 30."""

    def write(*names, **options):
        for name in names:
            Image.fromarray(PIXELS).save(tmp_path / name, **options)
        boxes = {"bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0, "category_id": 1}
        content = {
            "images": [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)],
            "annotations": [{"id": i + 1, "image_id": i, **boxes} for i in range(len(names))],
            "categories": [{"id": 1, "name": "a"}],
        }
        (tmp_path / "truth.json").write_text(json.dumps(content))
        return DatasetSpec("tiny", tmp_path / "truth.json", tmp_path)

    return write


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_all_problems_are_reported_at_once(dataset, tmp_path):
    names = ["a.jpg", "b.png", "c.tiff", "d.jpg", "e.png", "f.jpg", "g.jpg", "h.gif"]
    records = load_dataset(dataset(*names))
    for name in ("a.jpg", "b.png", "c.tiff"):
        truncate(tmp_path / name)
    (tmp_path / "d.jpg").write_bytes(b"")
    (tmp_path / "e.png").unlink()
    Image.fromarray(PIXELS.transpose(1, 0, 2)).save(tmp_path / "f.jpg")
    Image.fromarray(PIXELS[:20]).save(tmp_path / "g.jpg")
    with pytest.raises(DatasetError) as caught:
        check_images(records, READER)
    message = str(caught.value)
    for part in (
        "files that cannot be read (5)", "a.jpg cannot be decoded", "b.png", "c.tiff", "d.jpg (0 bytes)",
        "e.png (No such file", "swapped width and height (1)", "f.jpg is 30 x 40 (width x height), 40 x 30 in",
        "whose size differs from their record (1)", "g.jpg is 40 x 20",
    ):  # fmt: skip
        assert part in message
    assert "h.gif" not in message
    assert check_images(records, READER, "none") is records


def test_unreadable_images_are_skipped_with_a_count(dataset, tmp_path, caplog):
    spec = dataset("a.jpg", "b.jpg", "c.jpg")
    truncate(tmp_path / "b.jpg")
    cfg = get_cfg("standalone")
    cfg.DATASETS.TRAIN = ("tiny",)
    with pytest.raises(UserError, match=r"(?s)cannot be read \(1\): .*b\.jpg.*DATASETS.UNREADABLE_IMAGES skip"):
        load(spec, data_config(cfg))
    cfg.DATASETS.UNREADABLE_IMAGES = "skip"
    records = load(spec, data_config(cfg))
    assert [os.path.basename(name) for name in records.file_names] == ["a.jpg", "c.jpg"]
    assert [item["image_id"] for item in records.ground_truth()["annotations"]] == [0, 2]
    assert "1 of 3 images are skipped because they cannot be read: " in caplog.text
    cfg.DATASETS.CHECK_IMAGES = "some"
    with pytest.raises(UserError, match="DATASETS.CHECK_IMAGES must be one of"):
        load(spec, data_config(cfg))


def test_damage_inside_a_file_is_found_by_decoding(dataset, tmp_path):
    records = load_dataset(dataset("a.png"))
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[60:80] = bytes(20)
    (tmp_path / "a.png").write_bytes(content)
    assert check_images(records, READER) is records
    with pytest.raises(DatasetError, match=r"a\.png cannot be decoded"):
        check_images(records, READER, "pixels")


@pytest.mark.parametrize("suffix", ["jpg", "tiff", "png"])
def test_records_that_ignore_the_orientation(dataset, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    spec = dataset(f"a.{suffix}", exif=exif)
    with pytest.raises(UserError, match=r"ignore the EXIF orientation \(1\).*\n.*INPUT.EXIF_ORIENTATION to False if"):
        load(spec, data_config(get_cfg("standalone")))
    records = load_dataset(spec)
    assert check_images(records, ImageReader(exif_orientation=False)) is records


def test_values_outside_of_the_range_of_the_type(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(image_check, "_MIN_CACHED", 1)
    records = load_dataset(dataset("a.tiff", "b.tiff"))
    Image.fromarray(PIXELS[:, :, 0].astype(np.float32)).save(tmp_path / "a.tiff")
    for _ in range(2):
        with pytest.raises(
            DatasetError, match=r"the range of their type \(1\): .*a\.tiff has gray values from 0 to 255"
        ):
            check_images(records, READER)
        assert check_images(records, ImageReader(intensity_window=(0, 255))) is records


def test_one_warning_per_data_set(dataset, tmp_path, caplog):
    spec = dataset("a.png", "b.png", "c.png")
    records = load_dataset(spec)
    for name in ("a.png", "c.png"):
        Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 9).save(tmp_path / name)
    load(spec, data_config(get_cfg("standalone")))
    for name in records.file_names:
        READER.read(name)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "truth.json): 2 of 3 images, such as" in warning and "more than 8 bits" in warning
    assert warning.endswith("(see INPUT.INTENSITY_WINDOW)")


def test_large_sets_are_sampled_and_results_are_cached(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(image_check, "_NUM_SAMPLED", 3)
    monkeypatch.setattr(image_check, "_MIN_CACHED", 1)
    spec, opened = dataset(*(f"{index}.jpg" for index in range(9))), []
    open_image = image_check.open_image
    monkeypatch.setattr(image_check, "open_image", lambda path: opened.append(path) or open_image(path))

    def check(how="auto"):
        opened.clear()
        image_check._check.cache_clear()
        check_images(load_dataset(spec), READER, how)
        return sorted(int(os.path.basename(path)[:-4]) for path in opened)

    assert check() == [0, 4, 8]
    assert check() == []
    assert check("all") == [1, 2, 3, 5, 6, 7]
    os.utime(tmp_path / "4.jpg", (1, 1))
    assert check("all") == [4]
    assert check("pixels") == list(range(9))
    assert check("pixels") == check("all") == []
    truncate(tmp_path / "3.jpg")
    assert check() == []  # it is not in the sample
    for index in (4, 8):
        truncate(tmp_path / f"{index}.jpg")
    with pytest.raises(DatasetError, match=r"cannot be read \(3\)"):  # a problem in the sample: all are checked
        check()


def test_panoptic_files_are_checked(tmp_path):
    generate(tmp_path, num_train=3, num_val=0, size=(48, 64))
    root = tmp_path / "annotations"
    spec = DatasetSpec("shapes", root / "panoptic_train.json", tmp_path / "train", tmp_path / "panoptic_train")
    records = load_dataset(spec)
    assert check_images(records, READER) is records
    image_check._check.cache_clear()
    truncate(tmp_path / "panoptic_train" / os.path.basename(records.png_paths[0]))
    Image.new("RGB", (64, 49)).save(records.png_paths[1])
    with pytest.raises(DatasetError, match=r"(?s)size differs.*panoptic_train.*64 x 49.*cannot be read \(1\)"):
        check_images(records, READER)
    Image.new("RGB", tuple(records.sizes[1, ::-1].tolist())).save(records.png_paths[1])
    assert len(check_images(records, READER, "auto", "skip")) == 2


def test_option_of_the_command_line():
    common = ["--num-gpus", "0", "DATASETS.TRAIN", "('a',)"]
    assert load_cfg("standalone", argument_parser().parse_args(common)).DATASETS.CHECK_IMAGES == "auto"
    args = argument_parser().parse_args(["--check-images", *common])
    assert load_cfg("standalone", args).DATASETS.CHECK_IMAGES == "all"
