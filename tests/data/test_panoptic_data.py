"""Masks and panoptic annotations: the shapes data, COCO's format, and errors for invalid files."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_format

from projects_deformable_detr.data import catalog, masks, panoptic
from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.load import load_dataset, read_classes
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.data.segment_ids import encode_png, ids_to_rgb, read_labels, read_segment_ids, rgb_to_ids
from projects_deformable_detr.evaluation.panoptic import PanopticEvaluator
from projects_deformable_detr.modeling import PanopticSegmentation
from projects_deformable_detr.shapes import dataset as shapes
from projects_deformable_detr.shapes.scene import CLASS_NAMES
from projects_deformable_detr.shapes.textures import STUFF_NAMES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    shapes.generate(root / "shapes", num_train=12, num_val=4, size=(96, 128), seed=3)
    return root


@pytest.fixture
def spec(made, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(made))
    return catalog.get("shapes_train_panoptic")


def test_paths_of_panoptic_data_sets(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/d")
    spec = catalog.get("coco_2017_val_panoptic")
    assert [str(path) for path in (spec.json_file, spec.image_root, spec.panoptic_root, spec.instances_json)] == [
        "/d/coco/annotations/panoptic_val2017.json",
        "/d/coco/val2017",
        "/d/coco/panoptic_val2017",
        "/d/coco/annotations/instances_val2017.json",
    ]
    assert catalog.get("coco_2017_val").panoptic_root is None


def test_segments_of_the_shapes_cover_every_pixel_once(spec):
    records = load_dataset(spec, max_objects=20)
    summary = records.summary
    assert summary.class_names == (*CLASS_NAMES, *STUFF_NAMES) and summary.num_things == len(CLASS_NAMES)
    assert read_classes(spec) == (summary.class_names, summary.category_ids, len(CLASS_NAMES))
    assert (summary.num_images, summary.num_crowd) == (12, 0)
    content = json.loads(spec.json_file.read_text())
    listed = {item["image_id"]: item["segments_info"] for item in content["annotations"]}
    kinds = set()
    for record in records:
        size = record["height"], record["width"]
        ids = read_segment_ids(record["pan_seg_file_name"], size)
        boxes, labels, found = panoptic.read_objects(record)
        assert (found.sum(0) == 1).all() and set(np.unique(ids)) == {s["id"] for s in record["segments_info"]}
        for box, mask, entry in zip(boxes, found, listed[record["image_id"]], strict=True):
            assert entry["area"] == mask.sum()
            x, y, w, h = entry["bbox"]
            assert box.tolist() == [x, y, x + w, y + h]
        stuff = labels[labels >= summary.num_things]
        assert len(set(stuff)) == len(stuff)  # one segment of each kind
        kinds |= set(stuff.tolist())
    assert kinds == {6, 7, 8}


def test_things_match_the_instances(spec):
    """Segments and polygons differ by pixels on edges only."""
    instances = load_dataset(DatasetSpec("things", spec.instances_json, spec.image_root), masks=True)
    assert instances.summary.class_names == CLASS_NAMES
    for record, other in zip(load_dataset(spec), instances, strict=True):
        _, labels, found = panoptic.read_objects(record)
        size = record["height"], record["width"]
        rles = [masks.to_rle(item["segmentation"], *size, "") for item in other["annotations"]]
        polygons = masks.decode(rles, *size)
        assert labels[labels < 6].tolist() == [item["category_id"] for item in other["annotations"]]
        for mask, polygon in zip(found, polygons, strict=False):
            assert (mask & polygon).sum() / (mask | polygon).sum() > (0.8 if polygon.sum() > 100 else 0.55)


def test_segment_ids_as_rgb():
    ids = np.array([[0, 1, 255, 256, 65536, 256**3 - 1]], np.int32)
    pixels = ids_to_rgb(ids)
    assert pixels[0].tolist() == [[0, 0, 0], [1, 0, 0], [255, 0, 0], [0, 1, 0], [0, 0, 1], [255, 255, 255]]
    np.testing.assert_array_equal(rgb_to_ids(pixels), ids)


def test_all_formats_of_segmentations():
    mask = np.zeros((6, 8), np.uint8)
    mask[1:4, 2:7] = 1
    compressed = rle_format.encode(np.asfortranarray(mask))
    flat = mask.T.ravel()  # column by column, starting with a run of zeros
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    kinds = [
        [[2, 1, 7, 1, 7, 4, 2, 4]],
        [[2, 1, 5, 1, 5, 4, 2, 4], [4, 1, 7, 1, 7, 4, 4, 4]],
        {"size": [6, 8], "counts": counts},
        {"size": [6, 8], "counts": compressed["counts"].decode()},
        compressed,
        masks.encode(mask),
    ]
    for kind in kinds:
        np.testing.assert_array_equal(masks.decode([masks.to_rle(kind, 6, 8, "")], 6, 8)[0], mask > 0)
    assert masks.decode([], 6, 8).shape == (0, 6, 8)
    json.dumps(masks.encode(mask))


@pytest.mark.parametrize("wrong", [None, 3, [["a", "b"] * 4], {"size": [6, 8]}, {"size": [5, 8], "counts": [40]}])
def test_unusable_segmentations(wrong):
    with pytest.raises(DatasetError, match="an object of a.png has .*(segmentation|RLE)"):
        masks.to_rle(wrong, 6, 8, "an object of a.png")


def test_annotations_without_a_segmentation(content, write):
    for item in content["annotations"][:3]:
        item["segmentation"] = [[0, 0, 5, 0, 5, 5]]
    spec = write(content)
    assert load_dataset(spec).summary.num_annotations == 4
    with pytest.raises(DatasetError, match=r"without a segmentation \(1\): annotation 4 .*b.png"):
        load_dataset(spec, masks=True)


@pytest.fixture
def write_panoptic(tmp_path):
    """Returns a function that writes two images of 4 x 6 pixels with a thing, stuff and a crowd."""
    for folder in ("images", "segments"):
        (tmp_path / folder).mkdir()
    ids = np.array([[5] * 3 + [9] * 3] * 3 + [[300] * 6], np.int32)
    for name in "ab":
        Image.new("RGB", (6, 4)).save(tmp_path / f"images/{name}.jpg")
        (tmp_path / f"segments/{name}.png").write_bytes(encode_png(ids))
    segments = [{"id": 5, "category_id": 20, "iscrowd": 0}, {"id": 9, "category_id": 1, "iscrowd": 0},
                {"id": 300, "category_id": 7, "iscrowd": 1}]  # fmt: skip
    content = {
        "images": [{"id": i, "file_name": f"{n}.jpg", "width": 6, "height": 4} for i, n in ((2, "b"), (1, "a"))],
        "annotations": [{"image_id": i, "file_name": f"{n}.png", "segments_info": [dict(s) for s in segments]}
                        for i, n in ((1, "a"), (2, "b"))],
        "categories": [{"id": 20, "name": "cat", "isthing": 1}, {"id": 1, "name": "sky", "isthing": 0},
                       {"id": 7, "name": "dog", "isthing": 1}],
    }  # fmt: skip

    def write(change=lambda content: None):
        change(content)
        (tmp_path / "panoptic.json").write_text(json.dumps(content))
        return DatasetSpec("tiny", tmp_path / "panoptic.json", tmp_path / "images", tmp_path / "segments")

    return write


def test_things_come_first_and_crowds_are_not_objects(write_panoptic):
    records = load_dataset(write_panoptic(), max_objects=2)
    summary = records.summary
    assert (summary.class_names, summary.category_ids) == (("dog", "cat", "sky"), (7, 20, 1))
    assert (summary.num_things, summary.num_annotations, summary.num_crowd, summary.max_objects_per_image) == (
        2,
        6,
        2,
        2,
    )
    assert [record["image_id"] for record in records] == [1, 2]
    boxes, labels, found = panoptic.read_objects(records[0])
    assert labels.tolist() == [1, 2] and boxes.tolist() == [[0, 0, 3, 3], [3, 0, 6, 3]]
    assert found.sum((1, 2)).tolist() == [9, 9]
    first = panoptic.as_annotations(records[0])[0]
    assert (first["bbox"], first["bbox_mode"], first["category_id"]) == ([0, 0, 3, 3], 0, 1)
    np.testing.assert_array_equal(rle_format.decode(first["segmentation"]), found[0])


@pytest.mark.parametrize("has_records", [True, False])
def test_results_of_images_with_the_same_name(write_panoptic, tmp_path, has_records):
    spec = write_panoptic()
    ids = np.kron(np.array([[5, 9]], np.int32), np.ones((4, 3), np.int32))
    ids[3] = 300
    segments = [{"id": 5, "category_id": 1}, {"id": 9, "category_id": 2}, {"id": 300, "category_id": 0}]
    evaluator = PanopticEvaluator(spec, (7, 20, 1), load_dataset(spec) if has_records else None)
    for image_id, folder in ((1, "a"), (2, "b")):
        evaluator.add(image_id, f"{folder}/same.jpg", PanopticSegmentation(torch.from_numpy(ids), segments))
    assert len(pickle.dumps(evaluator)) < 4000  # segmentations are compressed
    metrics = evaluator.evaluate(tmp_path / "out")["panoptic_seg"]
    assert metrics["PQ"] == 100
    written = json.loads((tmp_path / "out/predictions.json").read_text())["annotations"]
    assert written[0]["segments_info"][0].keys() == {"id", "category_id"}
    names = [item["file_name"] for item in written]
    assert names == ["1_same.png", "2_same.png"]
    for name in names:
        np.testing.assert_array_equal(read_segment_ids(tmp_path / "out/panoptic" / name), ids)


def _segment(content):
    return content["annotations"][0]["segments_info"][0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["categories"][0].pop("isthing"), "'cat' has isthing None"),
        (lambda c: _segment(c).update(category_id=4), r"segment 5 of a.png has category_id 4"),
        (lambda c: _segment(c).update(id=0), "invalid segments"),
        (lambda c: _segment(c).update(id=9), "duplicate segment ids in an image .*a.png"),
        (lambda c: _segment(c).update(iscrowd=2), "invalid segments"),
        (lambda c: c["annotations"][1].update(image_id=8), "images that are not in 'images'"),
        (lambda c: c["annotations"][1].update(image_id=1), "images with several annotations"),
        (lambda c: c["annotations"].pop(), r"images without an annotation \(1\).*b.jpg"),
        (lambda c: c["annotations"][1].pop("segments_info"), "invalid annotations"),
        (lambda c: c["annotations"][1].update(file_name="c.png"), "missing panoptic PNGs.*c.png"),
        (lambda c: c["images"][0].update(file_name="c.jpg"), "missing image files"),
        (lambda c: c.pop("categories"), "COCO panoptic format"),
    ],
)
def test_faults_of_panoptic_files(write_panoptic, change, expected):
    spec = write_panoptic(change)
    with pytest.raises(DatasetError, match=expected):
        load_dataset(spec)


def _texts(content):
    for image, entry in zip(content["images"], content["annotations"], strict=True):
        image["id"], entry["image_id"] = str(image["id"]), float(entry["image_id"])
        for segment in entry["segments_info"]:
            segment["id"], segment["category_id"] = float(segment["id"]), str(segment["category_id"])
    for category in content["categories"]:
        category["id"] = str(category["id"])


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (_texts, r"floats or strings \(19\)"),
        (lambda c: c["annotations"][0].update(file_name=".\\a.png"), r"panoptic PNGs whose names differ .* \(1\)"),
        (lambda c: c["images"][0].update(file_name=".\\b.jpg"), r"image files whose names differ in path separators"),
        (lambda c: c["categories"].append({"id": 30, "name": "cow", "isthing": 1}), r"without objects, out of 4 \(1\)"),
        (lambda c: c["categories"][0].update(name="dog"), r"duplicate category names \(1\): 'dog' has"),
    ],
)  # fmt: skip
def test_odd_panoptic_files_are_accepted(write_panoptic, change, warning):
    expected = [panoptic.read_objects(record) for record in load_dataset(write_panoptic())]
    records = load_dataset(write_panoptic(change))
    (message,) = records.summary.warnings
    assert re.search(warning, message)
    for record, (boxes, _, masks_) in zip(records, expected, strict=True):
        found = panoptic.read_objects(record)
        np.testing.assert_array_equal(found[0], boxes)
        np.testing.assert_array_equal(found[2], masks_)


def test_too_many_segments_for_the_queries(write_panoptic):
    with pytest.raises(DatasetError, match="(?s)more segments than the 1 queries.*at least 2"):
        load_dataset(write_panoptic(), max_objects=1)


def test_faults_of_panoptic_pngs(write_panoptic):
    spec = write_panoptic(lambda c: _segment(c).update(id=6))
    with pytest.raises(DatasetError, match=r"a.png has no pixels of segment 6"):
        panoptic.read_objects(load_dataset(spec)[0])
    Image.new("RGB", (5, 4)).save(f"{spec.panoptic_root}/a.png")
    with pytest.raises(DatasetError, match=r"a.png is 5 x 4 pixels"):
        panoptic.read_objects(load_dataset(spec)[0])


@pytest.fixture
def with_masks(content):
    """Returns a function that sets the segmentation of annotation 4, in an image of 20 x 50."""

    def make(segmentation):
        for item in content["annotations"]:
            item["segmentation"] = [[1, 2, 11, 2, 11, 12]]
        content["annotations"][3]["segmentation"] = segmentation
        return content

    return make


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([[1, 2, 11, 2, 11]], r"annotation 4 .*a polygon with an odd number of coordinates \(5\)"),
        ([[1, 2, 11, 2, 11, None]], r"annotation 4 .*got `null` - at `\$\[0\]\[5\]`"),
        ([[1, 2, 11, 2, 11, float("nan")]], "annotation 4 .*neither polygons with finite coordinates"),
        ([1, 2, 11, 2, 11, 12], r"annotation 4 .*got `int` - at `\$\[0\]`"),
        ("text", "annotation 4 .*got `str`"),
        ({"size": [50, 20], "counts": [1000]}, r"an RLE of size \[50, 20\], but its image is 20 x 50"),
        ({"size": [20, 50], "counts": [999]}, "an RLE of 999 pixels, not 1000"),
        ({"size": [20, 50], "counts": [1001, -1]}, "`int` >= 0"),
        ({"size": [20, 50]}, "missing required field `counts`"),
        ([[1, 2, 11, 2]], "fewer than three points .*annotation 4 .*`invalid_boxes=drop`"),
    ],
)
def test_segmentations_are_checked_if_masks_are_loaded(with_masks, write, segmentation, expected):
    spec = write(with_masks(segmentation))
    with pytest.raises(DatasetError, match="(?s)" + expected):
        load_dataset(spec, masks=True)
    assert load_dataset(spec).summary.num_annotations == 4  # without masks


def test_drop_removes_short_polygons(with_masks, write):
    spec = write(with_masks([[1, 2, 11, 2]]))
    summary = load_dataset(spec, "drop", masks=True).summary
    assert (summary.num_annotations, summary.dropped) == (3, 1)
    spec = write(with_masks([[1, 2, 11, 2], [1, 2, 11, 2, 11, 12]]))
    records = load_dataset(spec, "drop", masks=True)
    found = [item for record in records for item in record["annotations"] if item["bbox"] == [5, 5, 5, 5]]
    assert len(found) == 1 and len(found[0]["segmentation"]) == 1


@pytest.mark.parametrize("kind", ["L", "P", "I;16"])
def test_labels_are_the_values_of_the_file(tmp_path, kind):
    """Neither colors of a palette nor values scaled to 8 bits."""
    labels = np.array([[0, 3, 5], [7, 200, 255]], np.uint16 if kind == "I;16" else np.uint8)
    image = Image.fromarray(labels)
    if kind == "P":
        image = image.convert("P")
        image.putpalette([255 - index // 3 for index in range(768)])
    image.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.png", (2, 3)), labels)
    with pytest.raises(DatasetError, match=r"labels\.png is 3 x 2 pixels .*, but 2 x 3"):
        read_labels(tmp_path / "labels.png", (3, 2))
