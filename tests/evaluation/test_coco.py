"""COCO's metrics against pycocotools' own summary and Detectron2's evaluator."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.data.masks import decode, to_rle
from projects_deformable_detr.evaluation.coco import CocoEvaluator, compute_metrics, format_metrics
from projects_deformable_detr.modeling import Detections

CLASSES = ("two", "five", "eight")


@pytest.fixture(scope="module")
def truth_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects of COCO's three sizes, a crowd, a class without objects, and an image without objects."""
    rng = np.random.default_rng(0)
    images = [{"id": index, "file_name": f"{index}.png", "width": 300, "height": 300} for index in (3, 1, 7, 4)]
    annotations = []
    for image_id in (3, 1, 7) * 6:
        side = float(rng.choice([20, 60, 150]))
        x, y = rng.uniform(0, 300 - side, 2).tolist()
        item = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": int(rng.random() < 0.1)}
        category = int(rng.choice([8, 2]))
        annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category, **item})
    categories = [{"id": 8, "name": "eight"}, {"id": 2, "name": "two"}, {"id": 5, "name": "five"}]
    path = tmp_path_factory.mktemp("truth") / "truth.json"
    for image in images:
        (path.parent / str(image["file_name"])).touch()
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture(scope="module")
def truth(truth_file: Path) -> COCO:
    return COCO(str(truth_file))


@pytest.fixture(scope="module")
def results(truth: COCO) -> list[dict[str, Any]]:
    """Shifted ground truth with scores, partly duplicated or of a wrong class."""
    rng = np.random.default_rng(1)
    found = []
    for item in truth.dataset["annotations"] * 2:
        box = (np.array(item["bbox"]) + rng.normal(0, 4, 4)).tolist()
        category = item["category_id"] if rng.random() < 0.8 else 5
        found.append({"image_id": item["image_id"], "category_id": category, "bbox": box, "score": rng.random()})
    return found


def test_metrics_match_pycocotools(truth: COCO, results: list[dict[str, Any]]) -> None:
    def stats(categories: list[int]) -> list[float]:
        reference = COCOeval(truth, truth.loadRes(results), "bbox")
        reference.params.catIds = categories
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
        return [100 * value for value in reference.stats]

    metrics = compute_metrics(truth, results, CLASSES)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR", "ARs", "ARm", "ARl"]
    assert [metrics[name] for name in names] == pytest.approx(stats([2, 5, 8]))
    assert 5 < metrics["AP"] < 95
    assert (metrics["AP-two"], metrics["AP-eight"]) == pytest.approx((stats([2])[0], stats([8])[0]))
    assert math.isnan(metrics["AP-five"])  # no ground truth


def test_metrics_match_detectron2(truth: COCO, results: list[dict[str, Any]]) -> None:
    evaluation = pytest.importorskip("detectron2.evaluation.coco_evaluation", reason="compares with Detectron2's")
    expected = evaluation._evaluate_predictions_on_coco(truth, results, "bbox", max_dets_per_image=[1, 10, 4])
    metrics = compute_metrics(truth, results, CLASSES, max_detections=4)
    assert (metrics["AP"], metrics["AP75"]) == pytest.approx((100 * expected.stats[0], 100 * expected.stats[2]))


def test_metrics_are_nan_without_detections(truth: COCO) -> None:
    metrics = compute_metrics(truth, [], CLASSES)
    assert len(metrics) == 15 and all(math.isnan(value) for value in metrics.values())


def test_evaluator_writes_the_results_format(truth_file: Path, tmp_path: Path) -> None:
    evaluator = CocoEvaluator(load_dataset(DatasetSpec("truth", truth_file, truth_file.parent), for_evaluation=True))
    boxes, scores = torch.tensor([[10.0, 20.0, 40.0, 80.0], [0.0, 0.0, 5.0, 5.0]]), torch.tensor([0.75, 0.5])
    evaluator.add(
        [7, 3], [Detections(boxes, scores, torch.tensor([2, 0])), Detections(boxes[:0], scores[:0], scores[:0])]
    )
    metrics = evaluator.evaluate(tmp_path / "inference")
    written = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert written == [
        {"image_id": 7, "category_id": 8, "bbox": [10.0, 20.0, 30.0, 60.0], "score": 0.75},
        {"image_id": 7, "category_id": 2, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.5},
    ]
    assert {"AP", "AP50", "AP75", "APs", "AR", "AP-two", "AP-five", "AP-eight"} <= set(metrics["bbox"])


def test_table_has_every_number() -> None:
    metrics = {"AP": 12.3456, "AP50": 2.0, "APs": math.nan, "APl": 6.0, "AR": 61.5, "AP-cat": 7.25}
    text = format_metrics(metrics)
    assert all(word in text for word in ("12.346", "AP50", "nan", "cat", "7.250", "61.500"))


@pytest.mark.parametrize("ids", [range(5), range(-7, -2), [5] * 5, range(2**63, 2**63 + 5)])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_truth_as_detections_has_ap_100(ids: Sequence[int], kind: str, tmp_path: Path) -> None:
    """For any annotation ids, with boxes that leave the image, and with dropped boxes."""
    boxes = [[10.0, 10, 20, 30], [50, 60, 100, 10], [70, 10, 8, 8], [5, 5, 0, 5], [120, 20, 10, 10]]
    outlines = [[[x, y, x + w, y, x + w, y + h, x, y + h]] for x, y, w, h in boxes]
    annotations = [
        {"id": ids[index], "image_id": 1 + index % 2, "category_id": 1, "iscrowd": 0, "area": 90, "bbox": box}
        | {"segmentation": outline}
        for index, (box, outline) in enumerate(zip(boxes, outlines, strict=True))
    ]
    images = [{"id": image_id, "file_name": "a.png", "width": 100, "height": 80} for image_id in (1, 2)]
    (tmp_path / "a.png").touch()
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    spec = DatasetSpec("truth", tmp_path / "truth.json", tmp_path)
    records = load_dataset(spec, "drop", for_evaluation=True, masks=True)
    evaluator = CocoEvaluator(records)
    for record in records:
        corners = torch.tensor([item["bbox"] for item in record["annotations"]])
        corners[:, 2:] += corners[:, :2]
        rles = [to_rle(item["segmentation"], 80, 100, "") for item in record["annotations"]]
        count = len(corners)
        found = Detections(corners, torch.ones(count), torch.zeros(count), torch.from_numpy(decode(rles, 80, 100)))
        evaluator.add([record["image_id"]], [found])
    metrics = evaluator.evaluate(tmp_path)[kind]
    assert [metrics["AP"], metrics["AP75"], metrics["APs"]] == pytest.approx([100, 100, 100])
