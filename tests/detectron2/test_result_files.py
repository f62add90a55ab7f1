"""Compares COCO result files of the standalone engine with those of Detectron2's evaluator."""

import json

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.evaluation.coco import ImageDetections
from projects_deformable_detr.modeling import Detections


def detections(seed, size, with_masks):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(7, 2, generator=generator) * 30
    boxes = torch.cat((corners, corners + 1 + torch.rand(7, 2, generator=generator) * 30), dim=1)
    masks = torch.zeros(7, *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1 : y2 + 1, x1 : x2 + 1] = True
    labels = torch.randint(0, 2, (7,), generator=generator)
    scores = torch.rand(7, generator=generator).sort(descending=True).values
    return Detections(boxes, scores, labels, masks if with_masks else None)


@pytest.mark.parametrize("with_masks", [False, True])
def test_both_engines_write_the_same_results(tiny_name, coco_files, tmp_path, with_masks):
    evaluator = COCOEvaluator(tiny_name, output_dir=str(tmp_path / "detectron2"))
    evaluator.reset()
    category_ids = load_dataset(DatasetSpec(tiny_name, *coco_files)).summary.category_ids
    results = []
    for record in DatasetCatalog.get(tiny_name):
        size = record["height"], record["width"]
        found = detections(record["image_id"], size, with_masks)
        instances = Instances(size, pred_boxes=Boxes(found.boxes), scores=found.scores, pred_classes=found.labels)
        if with_masks:
            instances.pred_masks = found.masks
        evaluator.process([record], [{"instances": instances}])
        results += ImageDetections.from_detections(record["image_id"], found).to_coco(category_ids)
    evaluator._do_evaluation = False  # the ground truth has no masks; only the files are compared
    evaluator.evaluate()
    expected = json.loads((tmp_path / "detectron2/coco_instances_results.json").read_text())
    assert len(results) == len(expected) == 56
    for row, other in zip(json.loads(json.dumps(results)), expected, strict=True):
        assert {key: type(value) for key, value in row.items()} == {key: type(value) for key, value in other.items()}
        assert row["bbox"] == pytest.approx(other.pop("bbox"), abs=1e-5)
        assert {key: row[key] for key in other} == other
