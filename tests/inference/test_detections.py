"""Results of `Detector` and their conversion."""

import dataclasses
import functools
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.inference import Detection, Detector

ALL = {"score_threshold": 0.0}


@pytest.fixture
def found(detector, files):
    return detector(files[0], top_k=6, **ALL)


def test_sequence(found):
    assert len(found) == 6 and isinstance(found[0], Detection) and list(found)[5].name == found.names[5]
    assert found[-1].score == float(found.scores[5])
    assert len(found[2:4]) == 2 and len(found[found.scores > found.scores[3]]) == 3
    assert found[[4, 1]].scores.tolist() == found.scores[[4, 1]].tolist()
    assert len(found[np.zeros(6, bool)]) == len(found[[]]) == len(found[:0][[]]) == 0
    with pytest.raises(IndexError, match="index 6 is out of range for 6 detections"):
        found[6]
    with pytest.raises(AttributeError):
        found.scores = None
    assert "56 x 40 pixels: " in repr(found) and "nothing" in repr(found[:0])


def test_tensors_can_be_changed_in_place(found):
    boxes = found.boxes.clone()
    found.boxes[:, 0] += 1
    assert (found.boxes - boxes).sum() == len(found) and not found.boxes.requires_grad


def test_coco_and_json(found):
    results = found.to_coco(image_id=7, category_ids=[10, 20, 30, 40, 50])
    assert {item["image_id"] for item in results} == {7}
    assert [item["category_id"] for item in results] == [10 * (label + 1) for label in found.labels.tolist()]
    left, top, width, height = results[0]["bbox"]
    assert found[0].box == pytest.approx((left, top, left + width, top + height))
    ids = {name: index for index, name in enumerate(found.class_names)}
    assert found.to_coco(category_ids=ids) == found.to_coco()
    with pytest.raises(ArgumentError, match="lacks bee"):
        found.to_coco(category_ids={name: 1 for name in found.class_names if name != "bee"})
    with pytest.raises(ArgumentError, match="must have 5 ids"):
        found.to_coco(category_ids=[1])
    values = json.loads(json.dumps(found.to_dict()))
    assert values["names"] == found.names and values["size"] == [40, 56] and len(values["boxes"]) == 6


def test_supervision(found):
    pytest.importorskip("supervision")
    other = found.to_supervision()
    assert other.xyxy.shape == (6, 4) and other.data["class_name"].tolist() == found.names
    assert len(found[:0].to_supervision()) == 0


def test_drawing(found, files):
    picture = found.draw(min_side=1)
    assert picture.size == (56, 40) and (np.asarray(picture) != np.asarray(Image.open(files[0]))).any()
    assert found.draw(threshold=1.0, min_side=1).tobytes() == Image.open(files[0]).tobytes()
    assert found.draw(min_side=100).size == (168, 120)
    truth = torch.tensor([[5.0, 5, 20, 20]]), torch.tensor([1])
    assert found.draw(ground_truth=truth, min_side=1).size[0] > 2 * 56
    assert found[:2].draw().size == found.draw().size


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ground_truth": 3}, r"ground_truth must be boxes \(T, 4\) and labels \(T,\), got 3"),
        ({"ground_truth": ([[1, 2, 3, 4]], [0, 1])}, "ground_truth must be boxes"),
        ({"ground_truth": ([[1, 2, 3, 4]], [5])}, r"ground_truth must have labels from 0 to 4, got \[5\]"),
        ({"texts": ["one"]}, "texts must have a text for each of the 6 detections"),
        ({"min_side": 0}, "min_side must be an integer of at least 1, got 0"),
        ({"threshold": 3}, r"threshold must be a number in \[0, 1\], got 3"),
    ],
)
def test_bad_arguments_of_draw(found, options, named):
    with pytest.raises(ArgumentError, match=named):
        found.draw(**options)


@pytest.mark.parametrize(("method", "package"), [("to_supervision", "supervision"), ("to_instances", "detectron2")])
def test_conversion_without_its_package(found, method, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{method} requires .*{package}, which is not installed"):
        getattr(found, method)()


def test_drawing_without_the_image(found):
    with pytest.raises(ArgumentError, match="picture must be set"):
        dataclasses.replace(found, picture=None).draw()


def test_masks(save_tiny, files):
    detector = Detector.load(save_tiny("two_stage", MASK_ON=True, HIDDEN_DIM=128, NHEADS=8))
    found = detector(files[0], top_k=4, **ALL)
    assert found.masks.shape == (4, 40, 56) and found.masks.dtype == torch.bool
    assert found[1].mask.shape == (40, 56) and found[found.scores < 2].masks.shape == (4, 40, 56)
    assert found.to_coco()[0]["segmentation"]["size"] == [40, 56] and len(found.to_dict()["masks"]) == 4
    found.draw()
    for options in ({"tile": (40, 10)}, {"tta": True}, {"nms_threshold": 0.5}):
        other = detector(files[0], **options, **ALL)
        assert len(other) and other.masks.shape == (len(other), 40, 56)


def test_panoptic(save_tiny, files):
    detector = Detector.load(save_tiny("detr", MASK_ON=True, HIDDEN_DIM=128, NHEADS=8, panoptic=True))
    found = detector(files[0], **ALL)
    assert set(found.labels.tolist()) <= {0, 1, 2}
    ids, segments = found.segmentation.ids, found.segmentation.segments
    assert ids.shape == (40, 56) and sorted(ids.unique().tolist()) == [item["id"] for item in segments]
    assert [item["name"] for item in found.to_dict()["segments"]][0] in detector.class_names
    assert found.draw().size == (56 * 12, 40 * 12)
    draw = functools.partial(found.draw, min_side=1)
    scores = sorted(item["score"] for item in segments)
    pictures = {draw(threshold=threshold).tobytes() for threshold in (0, 1 - 1e-6)} | {
        draw(texts=[""] * len(segments)).tobytes()
    }
    assert len(pictures) == 3 and scores[-1] < 1 - 1e-6
    assert draw(threshold=1 - 1e-6).tobytes() == Image.open(files[0]).tobytes()
    with pytest.raises(ArgumentError, match=f"texts must have a text for each of the {len(segments)} segments"):
        draw(texts=["a", *(item["name"] for item in found.to_dict()["segments"])])
    for options, named in (({"tile": (40, 5)}, "tile must be off"), ({"tta": True}, "tta must be")):
        with pytest.raises(ArgumentError, match=named):
            detector(files[0], **options)
    with pytest.raises(ArgumentError, match="must be things, got the stuff class 'dog'"):
        detector(files[0], classes=["dog"])
