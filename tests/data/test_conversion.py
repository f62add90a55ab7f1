"""Conversion of Pascal VOC's and YOLO's annotations to COCO's format."""

import json

import pytest
from PIL import Image

from projects_deformable_detr.cli.main import main
from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.conversion import convert_dataset
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.data.problems import DatasetError


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes files below ``tmp_path``: texts, or images of 40 x 20 for None."""

    def write_files(**files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                Image.new("RGB", (40, 20)).save(path)
            else:
                path.write_text(content, encoding="utf-8")
        return tmp_path

    return lambda files: write_files(**files)


def voc(*objects, name="a.jpg", size=(40, 20)):
    items = "".join(
        f"<object><name>{kind}</name>{more}<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax>"
        f"<ymax>{box[3]}</ymax></bndbox></object>"
        for kind, box, more in objects
    )
    return (
        f"<annotation><filename>{name}</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>{items}"
        "</annotation>"
    )


def boxes(content):
    names = {item["id"]: item["name"] for item in content["categories"]}
    files = {item["id"]: item["file_name"] for item in content["images"]}
    return [(files[item["image_id"]], names[item["category_id"]], item["bbox"]) for item in content["annotations"]]


def test_yolo(write):
    root = write(
        {
            "data.yaml": "names: {0: cat, 1: dög}\nnc: 2\n",
            "images/train/a.jpg": None,
            "images/train/b.png": None,
            "images/val/a.jpg": None,
            "labels/train/a.txt": "\ufeff0 0.5 0.5 0.25 0.5\n1.0 0.1 0.2 0.2 0.2 0.9\n\n",
            "labels/val/a.txt": "1 0.25 0.5 0.75 0.5 0.75 1.0\n",
        }
    )
    content, images = convert_dataset(root)
    assert images == root / "images"
    assert [item["file_name"] for item in content["images"]] == ["train/a.jpg", "train/b.png", "val/a.jpg"]
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dög"}]
    assert boxes(content) == [
        ("train/a.jpg", "cat", [15, 5, 10, 10]),
        ("train/a.jpg", "dög", [0, 2, 8, 4]),  # followed by a confidence
        ("val/a.jpg", "dög", [10, 10, 20, 10]),
    ]
    assert [item["area"] for item in content["annotations"]] == [100, 32, 100]
    assert content["annotations"][2]["segmentation"] == [[10, 10, 30, 10, 30, 20]]
    (only, images) = convert_dataset(root / "labels" / "val")
    assert images == root / "images" / "val" and boxes(only) == [("a.jpg", "dög", [10, 10, 20, 10])]


def test_yolo_keypoints_and_text_class_file_beside_the_images(write):
    root = write({"a.jpg": None, "a.txt": "0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.2 0.2 2\n", "classes.txt": "cat\n"})
    (root / "pose.yaml").write_text("names: [person]\nkpt_shape: [2, 3]\n")
    assert boxes(convert_dataset(root, classes=root / "pose.yaml")[0]) == [("a.jpg", "person", [10, 5, 20, 10])]
    (root / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    content, images = convert_dataset(root)
    assert images == root and boxes(content) == [("a.jpg", "cat", [10, 5, 20, 10])]
    assert "segmentation" not in content["annotations"][0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"labels/a.txt": "0 20 10 5 5"}, r"outside the image \(1\): .*a\.txt:1.*Divide them by the width"),
        ({"labels/a.txt": "0 0.5 0.5 nan 0.5"}, "outside the image"),
        ({"labels/a.txt": "2 0.5 0.5 0.5 0.5"}, "class 2 of 1"),
        ({"labels/a.txt": "-1 0.5 0.5 0.5 0.5"}, "class -1 of 1"),
        ({"labels/a.txt": "0 0.5 0.5 0.5"}, r"neither a box nor a polygon \(1\)"),
        ({"labels/a.txt": "0.5 0.5 0.5 0.5 0.5\ncat 1 1 1 1"}, r"neither a box nor a polygon \(2\)"),
        ({"labels/lost.txt": "0 0.5 0.5 0.5 0.5"}, r"annotations without an image \(1\): .*lost\.txt"),
        ({"classes.txt": "", "data.yaml": "nc: 3"}, r"data\.yaml has no list of class names"),
        ({"images/b.jpg": "not an image"}, r"b\.jpg .* is not an image"),
    ],
)
def test_invalid_yolo(write, files, message):
    root = write({"images/a.jpg": None, "labels/a.txt": "0 0.5 0.5 0.5 0.5", "classes.txt": "cat\n", **files})
    with pytest.raises(DatasetError, match=f"(?s){message}"):
        convert_dataset(root)


def test_missing_class_file(write):
    with pytest.raises(DatasetError, match="no class file"):
        convert_dataset(write({"x/y/z/w/images/a.jpg": None, "x/y/z/w/labels/a.txt": ""}) / "x/y/z/w")


def test_voc(write):
    root = write(
        {
            "JPEGImages/a.jpg": None,
            "JPEGImages/b.jpg": None,
            "JPEGImages/unused.jpg": None,
            "Annotations/a.xml": voc(("dog", (1, 1, 40, 20), ""), ("cat", (3, 5, 4, 6), "<difficult>1</difficult>")),
            "Annotations/other.xml": voc(name="C:\\photos\\b.jpg", size=(0, 0)),
        }
    )
    content, images = convert_dataset(root)
    assert images == root / "JPEGImages"
    assert [item["file_name"] for item in content["images"]] == ["a.jpg", "b.jpg"]
    assert [item["name"] for item in content["categories"]] == ["cat", "dog"]
    assert boxes(content) == [("a.jpg", "dog", [0, 0, 40, 20]), ("a.jpg", "cat", [2, 4, 2, 2])]
    assert [(item["iscrowd"], item["area"]) for item in content["annotations"]] == [(0, 800), (1, 4)]
    assert [item["file_name"] for item in convert_dataset(root, only=["other"])[0]["images"]] == ["b.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>", "not valid XML"),
        (voc(("dog", ("x", 1, 4, 4), "")), "without a name or a box"),
        (voc(("", (1, 1, 4, 4), "")), "without a name or a box"),
        (voc(("dog", (1, 1, 4, 4), ""), size=(20, 40)), "20 x 40, but its image is 40 x 20"),
        (voc(("cow", (1, 1, 4, 4), "")), r"class file lacks \(1\): cow"),
    ],
)
def test_invalid_voc(write, content, message):
    root = write({"Annotations/a.xml": content, "JPEGImages/a.jpg": None, "names.txt": "dog\n"})
    with pytest.raises(DatasetError, match=message):
        convert_dataset(root, classes=root / "names.txt")


def test_command(write, capsys):
    annotations = {f"Annotations/{name}.xml": voc(("dog", (1, 1, 9, 9), ""), name=f"{name}.jpg") for name in "ab"}
    root = write({"JPEGImages/a.jpg": None, "JPEGImages/b.jpg": None, "dog_train.txt": "a  1\n", **annotations})
    words = [str(root), str(root / "new" / "coco.json"), "--only", str(root / "dog_train.txt")]
    assert main(["convert-data", *words]) == 0
    assert "1 images, 1 objects, 1 classes" in capsys.readouterr().out
    assert [item["file_name"] for item in json.loads((root / "new/coco.json").read_text())["images"]] == ["a.jpg"]
    spec = DatasetSpec("voc", root / "new" / "coco.json", root / "JPEGImages")
    assert load_dataset(spec, for_evaluation=True)[0]["annotations"][0]["bbox"] == [0, 0, 9, 9]


def test_selection_compares_folders(write):
    files = {f"images/{part}/1.jpg": None for part in ("train", "val")}
    labels = {f"labels/{part}/1.txt": "0 0.5 0.5 0.5 0.5" for part in ("train", "val")}
    root = write({"classes.txt": "cat", "labels/README.txt": "Exported by a tool", **files, **labels})
    assert [name for name, *_ in boxes(convert_dataset(root, only=["images/train/1.jpg"])[0])] == ["train/1.jpg"]
    with pytest.raises(DatasetError, match=r"selection without a file \(1\): lost/1"):
        convert_dataset(root, only=["1", "lost/1"])
    (root / "labels/val/1.txt").write_bytes("0 0.5".encode("utf-16"))
    with pytest.raises(DatasetError, match=r"not UTF-8 text \(1\): .*1\.txt"):
        convert_dataset(root)
    with pytest.raises(DatasetError, match="does not exist"):
        convert_dataset(root / "lost")
