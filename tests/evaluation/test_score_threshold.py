"""Metrics at score thresholds, and tools/score_threshold.py, on detections whose metrics are computed by hand."""

import json
import sys

import pytest
from pycocotools.coco import COCO

from projects_deformable_detr.errors import UserError
from projects_deformable_detr.evaluation.score_threshold import best_f1, match, metrics_above

BOX, ELSEWHERE = [0, 0, 10, 10], [50, 50, 10, 10]


@pytest.fixture
def files(tmp_path):
    """Two images: the first has objects of two classes at the same place, the second a crowd."""
    objects = [(1, 3, BOX, 0), (1, 7, BOX, 0), (2, 3, BOX, 1)]
    truth = {
        "images": [{"id": index, "height": 64, "width": 64} for index in (1, 2)],
        "categories": [{"id": 3}, {"id": 7}],
        "annotations": [
            {"id": number, "image_id": image, "category_id": kind, "bbox": box, "area": 100, "iscrowd": crowd}
            for number, (image, kind, box, crowd) in enumerate(objects)
        ],
    }
    found = [
        (1, 3, BOX, 0.9),  # correct
        (1, 3, [0, 0, 10, 9], 0.8),  # duplicate
        (1, 7, ELSEWHERE, 0.7),  # wrong
        (1, 7, BOX, 0.6),  # correct
        (2, 7, BOX, 0.4),  # wrong class
        (2, 3, BOX, 0.95),  # on the crowd: ignored
    ]
    results = [{"image_id": i, "category_id": kind, "bbox": box, "score": score} for i, kind, box, score in found]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path / "results.json", tmp_path / "truth.json"


@pytest.fixture
def matches(files):
    truth = COCO(str(files[1]))
    for number, item in enumerate(truth.dataset["annotations"], 1):
        item["id"] = number
    truth.createIndex()
    return match(truth, json.loads(files[0].read_text()))


@pytest.mark.parametrize(
    ("threshold", "per_image", "precision", "recall", "f1", "duplicates"),
    [(0.0, 2.5, 2 / 5, 1, 4 / 7, 1 / 5), (0.75, 1, 1 / 2, 1 / 2, 1 / 2, 1 / 2), (0.9, 0, 0, 0, 0, 0)],
)
def test_metrics_above(matches, threshold, per_image, precision, recall, f1, duplicates):
    expected = (threshold, per_image, precision, recall, f1, duplicates)
    assert tuple(metrics_above(matches, threshold).values()) == pytest.approx(expected)


def test_best_f1_of_a_class(matches):
    best = best_f1(matches.select(7))  # wrong at 0.7 and 0.4, correct at 0.6
    assert (best["precision"], best["recall"]) == (0.5, 1) and 0.59 < best["threshold"] < 0.6
    none = best_f1(matches.select(8))
    assert (none["threshold"], none["precision"], none["recall"]) == (1, 0, 0)


def test_last_row_has_the_best_f1(files, load_script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["score_threshold.py", *map(str, files), "--thresholds", "0"])
    load_script("tools/score_threshold.py").main()
    lines = capsys.readouterr().out.splitlines()
    label, *words = lines[-1].rsplit(maxsplit=6)
    best = [float(word) for word in words]
    assert label == "best F1" and lines[0].split()[0] == "threshold"
    # 0.9 alone: F1 2/3; down to 0.6: 4/6.
    assert best[4] == pytest.approx(2 / 3, abs=1e-3) and best[0] == pytest.approx(0.9, abs=1e-3)


def test_no_detections_are_an_error(files, load_script, monkeypatch):
    files[0].write_text("[]")
    monkeypatch.setattr(sys, "argv", ["score_threshold.py", *map(str, files)])
    with pytest.raises(UserError, match="results.json has no detections"):
        load_script("tools/score_threshold.py").main()
