"""Each engine evaluates the other's model_final.pth to the same metrics."""

import json

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
pytest.importorskip("lightning", reason="Lightning is not installed")

from projects_deformable_detr.detectron2_plugin import main as detectron2_main
from projects_deformable_detr.standalone import main as standalone_main


@pytest.mark.parametrize(
    ("train", "evaluate"), [(detectron2_main, standalone_main), (standalone_main, detectron2_main)]
)
def test_the_other_engine_gives_the_same_metrics(train, evaluate, job, tmp_path, coco_files):
    # On data of two plain colors, these steps are enough for a measurable AP.
    expected = train(job(tmp_path / "a", coco_files, "SOLVER.MAX_ITER", 100, "SOLVER.STEPS", "(90,)"))
    weights = tmp_path / "a" / "output" / "model_final.pth"
    found = evaluate(job(tmp_path / "b", coco_files, "MODEL.WEIGHTS", weights, eval_only=True))
    assert expected["bbox"]["AP"] > 1
    assert found["bbox"] == pytest.approx(expected["bbox"], abs=0.1, nan_ok=True)
    records = [
        json.loads((tmp_path / run / "output/inference/coco_instances_results.json").read_text()) for run in "ab"
    ]
    assert len(records[0]) == len(records[1])
    assert {record["category_id"] for record in records[0]} == {record["category_id"] for record in records[1]}
