"""COCO files: summary and records of a correct file, and errors for invalid files."""

import gc
import itertools
import json
import logging
import math
import pickle

import pytest

from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.load import load_dataset, read_classes
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.data.records import Summary

_numbers = itertools.count(100)


def annotation(bbox, **changes):
    plain = {"id": next(_numbers), "image_id": 10, "category_id": 4, "bbox": bbox, "area": 1, "iscrowd": 0}
    return plain | changes


def load_error(spec, *args, **keywords):
    with pytest.raises(DatasetError) as caught:
        load_dataset(spec, *args, **keywords)
    message = str(caught.value)
    assert "tiny" in message and str(spec.json_file) in message
    return message


def test_summary(write, content):
    counts = {
        "num_things": 3,
        "num_images": 3,
        "num_annotations": 4,
        "num_crowd": 1,
        "clipped": 1,
        "max_objects_per_image": 2,
    }
    found = load_dataset(write(content), max_objects=2, for_evaluation=True).summary
    names = {"class_names": ("four", "seven", "nine"), "category_ids": (4, 7, 9)}
    assert found == Summary("tiny", **names, **counts, warnings=found.warnings)


def test_records_are_sorted_contiguous_and_clipped(write, content):
    spec = write(content)
    first, second, third = records = load_dataset(spec)
    assert [record["image_id"] for record in (first, second, third)] == [10, 20, 30]
    assert first["file_name"] == str(spec.image_root / "a.png") and (first["height"], first["width"]) == (30, 40)
    nine = {"bbox": [1, 2, 10, 20], "bbox_mode": 1, "category_id": 2, "iscrowd": 0}
    four = {"bbox": [30.5, 5, 9.5, 10], "bbox_mode": 1, "category_id": 0, "iscrowd": 0}
    assert first["annotations"] == [nine, four]
    assert [item["iscrowd"] for item in second["annotations"]] == [1, 0]
    assert third["annotations"] == []
    assert records[-1] == third and list(records[1:]) == [second, third]
    assert list(pickle.loads(pickle.dumps(records))) == [first, second, third]
    assert [labels.tolist() for labels in records.object_labels()] == [[2, 0], [1], []]
    assert [labels.tolist() for labels in records.object_labels(crowds=True)] == [[2, 0], [0, 1], []]
    assert [record["annotations"] for record in records.without_annotations()] == [[], [], []]


@pytest.mark.parametrize(
    ("bbox", "clipped"),
    [([-3, 4, 10, 10], [0, 4, 7, 10]), ([3, -4, 10, 10], [3, 0, 10, 6]), ([35, 4, 10, 10], [35, 4, 5, 10]),
     ([3, 25, 10, 10], [3, 25, 10, 5]), ([-5, -5, 100, 100], [0, 0, 40, 30])],
)  # fmt: skip
def test_boxes_are_clipped_at_every_border(write, content, bbox, clipped):
    content["annotations"][0]["bbox"] = bbox
    spec = write(content)
    records = load_dataset(spec)
    assert records.summary.clipped == 2 and records[0]["annotations"][0]["bbox"] == clipped


def test_with_objects_leaves_out_images_with_crowds_only(write, content):
    content["annotations"][3]["iscrowd"] = 1  # image 20 has crowds only now
    assert [record["image_id"] for record in load_dataset(write(content)).with_objects()] == [10]


def test_records_match_detectron2(write, content):
    detectron2 = pytest.importorskip("detectron2.data.datasets.coco", reason="Detectron2 is not installed")
    for item in content["annotations"]:
        item["segmentation"] = [[1, 2, 11, 2, 11, 22]]
    spec = write(content)
    expected = detectron2.load_coco_json(str(spec.json_file), str(spec.image_root), "tiny_for_comparison")
    found = list(load_dataset(spec, masks=True))
    found[0]["annotations"][1]["bbox"][2] = 20  # undo the clipping
    assert found == expected


@pytest.mark.parametrize(
    "bbox", [[5, 5, 0, 0], [5, 5, 0, 9], [5, 5, 9, 0], [40, 5, 9, 9], [5, -9, 9, 9], [90, 90, 5, 5]]
)
def test_boxes_without_area_follow_the_rule(write, content, bbox, caplog):
    content["annotations"].append(annotation(bbox, id=77))
    spec = write(content)
    message = load_error(spec)
    assert (
        "annotation 77" in message and "a.png" in message and str(bbox) in message and "`invalid_boxes=drop`" in message
    )
    content["annotations"][1] |= {"bbox": [30.5, 5, 9, 10], "area": 90}  # no other box leaves its image
    spec = write(content)
    with caplog.at_level(logging.WARNING):
        records = load_dataset(spec, "drop")
        load_dataset(spec, "drop", for_evaluation=True)
    assert (records.summary.dropped, records.summary.num_annotations) == (1, 4)
    assert len(records[0]["annotations"]) == 2
    assert [labels.tolist() for labels in records.object_labels()] == [[2, 0], [1], []]
    (warning,) = (record.getMessage() for record in caplog.records)  # once, although the file was loaded twice
    assert "without area inside their image (1): annotation 77" in warning and "out of 5" in warning


