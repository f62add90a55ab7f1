"""Error analysis of detections with known errors, and hotcoco against pycocotools."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_errors import BOX, CLASSES, CORRECT, DETECTIONS, OTHER

from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.coco import CocoRecords
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.evaluation.coco import METRICS, CocoEvaluator
from projects_deformable_detr.report.analysis import Analysis, analyze, compare, mean_ap


@pytest.fixture
def records(known_data: tuple[str, str]) -> CocoRecords:
    found = load_dataset(DatasetSpec("known_val", *known_data), for_evaluation=True)
    assert isinstance(found, CocoRecords)
    return found


@pytest.fixture
def analysis(records: CocoRecords, results: list[dict[str, Any]]) -> Analysis:
    return analyze(records, results, 100, "run", "results")


def test_each_kind_of_error_is_counted_once(analysis: Analysis) -> None:
    assert 0.24 < analysis.best["threshold"] < 0.25
    assert analysis.counts == dict.fromkeys(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), 1)
    kinds = {(item.result["image_id"], tuple(item.result["bbox"])): item.kind for item in analysis.false_positives}
    expected = {(image, tuple(box)): kind for image, _, box, score, kind in DETECTIONS if kind and score > 0.1}
    assert kinds == expected
    scores = [item.result["score"] for item in analysis.false_positives]
    assert scores == sorted(scores, reverse=True)
    assert [(item["image_id"], item["bbox"]) for item in analysis.missed] == [(1, OTHER), (2, BOX), (2, OTHER)]
    assert analysis.detections_per_object == Counter({1: len(CORRECT), 2: 1})


def test_confusion_matrix(analysis: Analysis) -> None:
    half = len(CORRECT) // 2
    # Rows: cat, dog, no object. Columns: cat, dog, missed. The detection on the crowd is not counted.
    assert analysis.confusion.tolist() == [[half + 1, 0, 1], [1, half, 1], [3, 1, 0]]


def test_calibration(analysis: Analysis) -> None:
    bins = {round(item["bin_lower"], 1): item for item in analysis.bins if item["count"]}
    assert {key: (item["count"], item["avg_accuracy"]) for key, item in bins.items()} == {
        0.0: (1, 0.0), 0.2: (10, 1.0), 0.7: (2, 0.0), 0.8: (2, 0.0), 0.9: (2, 0.5)
    }  # fmt: skip
    gaps = 1 * 0.01 + 10 * 0.75 + 2 * 0.725 + 2 * 0.825 + 2 * 0.425
    assert analysis.calibration_error == pytest.approx(gaps / 17, abs=1e-9)


def test_delta_ap_is_the_gain_of_a_correction(analysis: Analysis, records: CocoRecords, results: Any) -> None:
    without = [row for row, item in zip(results, DETECTIONS, strict=True) if item[4] != "Bkg"]
    gain = analyze(records, without, 100, "", "").metrics["AP50"] - analysis.metrics["AP50"]
    assert gain > 0 and analysis.delta_ap["Bkg"] == pytest.approx(gain)


def test_detections_on_crowds(records: CocoRecords, results: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="results: all detections are on crowds"):
        analyze(records, [row for row in results if row["image_id"] == 4], 100, "", "results")


def random_results(rng: np.random.Generator, records: CocoRecords, count: int) -> list[dict[str, Any]]:
    """Detections around objects, and random ones, with scores of which some are equal."""
    found = []
    for record in records:
        boxes = [item["bbox"] for item in record["annotations"]] + [[30, 20, 30, 50]]
        for _ in range(count):
            x, y, w, h = np.array(boxes[rng.integers(len(boxes))]) + rng.normal(0, 4, 4)
            row = {
                "bbox": [float(x), float(y), max(float(w), 1), max(float(h), 1)],
                "score": float(rng.integers(50) / 50),
            }
            found.append({"image_id": record["image_id"], "category_id": int(rng.choice(list(CLASSES))), **row})
    return found


@pytest.mark.parametrize("max_detections", [11, 100])
def test_hotcoco_agrees_with_pycocotools(records: CocoRecords, tmp_path: Path, max_detections: int) -> None:
    found = random_results(np.random.default_rng(0), records, 12)
    expected = CocoEvaluator(records, max_detections).compute(found, "bbox", tmp_path)
    analysis = analyze(records, found, max_detections, "", "")
    names = [*(name for name, _, _ in METRICS), *(f"AP-{name}" for name in CLASSES.values())]
    assert 0 < expected["AP"] < 90 and mean_ap(records, found, max_detections) == analysis.metrics["AP"]
    assert {name: analysis.metrics[name] for name in names} == pytest.approx(
        {name: expected[name] for name in names}, abs=1e-9, nan_ok=True
    )


def test_kinds_of_errors_are_those_of_hotcoco(records: CocoRecords) -> None:
    found = random_results(np.random.default_rng(0), records, 12)
    # hotcoco treats overlaps with the crowd in image 4 differently; objects of image 5 are missed.
    found = [row for row in found if row["image_id"] not in (4, 5)]
    found += [row | {"score": 0.99} for row in found[:60]]
    analysis = analyze(records, found, 100, "", "")
    kept = [row for row in found if row["score"] > analysis.best["threshold"]]
    expected = analyze(records, kept, 100, "", "").evaluation.tide_errors(0.5, 0.1)["counts"]
    assert analysis.counts == expected and min(expected.values()) > 0
    assert len(analysis.kept) == len(kept)


def test_comparison_of_models(records: CocoRecords, analysis: Analysis) -> None:
    other = analyze(records, random_results(np.random.default_rng(1), records, 3), 100, "", "")
    change = compare(analysis, other)
    assert change["delta"] == pytest.approx(other.metrics["AP"] - analysis.metrics["AP"])
    assert change["lower"] <= change["delta"] <= change["upper"] < 0
