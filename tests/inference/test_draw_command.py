"""Command that draws the detections of an evaluation."""

import argparse
import json

import numpy as np
import pytest
from PIL import Image

from projects_deformable_detr.cli import draw
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.inference import drawing

RESULT = {"image_id": 1, "category_id": 3, "bbox": [2, 2, 10, 10], "score": 0.9}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns a function that draws results on two images of the same name; returns the names of the pictures."""
    monkeypatch.setattr("projects_deformable_detr.data.catalog._registered", {})
    for folder in "ab":
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / folder / "same.png")
    images = [{"id": i, "file_name": f"{name}/same.png", "width": 40, "height": 30} for i, name in ((1, "a"), (2, "b"))]
    item = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9]}
    content = {"images": images, "annotations": [item], "categories": [{"id": 3, "name": "cat"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))

    def command(results, *options):
        (tmp_path / "results.json").write_text(json.dumps(results))
        words = ["--dataset", "two", "--register", "two", tmp_path / "truth.json", tmp_path]
        words += ["--results", tmp_path / "results.json", "--output", tmp_path / "out", *options]
        parser = argparse.ArgumentParser()
        draw.add_arguments(parser)
        draw.run(parser.parse_args(list(map(str, words))))
        return sorted(path.name for path in (tmp_path / "out").iterdir())

    return command


def test_images_of_the_same_name(run):
    assert run([RESULT]) == ["1_same.png", "2_same.png", "grid.png"]


def test_truth_beside_detections(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(drawing, "draw", lambda image, boxes, labels, *_, **__: drawn.append((boxes, labels)) or image)
    assert len(run([RESULT], "--truth")) == 3
    boxes = [(np.asarray(boxes).tolist(), list(labels)) for boxes, labels in drawn]
    assert boxes == [([[2, 2, 12, 12]], [0]), ([[1, 1, 10, 10]], [0]), ([], []), ([], [])]
    monkeypatch.undo()
    assert Image.open(tmp_path / "out" / "1_same.png").size[0] > 2 * 40  # the truth on the left


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{**RESULT, "image_id": 9}], "images or categories that .*truth.json lacks"),
        ([{**RESULT, "category_id": 9}], "images or categories that .*truth.json lacks"),
        ([{"image_id": 1, "category_id": 3, "bbox": [1, 1, 2, 2]}], "not a COCO results file .'score'"),
        ({"images": []}, "not a COCO results file"),
        ([RESULT, {**RESULT, "bbox": [1, 2, 3]}], r"entry 1: bbox must be four finite numbers.* bbox \[1, 2, 3\]"),
        ([{**RESULT, "bbox": None}], "entry 0: .* bbox None"),
        ([{**RESULT, "bbox": [0, 0, float("nan"), 1]}], "entry 0: .* nan"),
        ([{**RESULT, "score": "x"}], "entry 0: .* score 'x'"),
        ([{**RESULT, "score": 10**400}], "entry 0: .* score 1000"),
        ([{**RESULT, "score": float("inf")}], "entry 0: .* score inf"),
    ],
)
def test_results_that_cannot_be_drawn(run, results, message):
    with pytest.raises(UserError, match=message):
        run(results)
