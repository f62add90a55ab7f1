"""The command ``deformable-detr predict``."""

import csv
import errno
import io
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from projects_deformable_detr import Detector
from projects_deformable_detr.cli.main import main


@pytest.fixture
def weights(save_tiny):
    return save_tiny()


@pytest.fixture
def video(tmp_path):
    """A video of 6 frames with a moving square."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for index in range(6):
        frame = np.full((48, 64, 3), 90, np.uint8)
        frame[10:30, 5 * index : 5 * index + 20] = (40, 200, 240)
        writer.write(frame)
    writer.release()
    return path


def predict(weights, output, *words):
    try:
        return main(["predict", "--weights", str(weights), "--output", str(output), *map(str, words)])
    except SystemExit as exit:  # raised by argparse
        return exit.code


def read_csv(folder: Path) -> list[dict[str, str]]:
    with open(folder / "detections.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_folders_in_all_formats(weights, files, tmp_path, capsys):
    folder, output = tmp_path / "images", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(files[0], folder / "a.png")
    shutil.copy(files[1], folder / "sub" / "a.png")
    (folder / "notes.txt").write_text("no image")
    formats = [word for name in ("picture", "coco", "csv", "yolo") for word in ("--format", name)]
    assert predict(weights, output, folder, "--threshold", 0, "--top-k", 5, *formats) == 0
    assert "2 images, 10 detections" in capsys.readouterr().out
    assert Image.open(output / "a.jpg").size == (56 * 12, 40 * 12) and (output / "sub" / "a.jpg").is_file()
    results = json.loads((output / "detections.json").read_text())
    expected = Detector.load(weights)(str(folder / "a.png"), score_threshold=0, top_k=5)
    origin = {"name": "a", "file": str(folder / "a.png")}
    assert [item for item in results if item["name"] == "a"] == [item | origin for item in expected.to_coco(1)]
    rows = read_csv(output)
    assert [row["name"] for row in rows] == ["a"] * 5 + ["sub/a"] * 5
    assert [row["class"] for row in rows[:5]] == expected.names
    label, *numbers = (output / "labels" / "a.txt").read_text().splitlines()[0].split()
    assert int(label) == expected[0].label
    left, top, right, bottom = expected[0].box
    wanted = ((left + right) / 2 / 56, (top + bottom) / 2 / 40, (right - left) / 56, (bottom - top) / 40)
    assert [float(number) for number in numbers] == pytest.approx((*wanted, expected[0].score), abs=1e-5)


def test_no_detections(weights, files, tmp_path, capsys):
    assert predict(weights, tmp_path / "out", files[0], "--threshold", 1) == 0
    assert "No detection has a score of at least 1: lower --threshold" in capsys.readouterr().out


def test_no_folder_without_results(weights, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    assert predict(weights, tmp_path / "out", tmp_path / "broken.jpg") == 1
    assert not (tmp_path / "out").exists()


def test_patterns_and_broken_images(weights, files, tmp_path, capsys):
    for index, path in enumerate(files):
        shutil.copy(path, tmp_path / f"photo{index}.png")
    (tmp_path / "photo9.png").write_bytes(b"broken")
    output = tmp_path / "out"
    assert predict(weights, output, tmp_path / "photo[19].png", files[0], "--format", "csv", "--threshold", 0) == 1
    captured = capsys.readouterr()
    assert "photo9.png (6 bytes) is not an image" in captured.err
    assert "1 of 3 images could not be read or written, and were skipped" in captured.err
    assert {row["name"] for row in read_csv(output)} == {"photo1", "0"}


def test_long_thin_images(weights, files, tmp_path, capsys):
    """JPEG files have at most 65500 pixels per side."""
    for name, size in {"a": (3000, 10), "b": (10, 3000), "c": (65_501, 1)}.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    shutil.copy(files[0], tmp_path / "d.png")
    output = tmp_path / "out"
    assert predict(weights, output, tmp_path / "[abcd].png") == 1
    sizes = {path.name: Image.open(path).size for path in output.iterdir()}
    assert sizes == {"a.jpg": (3000, 10), "b.jpg": (10, 3000), "d.jpg": (56 * 12, 40 * 12)}
    message = capsys.readouterr().err
    assert "c.jpg: 65501 x 1 pixels" in message and "1 of 4 images could not be read or written" in message


def test_coco_files(weights, files, tmp_path, capsys):
    images = [{"id": 10 + i, "file_name": Path(path).name, "width": 1, "height": 1} for i, path in enumerate(files)]
    categories = [{"id": 7 * index, "name": name} for index, name in enumerate(("bee", "ant", "elk", "dog", "cat"), 1)]
    coco, output = tmp_path / "data.json", tmp_path / "out"
    coco.write_text(json.dumps({"images": images, "categories": categories}))
    words = (coco, "--format", "coco", "--threshold", 0)
    assert predict(weights, output, *words) == 2
    assert predict(weights, output, *words, "--images", tmp_path / "missing") == 2
    assert "missing: no such folder" in capsys.readouterr().err
    assert predict(weights, output, *words, "--images", Path(files[0]).parent) == 0
    results = json.loads((output / "detections.json").read_text())
    assert {item["image_id"] for item in results} == {10, 11, 12, 13}
    found = Detector.load(weights)(files[0], score_threshold=0)
    ids = {item["name"]: item["id"] for item in categories}
    assert [item["category_id"] for item in results if item["image_id"] == 10] == [ids[name] for name in found.names]


def test_classes_that_a_coco_file_lacks(weights, files, tmp_path, capsys):
    image = {"id": 1, "file_name": Path(files[0]).name, "width": 1, "height": 1}
    coco = tmp_path / "data.json"
    coco.write_text(json.dumps({"images": [image], "categories": [{"id": 3, "name": "bee"}]}))
    words = (coco, "--images", Path(files[0]).parent, "--format", "coco", "--threshold", 0)
    assert predict(weights, tmp_path / "out", *words) == 2
    assert "no category ant, cat, dog, elk of the model, which --format coco needs" in capsys.readouterr().err
    assert predict(weights, tmp_path / "out", *words, "--classes", "bee") == 0
    assert predict(weights, tmp_path / "csv", *words[:3], "--format", "csv") == 0


def test_videos(weights, video, files, tmp_path):
    """The videos are found by a pattern."""
    output = tmp_path / "out"
    shutil.copy(video, tmp_path / "other.avi")
    options = ("--threshold", 0, "--top-k", 3, "--max-frames", 4)
    formats = ("--format", "picture", "--format", "csv", "--format", "coco")
    assert predict(weights, output, tmp_path / "*.avi", files[0], *formats, *options) == 0
    capture = cv2.VideoCapture(str(output / "clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4 and capture.get(cv2.CAP_PROP_FPS) == 10
    names = ["0", *4 * ["clip"], *4 * ["other"]]
    expected = [(name, number, frame) for number, (name, frame) in enumerate(zip(names, "_12341234", strict=True), 1)]
    rows = [(row["name"], int(row["image_id"]), row["frame"] or "_") for row in read_csv(output)]
    assert rows[::3] == rows[1::3] == rows[2::3] == expected
    results = json.loads((output / "detections.json").read_text())
    assert [(item["name"], item["image_id"], str(item.get("frame", "_"))) for item in results] == rows


@pytest.mark.parametrize("count", [0, 3])
def test_videos_that_cannot_be_decoded(weights, video, tmp_path, capsys, count):
    content = video.read_bytes()
    start, stop = content.index(b"movi") + 4, content.index(b"idx1")
    start += (stop - start) * count // 6
    video.write_bytes(content[:start] + bytes(stop - start) + content[stop:])
    assert predict(weights, tmp_path / "out", video, "--format", "csv") == 1
    message = capsys.readouterr().err
    assert f"only {count} of 6 frames could be decoded" in message
    assert "1 of 1 images and videos could not be read completely" in message


def test_tracks(weights, save_tiny, video, files, tmp_path, capsys):
    pytest.importorskip("trackers")
    output = tmp_path / "out"
    options = ("--track", "--threshold", 0.01, "--top-k", 3, "--format", "csv", "--format", "picture")
    assert predict(weights, output, video, *options) == 0
    rows = read_csv(output)
    tracks = {row["track"] for row in rows}
    assert rows and 0 < len(tracks) < len(rows) and rows[0]["frame"] == "2" and rows[0]["file"] == str(video)
    panoptic = save_tiny("detr", MASK_ON=True, HIDDEN_DIM=128, NHEADS=8, panoptic=True)
    assert predict(panoptic, tmp_path / "panoptic", video, *options) == 0
    assert predict(weights, output, files[0], "--track", "--overwrite") == 2
    assert "--track needs a video or a camera" in capsys.readouterr().err


def test_labels_of_frames_do_not_replace_those_of_images(weights, video, files, tmp_path, capsys):
    shutil.copy(files[0], tmp_path / "clip_1.png")
    assert predict(weights, tmp_path / "out", video, tmp_path / "clip_1.png", "--format", "yolo") == 2
    assert "clip_1.png and of a frame of" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="file names must be UTF-8")
def test_file_names_that_are_not_utf8(weights, files, tmp_path):
    name = tmp_path / "caf\udcff.png"
    shutil.copy(files[0], name)
    formats = [word for item in ("coco", "csv", "yolo", "picture") for word in ("--format", item)]
    assert predict(weights, tmp_path / "out", name, files[1], "--threshold", 0, *formats) == 0
    rows = (tmp_path / "out/detections.csv").read_bytes().splitlines()
    assert rows[1].startswith(b"caf\xff,1,") and rows[1].endswith(b"caf\xff.png") and len(rows) > 20
    assert json.loads((tmp_path / "out/detections.json").read_text())[0]["file"] == str(name)


def test_full_disk(weights, files, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    assert predict(weights, tmp_path / "out", files[0], "--format", "coco") == 2
    assert "detections.json" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())
    monkeypatch.setattr("projects_deformable_detr.inference.drawing.save", fail)
    assert predict(weights, tmp_path / "pictures", files[0]) == 2
    assert f"{tmp_path / 'pictures'} cannot be written: No space left" in capsys.readouterr().err


def test_errors_of_inputs_do_not_name_the_output_folder(weights, files, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("projects_deformable_detr.inference.detector.Detector._prepare", fail)
    with pytest.raises(OSError, match=r"Input/output error$"):
        predict(weights, tmp_path / "out", files[0], "--format", "csv")


def test_tracking_without_its_package(weights, video, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    assert predict(weights, tmp_path / "out", video, "--track") == 2
    assert (
        "pip install 'projects-deformable-detr[track]'" in capsys.readouterr().err and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["missing.jpg"], "missing.jpg: no such file or folder"),
        (["*.nothing"], "*.nothing: no files match"),
        ([""], "a source is empty"),
        (["missing.mp4"], "missing.mp4: no such file"),
        (["97"], "camera 97 cannot be opened: check its index"),
        (["IMAGE", "--classes", "fly"], "--classes must contain only known class names, got 'fly'"),
        (["IMAGE", "--threshold", "2"], "--threshold: must be in [0, 1], got 2"),
        (["IMAGE", "--max-frames", "0"], "--max-frames: must be at least 1, got 0"),
        (["IMAGE", "--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["IMAGE", "--top-k", "many"], "--top-k: invalid int value: 'many'"),
        (["IMAGE", "--tile", "10", "20"], "--tile must be (size, overlap)"),
    ],
)
def test_bad_arguments(weights, files, tmp_path, capsys, words, named):
    words = [files[0] if word == "IMAGE" else word for word in words]
    assert predict(weights, tmp_path / "out", *words) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_image_from_standard_input(weights, files, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(files[0]).read_bytes())))
    assert predict(weights, tmp_path / "out", "-", files[1], "--format", "csv", "--threshold", 0) == 0
    assert {row["name"] for row in read_csv(tmp_path / "out")} == {"stdin", "1"}


def test_output_folders_are_not_mixed(weights, files, tmp_path, capsys):
    assert predict(weights, tmp_path, files[0]) == 2
    assert "is not empty: choose another folder with --output, or add --overwrite" in capsys.readouterr().err
    assert predict(weights, files[0], files[0], "--overwrite") == 2
    assert "0.png is a file: choose another folder with --output" in capsys.readouterr().err


def test_images_are_not_replaced_by_pictures(weights, files, tmp_path, capsys):
    photo = tmp_path / "street.jpg"
    Image.open(files[0]).convert("RGB").save(photo)
    content = photo.read_bytes()
    assert predict(weights, tmp_path, photo, "--overwrite") == 2
    assert "street.jpg is an input file: choose another folder" in capsys.readouterr().err
    assert photo.read_bytes() == content
    assert predict(weights, tmp_path, photo, "--overwrite", "--format", "csv") == 0


def test_names_of_coco_files_stay_in_the_output_folder(weights, files, tmp_path):
    photo = tmp_path / "photos" / "a.png"
    photo.parent.mkdir()
    shutil.copy(files[0], photo)
    before = photo.read_bytes()
    names = [str(photo), "../photos/a.png"]
    images = [{"id": 7 + index, "file_name": name, "width": 56, "height": 40} for index, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 5, "name": "bee"}]}
    (tmp_path / "data.json").write_text(json.dumps(content))
    words = ["--images", tmp_path / "photos", "--classes", "bee", "--format", "picture", "--format", "yolo"]
    assert predict(weights, tmp_path / "out", tmp_path / "data.json", *words) == 0
    assert photo.read_bytes() == before and list(photo.parent.iterdir()) == [photo]
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == len(list((tmp_path / "out" / "labels").rglob("*.txt"))) == 2


def test_category_ids_of_two_coco_files_must_agree(weights, tmp_path, capsys):
    for name, number in (("one", 1), ("two", 2)):
        image = {"id": number, "file_name": f"{name}.png", "width": 5, "height": 5}
        content = {"images": [image], "annotations": [], "categories": [{"id": number, "name": "bee"}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert predict(weights, tmp_path / "out", tmp_path / "one.json", tmp_path / "two.json", "--images", tmp_path) == 2
    assert "category bee has another id" in capsys.readouterr().err
