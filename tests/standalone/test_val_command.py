"""deformable-detr val reports the metrics of the standalone engine's evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from projects_deformable_detr.cli.main import main as command
from projects_deformable_detr.standalone import main
from projects_deformable_detr.zoo.files import UrlFile


@pytest.fixture(scope="module")
def trained(make_args: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Output folder of a training run, and its metrics."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, main(make_args(folder))


def run_val(weights: Path, data: str | Path, images: str, output: Path) -> dict[str, Any]:
    words = ["val", "--weights", weights, "--data", data, "--images", images, "--output", output]
    assert command([str(word) for word in (*words, "--latency-images", 2)]) == 0
    report: dict[str, Any] = json.loads((output / "val.json").read_text())
    return report


def test_metrics_are_those_of_the_evaluation(
    trained: tuple[Path, dict[str, Any]], data_sets: list[tuple[str, str, str]], tmp_path: Path, capsys: Any
) -> None:
    folder, metrics = trained
    _, data, images = data_sets[1]
    report = run_val(folder, data, images, tmp_path)
    known = {name: value for name, value in metrics["bbox"].items() if value == value}
    assert known["AP"] > 0 and known.keys() > {"AP50", "AR", "AP-red", "AP-blue"}
    assert {name: report["metrics"]["bbox"][name] for name in known} == pytest.approx(known, abs=1e-3)
    assert report["metrics"]["bbox"]["APl"] is None
    objects = json.loads(Path(data).read_text())["annotations"]
    assert report["objects"] == {
        name: sum(item["category_id"] == category for item in objects) for name, category in (("red", 5), ("blue", 9))
    }
    best = report["best_f1"]
    assert best["F1"] == pytest.approx(2 / (1 / best["precision"] + 1 / best["recall"]))
    assert report["latency_ms"] > 0
    text = capsys.readouterr().out
    assert (tmp_path / "val.md").read_text().strip() in text and "| blue " in text and "(all)" in text


def test_classes_are_matched_by_name(
    trained: tuple[Path, dict[str, Any]], data_sets: list[tuple[str, str, str]], tmp_path: Path, capsys: Any
) -> None:
    _, data, images = data_sets[1]
    content = json.loads(Path(data).read_text())
    content["categories"] = [{"id": 9, "name": "Blue"}]
    content["annotations"] = [item for item in content["annotations"] if item["category_id"] == 9]
    (tmp_path / "blue.json").write_text(json.dumps(content))
    report = run_val(trained[0], tmp_path / "blue.json", images, tmp_path / "out")
    assert report["metrics"]["bbox"]["AP"] == pytest.approx(trained[1]["bbox"]["AP-blue"], abs=1e-3)
    results = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert {item["category_id"] for item in results} == {9}
    content["categories"].append({"id": 11, "name": "green"})
    (tmp_path / "green.json").write_text(json.dumps(content))
    words = ["val", "--weights", trained[0], "--data", tmp_path / "green.json", "--images", images]
    assert command([str(word) for word in [*words, "--output", tmp_path / "out"]]) == 2
    assert "is not empty: choose another folder with --output, or add --overwrite" in capsys.readouterr().err
    assert command([str(word) for word in words]) == 2
    assert "the model lacks the classes green; its classes are red, blue" in capsys.readouterr().err


def test_images_of_other_sizes_are_an_error(
    trained: tuple[Path, dict[str, Any]], data_sets: list[tuple[str, str, str]], tmp_path: Path, capsys: Any
) -> None:
    _, data, _ = data_sets[1]
    names = [item["file_name"] for item in json.loads(Path(data).read_text())["images"]]
    for name in names:
        Image.new("RGB", (16, 17)).save(tmp_path / name)
    words = ["val", "--weights", trained[0], "--data", data, "--images", tmp_path]
    assert command([str(word) for word in words]) == 2
    assert f"images whose size differs from their record ({len(names)}): " in capsys.readouterr().err


def test_a_training_starts_from_published_weights(
    trained: tuple[Path, dict[str, Any]], make_args: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UrlFile, "download", lambda file: trained[0] / "model_final.pth")
    words = ["--eval-only", "MODEL.WEIGHTS", "zoo://detr_r50"]
    assert main(make_args(tmp_path, *words))["bbox"]["AP"] == pytest.approx(trained[1]["bbox"]["AP"], abs=1e-3)
    main(make_args(tmp_path, "MODEL.WEIGHTS", "zoo://detr_r50", "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,)"))
    assert "zoo://detr_r50: " in (tmp_path / "log.txt").read_text()