UNUSABLE = [
    [math.nan, 1, 2, 3], [1, math.inf, 2, 3], [1, 1, 2, -math.inf], [1, 1, math.nan, 3], [1, 2, 3], [1, 2, 3, 4, 5],
    ["1", "2", "3", "4"], None, 5, [], [1, 2, None, 4], {"x": 1}, [20, 20, -5, 5],
]  # fmt: skip


@pytest.mark.parametrize("bbox", UNUSABLE)
@pytest.mark.parametrize("rule", ["error", "drop"])
def test_unusable_boxes_are_always_an_error(write, content, bbox, rule):
    content["annotations"].append(annotation(bbox, id=77))
    kind = "with negative width or height" if bbox == [20, 20, -5, 5] else "that are not four finite numbers"
    assert f"boxes {kind} (1): annotation 77 of a.png has bbox" in load_error(write(content), rule)


def test_all_faults_are_reported_at_once_with_counts(write, content):
    content["annotations"] += [annotation([0, 0, 0, 0]) for _ in range(9)]
    content["annotations"] += [annotation([0, 0, 5, 5], category_id=1000)]
    content["annotations"] += [annotation([0, 0, 5, 5], image_id=1000)]
    message = load_error(write(content))
    assert "(10): annotation" in message and "and 5 more" in message and message.count("without area in ") == 1
    assert "category_id 1000" in message and "4, 7, 9" in message and "image_id 1000" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["images"][1].update(id=20), "duplicate image ids (1): id 20"),
        (lambda c: c["categories"][1].update(id=9), "duplicate category ids (1): id 9: 'nine' and 'four'"),
        (lambda c: c["annotations"][1].pop("bbox"), "annotation 2 of a.png lacks bbox"),
        (lambda c: c["annotations"][1].pop("image_id"), "annotation 2 lacks image_id"),
        (lambda c: c["annotations"][1].update(category_id="4a"), "category_id '4a'"),
        (lambda c: c["annotations"][1].update(category_id=4.5), "category_id 4.5"),
        (lambda c: c["annotations"][1].update(category_id=[4]), "category_id [4]"),
        (lambda c: c["annotations"][1].update(iscrowd=2), "annotation 2 of a.png has iscrowd 2"),
        (lambda c: c["annotations"][1].update(ignore=1), "ignore 1"),
        (lambda c: c["annotations"].append("text"), "'text'"),
        (lambda c: c["images"][1].pop("height"), "images[1]"),
        (lambda c: c["images"][1].update(width=0), "images[1]"),
        (lambda c: c["images"].append(3), "images[3] is 3"),
        (lambda c: c["categories"][2].pop("name"), "categories[2]"),
        (lambda c: c["categories"].clear(), "empty list of categories"),
        (lambda c: c["images"].clear(), "empty list of images"),
        (lambda c: c["annotations"].clear(), "without objects (1): the list 'annotations' is empty"),
        (
            lambda c: [item.update(iscrowd=1) for item in c["annotations"]],
            "0 of 4 annotations are dropped and all others are crowds",
        ),
        (lambda c: c.pop("categories"), "no list 'categories' (its keys: images, annotations)"),
        (lambda c: c.update(images={}), "no list 'images' ('images' is an object; its keys: images,"),
    ],
)
def test_faults_of_entries(write, content, change, expected):
    change(content)
    assert expected in load_error(write(content))


def test_the_list_of_images_is_not_empty_if_its_entries_are_invalid(write, content):
    for image in content["images"]:
        del image["width"]
    message = load_error(write(content))
    assert "invalid images (3)" in message and "empty" not in message


def test_missing_images_are_named_and_counted(write, content):
    content["images"] += [{"id": i, "file_name": f"lost/{i}.png", "width": 9, "height": 9} for i in range(100, 107)]
    spec = write(content)
    (spec.image_root / "deep/b.png").unlink()
    message = load_error(spec)
    assert "image files (8)" in message and str(spec.image_root / "deep/b.png") in message and "and 3 more" in message


