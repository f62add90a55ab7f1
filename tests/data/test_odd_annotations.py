"""Annotations as tools export them: accepted with a counted warning where the meaning is clear, rejected otherwise."""

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_format

from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.load import load_dataset, read_classes
from projects_deformable_detr.data.problems import DatasetError

Content = dict[str, Any]
Change = Callable[[Content], Any]
Write = Callable[[Any], DatasetSpec]
WIDTH, HEIGHT = 64, 48


@pytest.fixture
def objects() -> Content:
    """Returns 24 objects of two classes with polygons, in four images of 64 x 48."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 20, (24, 2))
    low = rng.integers(1, np.array([WIDTH, HEIGHT]) - sizes)
    annotations = []
    for index, ((x, y), (w, h)) in enumerate(zip(low.tolist(), sizes.tolist(), strict=True)):
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        ids = {"id": index + 1, "image_id": index % 4 + 1, "category_id": index % 2 + 1}
        annotations.append(ids | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [polygon]})
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(1, 5)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def write_objects(write: Write, tmp_path: Any) -> Write:
    """Returns a function that writes an annotation file beside four images of 64 x 48."""
    for index in range(1, 5):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"images/{index}.png")
    return write


def every(key: str, change: Callable[[Any], Any], part: str = "annotations") -> Change:
    """Returns a function that changes the value under ``key`` in every entry."""

    def apply(content: Content) -> None:
        for entry in content[part]:
            entry[key] = change(entry[key])

    return apply


def corners(box: list[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def normalized(values: list[float]) -> list[float]:
    return [value / (HEIGHT if index % 2 else WIDTH) for index, value in enumerate(values)]


def rle(polygons: list[list[float]], *, as_list: bool) -> Content:
    mask = rle_format.decode(rle_format.merge(rle_format.frPyObjects(polygons, HEIGHT, WIDTH)))
    if not as_list:
        return {"size": [HEIGHT, WIDTH], "counts": rle_format.encode(np.asfortranarray(mask))["counts"].decode()}
    flat = mask.T.ravel()
    stops = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(stops).tolist()}


def repeat(content: Content) -> None:
    content["annotations"].append(content["annotations"][3] | {"id": 99})


def add_root(content: Content) -> None:
    for category in content["categories"]:
        category["supercategory"] = "cells"
    content["categories"].insert(0, {"id": 0, "name": "cells", "supercategory": "none"})


def same_file(content: Content) -> None:
    content["images"].append(content["images"][0] | {"id": 77})


# Change of the content, expected warning; the records and the ground truth must be those of the unchanged content.
ACCEPTED = {
    "ids from 0": (every("id", lambda value: value - 1), r"annotation ids .* \(1\): annotation 0 of 1.png"),
    "equal ids": (every("id", lambda value: 7), r"annotation ids .* \(23\): annotations\[4\] of 1.png"),
    "negative ids": (every("id", lambda value: -value), r"annotation ids .* \(24\)"),
    "huge ids": (every("id", lambda value: 2**63 + value), r"annotation ids .* \(24\)"),
    "text ids": (every("id", lambda value: f"no {value}"), r"annotation ids .* \(24\)"),
    "no ids": (lambda c: [entry.pop("id") for entry in c["annotations"]], r"annotation ids .* \(24\)"),
    "no area": (lambda c: c["annotations"][2].pop("area"), r"area is missing.* \(1\): annotation 3 of 3.png"),
    "area null": (every("area", lambda _: None), r"area is missing.* \(24\)"),
    "area text": (every("area", str), r"area is missing.* \(24\)"),
    "area NaN": (every("area", lambda _: float("nan")), r"area is missing.* \(24\)"),
    "area -1": (every("area", lambda _: -1), r"area is missing.* \(24\)"),
    "area 0": (every("area", lambda _: 0), r"area is missing.* \(24\)"),
    "no iscrowd": (lambda c: c["annotations"][2].pop("iscrowd"), r"without iscrowd \(1\): annotation 3 of 3.png"),
    "iscrowd null": (every("iscrowd", lambda _: None), r"without iscrowd \(24\)"),
    "iscrowd false": (every("iscrowd", lambda _: False), None),
    "iscrowd text": (every("iscrowd", str), None),
    "float category ids": (every("category_id", float), r"floats or strings \(24\): category_id 1.0"),
    "text category ids": (every("category_id", str), r"floats or strings \(24\): category_id '1'"),
    "text ids of categories": (every("id", str, "categories"), r"floats or strings \(2\): id '1'"),
    "float image ids": (every("image_id", float), r"\(24\): image_id 1.0"),
    "text ids of images": (every("id", lambda value: f"{value:08}", "images"), r"\(4\): id '00000001'"),
    "float sizes": (every("width", float, "images"), r"\(4\): width 64.0"),
    "lists as RLE": (every("segmentation", lambda value: rle(value, as_list=True)), None),
    "strings as RLE": (every("segmentation", lambda value: rle(value, as_list=False)), None),
    "Windows separators": (every("file_name", lambda name: f".\\{name}", "images"), r"path separators .* \(4\): '.\\"),
}  # fmt: skip


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_with_the_right_values(write_objects: Write, objects: Content, name: str, masks: bool) -> None:
    expected = truth(load_dataset(write_objects(objects), for_evaluation=True))
    change, warning = ACCEPTED[name]
    change(objects)
    spec = write_objects(objects)
    found = load_dataset(spec, for_evaluation=True, masks=masks)
    assert truth(found) == expected
    assert [Path(item["file_name"]).name for item in found] == ["1.png", "2.png", "3.png", "4.png"]
    assert read_classes(spec).names == ("a", "b")
    check_warning(found.summary.warnings, warning)


def truth(records: Any) -> Content:
    content: Content = records.ground_truth()
    for item in content["annotations"]:
        item.pop("segmentation", None)
    return content


def check_warning(warnings: tuple[str, ...], expected: str | None) -> None:
    assert len(warnings) == (expected is not None), warnings
    for message in warnings:
        assert message.startswith("data set tiny (") and expected is not None
        assert re.search(expected, message), message


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (repeat, r"duplicate boxes .* \(1\): annotation 99 of 4.png"),
        (same_file, r"with several entries \(1\): 1.png has the ids 1, 77"),
        (every("name", lambda _: "cell", "categories"), r"duplicate category names \(1\): 'cell' has the ids 1, 2"),
        (add_root, r"out of 3 \(1\): 'cells'.* supercategory of all others.*`drop_root_category=True`"),
        (lambda c: c["categories"].append({"id": 9, "name": "c"}), r"classes without objects, out of 3 \(1\): 'c'"),
        (every("area", lambda area: 4 * area), r"area does not match their box \(24\)"),
        (lambda c: c["annotations"][5].update(bbox=[0.5, 0.5, 0.6, 0.7], area=0.42), r"than a pixel \(1\)"),
        (lambda c: c["annotations"][5].update(bbox=[-9, 5, 20, 20], area=400), r"beyond their image \(1\)"),
    ],
)  # fmt: skip
def test_accepted_with_a_warning(write_objects: Write, objects: Content, change: Change, warning: str) -> None:
    change(objects)
    check_warning(load_dataset(write_objects(objects), for_evaluation=True).summary.warnings, warning)


def test_root_category_is_dropped(write_objects: Write, objects: Content) -> None:
    add_root(objects)
    spec = write_objects(objects)
    assert load_dataset(spec).summary.class_names == read_classes(spec).names == ("cells", "a", "b")
    summary = load_dataset(spec, drop_root_category=True).summary
    assert (summary.class_names, summary.category_ids, summary.warnings) == (("a", "b"), (1, 2), ())
    assert read_classes(spec, drop_root_category=True).names == ("a", "b")
    objects["annotations"][0]["category_id"] = 0
    with pytest.raises(DatasetError, match=r"annotation 1 of 1.png has category_id 0(?s:.)*`drop_root_category=False`"):
        load_dataset(write_objects(objects), drop_root_category=True)


def test_more_objects_than_detections(write_objects: Write, objects: Content) -> None:
    spec = write_objects(objects)
    assert not load_dataset(spec, max_detections=6).summary.warnings
    (message,) = load_dataset(spec, max_detections=5).summary.warnings
    assert "more objects than the 5 detections per image (4): 1.png has 6" in message
    assert "AP cannot reach 100: set `max_detections` to at least 6" in message


def enlarge(content: Content) -> None:
    for image in content["images"]:
        image |= {"width": 1000, "height": 1000}


def chain(*changes: Change) -> Change:
    return lambda content: [change(content) for change in changes]


def exchange(content: Content) -> None:
    for image in content["images"]:
        image |= {"width": HEIGHT, "height": WIDTH}


def move(distance: float) -> Change:
    return every("segmentation", lambda polygons: [[value + distance for value in item] for item in polygons])


# Change of the content, rules for which it is rejected, whether only with masks, message.
BOTH = ("error", "drop")
REJECTED = {
    "corners": (every("bbox", corners), BOTH, False, r"corner format .* \(24\): annotation 1 .*\n.*subtract x1"),
    "corners by area": (chain(every("bbox", corners), enlarge), BOTH, False, "boxes in corner format"),
    "corners by mask": (
        chain(every("bbox", corners), enlarge, every("area", lambda _: None)), BOTH, False, "boxes in corner format"
    ),
    "normalized": (every("bbox", normalized), (*BOTH, "drop_many"), False, r"in normalized coordinates \(24\)"),
    "normalized corners": (
        every("bbox", lambda box: normalized(corners(box))), (*BOTH, "drop_many"), False, "normalized coordinates"
    ),
    "exchanged sides": (exchange, BOTH, False, "% of all .*\n.*the width and height of the images are swapped"),
    "other resolution": (every("bbox", lambda box: [3 * value for value in box]), BOTH, False, "images were resized"),
    "points": (every("bbox", lambda box: [*box[:2], 0, 0]), BOTH, False, "100% of all .*\n.*width or height of most"),
    "crowds": (every("iscrowd", lambda _: 1), BOTH, False, "0 of 24 annotations are dropped and all others are crowds"),
    "polygons off": (move(1000), ("error",), True, r"masks without a pixel inside their image \(24\): annotation 1 "),
    "all polygons dropped": (move(1000), ("drop",), True, "24 of 24 annotations are dropped"),
    "far polygons": (move(1e7), BOTH, True, "beyond 100 times"),
    "moved polygons": (move(9), BOTH, True, "boxes that do not match .* has bbox .* box of its mask"),
    "normalized polygons": (
        every("segmentation", lambda polygons: [normalized(polygons[0])]), BOTH, True, r"normalized coordinates \(24\)"
    ),
    "thin polygon": (
        lambda c: c["annotations"][2].update(segmentation=[[5, 5, 30, 5, 30, 5]]), ("error",), True, "without a pixel"
    ),
    "RLE of another length": (
        lambda c: c["annotations"][2].update(segmentation={"size": [HEIGHT, WIDTH], "counts": "0"}), BOTH, True, "RLE"
    ),
    "RLE of another size": (
        lambda c: c["annotations"][2].update(segmentation={"size": [WIDTH, HEIGHT], "counts": [3072]}), BOTH, True,
        r"an RLE of size \[64, 48\]",
    ),
    "equal ids": (lambda c: c["images"].append(c["images"][0] | {"id": "1"}), BOTH, False, "duplicate image ids"),
    "equal ids of categories": (
        lambda c: c["categories"].append({"id": 1.0, "name": "c"}), BOTH, False, "duplicate category ids"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "rule"), [(name, rule) for name, row in REJECTED.items() for rule in row[1]])
def test_rejected(write_objects: Write, objects: Content, name: str, rule: str) -> None:
    change, _, needs_masks, message = REJECTED[name]
    change(objects)
    spec = write_objects(objects)
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(spec, rule, masks=needs_masks)
    assert str(caught.value).count("\n- ") == 1  # without problems that follow from it
    if needs_masks:
        assert load_dataset(spec, rule).summary.num_annotations == 24


@pytest.mark.parametrize("name", ["exchanged sides", "other resolution", "corners by area", "moved polygons"])
def test_confirmed(write_objects: Write, objects: Content, name: str) -> None:
    change, _, masks, _ = REJECTED[name]
    change(objects)
    summary = load_dataset(write_objects(objects), "drop_many", masks=masks).summary
    assert summary.num_annotations + summary.dropped == 24 and (summary.warnings or name == "corners by area")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_encodings(write_objects: Write, objects: Content, encoding: str) -> None:
    objects["categories"][0]["name"] = "Zelle é"
    spec = write_objects(objects)
    expected = list(load_dataset(spec))
    Path(spec.json_file).write_bytes(json.dumps(objects, ensure_ascii=False).encode(encoding))
    assert read_classes(spec).names == ("Zelle é", "b")
    assert list(load_dataset(spec)) == expected
    Path(spec.json_file).write_bytes('{"name": "é"}'.encode("latin-1"))
    with pytest.raises(DatasetError, match="is not JSON"):
        load_dataset(spec)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_normalization_of_file_names(write_objects: Write, objects: Content, tmp_path: Path, form: Any) -> None:
    other = "NFC" if form == "NFD" else "NFD"
    objects["images"][0]["file_name"] = unicodedata.normalize(form, "Käfer.png")
    path = tmp_path / "images" / unicodedata.normalize(other, "Käfer.png")
    (tmp_path / "images/1.png").rename(path)
    records = load_dataset(write_objects(objects))
    assert records[0]["file_name"] == str(path)
    check_warning(records.summary.warnings, r"Unicode normalization \(1\)")


@pytest.mark.parametrize(
    ("file_name", "hint"),
    [
        ("/home/someone/images/{}.png", "such as '1.png' for '/home/someone/images/1.png': correct file_name"),
        ("C:\\data\\{}.png", r"such as '1.png' for 'C:\\\\data\\\\1.png': correct file_name"),
        ("{}.PNG", "such as '1.png' for '1.PNG': correct file_name"),
        ("{}.jpg", "such as '1.png' for '1.jpg': correct file_name"),
        ("b{}.png", "such as 'deep/b1.png' for 'b1.png': correct file_name, or use the image folder .*images/deep"),
    ],
)
def test_hints_about_missing_files(
    write_objects: Write, objects: Content, tmp_path: Path, file_name: str, hint: str
) -> None:
    for index in range(1, 5):
        (tmp_path / f"images/deep/b{index}.png").touch()
    every("file_name", lambda name: file_name.format(name[0]), "images")(objects)
    with pytest.raises(DatasetError, match="Files with a similar name exist for 4 of 4, " + hint):
        load_dataset(write_objects(objects))


@pytest.mark.parametrize(("box", "area"), [([10, 10, 40, 40], 900), ([0, 0, 1, 1], 1), ([40, 30, 60, 45], 300)])
def test_few_boxes_are_not_taken_for_corners(write_objects: Write, objects: Content, box: Any, area: int) -> None:
    objects["annotations"] = [objects["annotations"][0] | {"bbox": box, "area": area}]
    assert load_dataset(write_objects(objects)).summary.num_annotations == 1


def test_supercategory_of_another_type(write_objects: Write, objects: Content) -> None:
    objects["categories"][0]["supercategory"] = ["a"]
    assert len(load_dataset(write_objects(objects), drop_root_category=True).summary.class_names) == 2
