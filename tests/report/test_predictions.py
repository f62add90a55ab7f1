"""Choice of the detections for the error analysis: saved results, or new ones of the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from known_errors import CLASSES

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import save_detector
from projects_deformable_detr.data import catalog
from projects_deformable_detr.report.analysis import Analysis
from projects_deformable_detr.report.predictions import find_errors, find_test_sets
from projects_deformable_detr.report.runs import Run, read_runs
from projects_deformable_detr.shapes.dataset import generate


def errors_of(
    folder: Path, data: tuple[str, str] | None = None, weights: str | None = None
) -> tuple[Run, Analysis | None]:
    (run,) = read_runs([folder])
    found = [find_errors(run, item, weights) for item in find_test_sets(run, data)]
    return run, found[0] if found else None


def test_the_model_is_evaluated_if_results_do_not_belong_to_it(
    make_run: Callable[..., Path], make_cfg: Callable[..., Any]
) -> None:
    folder, names = make_run(), tuple(CLASSES.values())
    weights = folder / "model_final.pth"

    def source(iteration: int, *variant: str, run: Path = folder, model: str | None = None, **options: Any) -> str:
        cfg = make_cfg(*variant, NUM_CLASSES=2, NORM="GN", **options)
        cfg.INPUT.MIN_SIZE_TEST = 32
        torch.manual_seed(0)
        save_detector(weights, build_detector(cfg), iteration=iteration, cfg_text=cfg.dump(), class_names=names)
        _, analysis = errors_of(run, weights=model)
        assert analysis is not None
        return analysis.source

    masks = {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8}
    saved = f"{folder}/inference/coco_instances_results.json, saved by the evaluation after 60 iterations"
    assert source(59, **masks) == source(58, **masks) == saved  # Detectron2 counts the final evaluation as one later
    assert source(99, **masks) == f"detections of {folder}, computed for this report"
    used = source(59, "encoder_only", run=make_run("other"), model=str(weights))
    assert used == f"detections of {weights}, computed for this report"


def test_saved_results_of_another_iteration_remain_if_the_model_cannot_be_opened(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    torch.save({"model": {"a": torch.zeros(1)}, "iteration": 99}, folder / "model_final.pth")
    run, analysis = errors_of(folder)
    assert analysis is not None and "evaluation after 60 iterations" in analysis.source
    assert "which cannot be evaluated" in dict(run.missing)["Detections of the last model in known_val"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"image_id": 99, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 1}]', "has images or categories that"),
        ("[]", "there are no detections"),
        ("{", "not a COCO results file"),
        ('[{"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, "x"], "score": 1}]', "entry 0: bbox must be four"),
    ],
)
def test_results_that_cannot_be_used(make_run: Callable[..., Path], content: str, reason: str) -> None:
    folder = make_run()
    (folder / "inference" / "coco_instances_results.json").write_text(content)
    run, analysis = errors_of(folder)
    assert analysis is None and reason in dict(run.missing)["Saved results for known_val"]
    assert (
        "no saved results that belong to it, and its model cannot be evaluated"
        in dict(run.missing)["Error analysis of known_val"]
    )


def test_an_unexpected_error_does_not_lose_the_page(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("projects_deformable_detr.report.predictions.Detector.load", fail)
    folder = make_run()
    run, analysis = errors_of(folder, weights="w.pth")
    assert analysis is None and "(RuntimeError: no memory)" in dict(run.missing)["Error analysis of known_val"]
    monkeypatch.setattr("projects_deformable_detr.report.predictions.analyze", fail)
    run, analysis = errors_of(folder)
    assert analysis is None and ("Error analysis of known_val", "RuntimeError: no memory") in run.missing


def test_runs_may_give_a_name_to_different_files(
    make_run: Callable[..., Path], known_data: tuple[str, str], tmp_path: Path
) -> None:
    folders = [make_run("a"), make_run("b")]
    other = tmp_path / "other.json"
    other.write_text(Path(known_data[0]).read_text())
    config = folders[1] / "config.yaml"
    config.write_text(config.read_text().replace(known_data[0], str(other)))
    runs = read_runs(folders)
    specs = [item.spec for run in runs for item in find_test_sets(run, None)]
    assert [(spec.name, str(spec.json_file)) for spec in specs] == [
        ("known_val", known_data[0]),
        ("known_val", str(other)),
    ]
    assert "known_val" not in catalog.names() and not {
        name for run in runs for name, _ in run.missing if "Data" in name
    }


def test_data_that_cannot_be_used(make_run: Callable[..., Path], known_data: tuple[str, str], tmp_path: Path) -> None:
    folder, content = make_run(), json.loads(Path(known_data[0]).read_text())
    run, _ = errors_of(folder, (known_data[0], str(tmp_path)))
    assert "missing image files (14)" in dict(run.missing)["Error analysis of known.json"]
    (tmp_path / "none.json").write_text(json.dumps(content | {"annotations": []}))
    run, _ = errors_of(folder, (str(tmp_path / "none.json"), known_data[1]))
    assert "has no objects" in dict(run.missing)["Error analysis of none.json"]
    for image in content["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for category in content["categories"]:
        category["frequency"] = "r"
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    run, _ = errors_of(folder, (str(tmp_path / "lvis.json"), known_data[1]))
    assert "whose annotations are not exhaustive" in dict(run.missing)["Error analysis of lvis.json"]


def test_panoptic_data(make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are analyzed for things."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    generate(tmp_path / "shapes", num_train=0, num_val=3, size=(64, 64), seed=0)
    content = json.loads((tmp_path / "shapes/annotations/instances_val.json").read_text())
    found = [{key: item[key] for key in ("image_id", "category_id", "bbox")} for item in content["annotations"]]
    lines = [{"iteration": 9, "bbox/AP": 100.0, "panoptic_seg/PQ": 51.25}]
    config = "DATASETS: {TEST: [shapes_val_panoptic]}"
    _, analysis = errors_of(make_run(config=config, lines=lines, found=[{**item, "score": 0.5} for item in found]))
    assert (
        analysis is not None and analysis.metrics["AP"] == 100 and "evaluation after 10 iterations" in analysis.source
    )
    assert sum(analysis.counts.values()) == 0