def test_missing_folder(write, content):
    spec = write(content)
    (spec.image_root / "a.png").unlink()
    (spec.image_root / "a.png").mkdir()  # a folder is not an image
    assert "missing image files (1)" in load_error(spec)
    message = load_error(DatasetSpec("tiny", spec.json_file, spec.image_root / "nowhere"))
    assert str(spec.image_root / "nowhere") in message and "image files" not in message  # one fault, not four


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "not JSON"), ('{"images": [', "not JSON"), ("[]", "contains a list"), ("3", "contains a int"),
     ('[{"image_id": 1, "score": 0.5}]', "COCO results file"), ("{}", "its keys: none"),
     ("<annotation><folder>a</folder></annotation>", "Pascal VOC XML format, not JSON: .*convert-data"),
     ("<?xml version='1.0'?>\n<annotation>", "Pascal VOC"), ("<data/>", "is XML"),
     ("0 0.5 0.5 0.25 0.125\n", "YOLO text format, not JSON"), ("3 0.1 0.1 0.2 0.1 0.3 0.3", "YOLO text"),
     ("path: ../x\nnames:\n  0: a\n", "YAML file of a data set in YOLO format"), ("PK\x03\x04", "compressed archive"),
     ('{"version": "5", "shapes": [], "imagePath": "a.png"}', "LabelMe format"),
     ('[{"image": "a.png", "annotations": []}]', "Create ML format"),
     ('{"a.png1": {"filename": "a.png", "regions": []}}', "VGG Image Annotator format")],
)  # fmt: skip
def test_files_that_are_not_coco(write, text, expected):
    spec = write(text)
    for read in (load_dataset, read_classes):
        with pytest.raises(DatasetError, match=expected):
            read(spec)


def test_binary_and_missing_files(write, content):
    spec = write(content)
    for content in (b"\xff\xfe\xfa\x89PNG", b'{"images": "\xff"}', b'{"images": ' + b"[" * 100_000):
        spec.json_file.write_bytes(content)
        assert "not JSON" in load_error(spec)
    spec.json_file.unlink()
    assert "does not exist" in load_error(spec)
    with pytest.raises(DatasetError, match="does not exist"):
        read_classes(spec)
    spec.json_file.mkdir()
    assert "is a folder" in load_error(spec)
    with pytest.raises(DatasetError, match="deformable-detr shapes"):
        load_dataset(DatasetSpec("shapes_train", "/nowhere/none.json", spec.image_root))


def test_more_objects_than_queries(write, content):
    message = load_error(write(content), max_objects=1)
    assert "than the 1 queries (1)" in message and "a.png has 2" in message and "at least 2" in message
    content["annotations"][0]["iscrowd"] = 1  # a crowd takes no query
    assert load_dataset(write(content), max_objects=1).summary.max_objects_per_image == 1


@pytest.mark.parametrize("change", [lambda c: c.pop("annotations"), lambda c: c["annotations"].clear()])
def test_evaluation_without_objects(write, content, change, caplog):
    change(content)
    spec = write(content)
    records = load_dataset(spec, for_evaluation=True)
    assert records.summary.num_annotations == 0
    assert "tiny" in caplog.text and "Metrics cannot be computed" in caplog.text
    assert [record["annotations"] for record in records] == [[], [], []]
    assert read_classes(spec).names == ("four", "seven", "nine")
    assert "annotations" in load_error(spec)
    assert "annotations" in load_error(spec, max_objects=5, for_evaluation=True)  # also a training set


def test_annotations_must_be_a_list(write, content):
    content["annotations"] = {}
    assert "no list 'annotations'" in load_error(write(content), for_evaluation=True)


def test_garbage_collector_is_enabled_again(write, content):
    load_dataset(write(content))
    assert gc.isenabled()
    load_error(write("{}"))
    assert gc.isenabled()


def test_changed_files_are_read_again(write, content):
    spec = write(content)
    assert read_classes(spec) == (("four", "seven", "nine"), (4, 7, 9), 3)
    content["categories"].append({"id": 1, "name": "a new one"})
    spec.json_file.write_text(json.dumps(content))
    assert read_classes(spec).names == load_dataset(spec).summary.class_names == ("a new one", "four", "seven", "nine")


def test_ground_truth_has_the_objects_of_the_records(write, content):
    """Annotations are numbered from 1, boxes are clipped, and invalid annotations are dropped."""
    for number, item in enumerate(content["annotations"]):
        item["segmentation"], item["id"] = [[1, 2, 11, 2, 11, 22]], -number
    content["annotations"][2]["bbox"] = [5, 5, 0, 5]
    records = load_dataset(write(content), "drop", for_evaluation=True, masks=True)
    found = records.ground_truth()
    expected = [content["annotations"][index] | {"id": number} for number, index in enumerate((0, 1, 3), 1)]
    expected[1]["bbox"] = [30.5, 5, 9.5, 10]
    assert found["annotations"] == expected
    assert [item["id"] for item in records[1:].ground_truth()["annotations"]] == [1]
    assert found["categories"] == sorted(content["categories"], key=lambda item: item["id"])
    assert [image["id"] for image in found["images"]] == [10, 20, 30]


def test_a_file_is_decoded_once_for_training_and_evaluation(write, content):
    spec = write(content)
    most = max(len(labels) for labels in load_dataset(spec).object_labels())
    records = load_dataset(spec, max_objects=most, for_evaluation=True)
    assert load_dataset(spec, for_evaluation=True) is records and load_dataset(spec) is records
    with pytest.raises(DatasetError, match="max_objects"):
        load_dataset(spec, max_objects=most - 1)
