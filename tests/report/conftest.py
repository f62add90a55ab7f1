"""Output folders of training runs, with a test set and results that have one error of each kind."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("hotcoco", reason="reports need hotcoco")
pytest.importorskip("matplotlib", reason="reports need matplotlib")

sys.path.insert(0, str(Path(__file__).resolve().parent))
from known_errors import CLASSES, CORRECT, DETECTIONS, OBJECTS

CONFIG = """
MODEL: {META_ARCHITECTURE: DETR, BACKBONE: {NAME: build_deformable_detr_resnet_backbone}, RESNETS: {DEPTH: 18}}
DATASETS: {TRAIN: [], TEST: [known_val], REGISTER: [[known_val, JSON, IMAGES]]}
SOLVER: {MAX_ITER: 60, IMS_PER_BATCH: 4, BASE_LR: 0.5}
TEST: {DETECTIONS_PER_IMAGE: 100}
"""


@pytest.fixture(scope="session")
def known_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Annotation file, without masks, and image folder of the test set."""
    folder = tmp_path_factory.mktemp("known")
    rng = np.random.default_rng(0)
    images = []
    for image_id in range(1, 1 + max(CORRECT)):
        name = f"{image_id}.png"
        Image.fromarray(rng.integers(0, 255, (130, 160, 3), dtype=np.uint8)).save(folder / name)
        images.append({"id": image_id, "file_name": name, "height": 130, "width": 160})
    annotations = [
        {"id": number, "image_id": image, "category_id": kind, "bbox": box, "area": 1600, "iscrowd": crowd}
        for number, (image, kind, box, crowd) in enumerate(OBJECTS, 1)
    ]
    categories = [{"id": key, "name": name} for key, name in CLASSES.items()]
    path = folder / "known.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(path), str(folder)


@pytest.fixture
def results() -> list[dict[str, Any]]:
    """Entries of the results file."""
    return [
        {"image_id": image, "category_id": kind, "bbox": [float(side) for side in box], "score": score}
        for image, kind, box, score, _ in DETECTIONS
    ]


@pytest.fixture
def make_run(
    tmp_path: Path, known_data: tuple[str, str], results: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Returns ``make_run(name, config=…, lines=…, found=…)``, which writes an output folder.

    ``lines`` of ``metrics.json`` default to two reports and an evaluation with the AP of the results.
    """
    from projects_deformable_detr.data.catalog import DatasetSpec
    from projects_deformable_detr.data.load import load_dataset
    from projects_deformable_detr.evaluation.coco import CocoEvaluator

    monkeypatch.setattr("projects_deformable_detr.data.catalog._registered", {})
    records = load_dataset(DatasetSpec("known_val", *known_data), for_evaluation=True)

    def make(
        name: str = "run", config: str | None = CONFIG, lines: list[Any] | None = None, found: Any = results
    ) -> Path:
        folder = tmp_path / name
        (folder / "inference").mkdir(parents=True)
        if config is not None:
            text = config.replace("JSON", known_data[0]).replace("IMAGES", known_data[1])
            (folder / "config.yaml").write_text(text)
        if found is not None:
            (folder / "inference" / CocoEvaluator.results_name).write_text(json.dumps(found))
        if lines is None:
            metrics = CocoEvaluator(records).compute(found, "bbox", folder)
            losses = {"loss_ce": 0.5, "loss_ce_0": 0.7, "loss_ce_enc": 0.9, "loss_bbox": 1.5, "loss_bbox_0": 1.75}
            report = {"total_loss": 4.0, "lr": 0.001, "grad_norm": 12.5, "time": 0.5, "data_time": 0.125} | losses
            lines = [{"iteration": 19, **report}, {"iteration": 59, **report, "total_loss": 2.0}]
            lines.append({"iteration": 59, **{f"bbox/{key}": value for key, value in metrics.items()}})
        if lines:
            text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
            (folder / "metrics.json").write_text(text)
        return folder

    return make
