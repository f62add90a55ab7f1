"""Test-time augmentation in runs of the standalone engine."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from projects_deformable_detr.standalone import main

AUG = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(40, 56)", "TEST.AUG.MAX_SIZE", 64)


def test_metrics_with_and_without_test_time_augmentation(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    best = ("TEST.BEST_CHECKPOINT.ENABLED", True, "SOLVER.EMA.ENABLED", True)
    trained = main(make_args(tmp_path, *AUG, *best, "SOLVER.MAX_ITER", 14))
    assert trained.keys() == {"bbox", "bbox_TTA"}
    logged = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in logged if "bbox_TTA/AP" in row] == [13]
    weights = tmp_path / "model_final.pth"
    again = main(make_args(tmp_path / "eval", "--eval-only", *AUG, "MODEL.WEIGHTS", weights))
    for kind in ("bbox", "bbox_TTA"):
        assert again[kind] == pytest.approx(trained[kind], abs=0.1, nan_ok=True)
    files = [tmp_path / name / "coco_instances_results.json" for name in ("inference", "inference_TTA")]
    plain, merged = (json.loads(file.read_text()) for file in files)
    assert 7 * 16 == len(plain) < len(merged) <= 7 * 100


def test_one_view_of_the_same_size_gives_the_same_detections(
    make_args: Callable[..., Namespace], tmp_path: Path
) -> None:
    one = ("TEST.AUG.MIN_SIZES", "(48,)", "TEST.AUG.FLIP", False, "MODEL.DETR.TTA_NMS_THRESH", 1.0)
    main(make_args(tmp_path, *AUG, *one, "SOLVER.MAX_ITER", 2))
    files = [tmp_path / name / "coco_instances_results.json" for name in ("inference", "inference_TTA")]
    plain, merged = (json.loads(file.read_text()) for file in files)
    assert [row["score"] for row in merged] == pytest.approx([row["score"] for row in plain], abs=2e-3)
    assert [row["image_id"] for row in merged] == [row["image_id"] for row in plain]
