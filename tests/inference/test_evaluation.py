"""`evaluate` on models with masks, and on data sets with other classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projects_deformable_detr.cli.main import main
from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.data.segment_ids import encode_png, read_segment_ids
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.evaluation.panoptic import PanopticQuality
from projects_deformable_detr.inference import Detector
from projects_deformable_detr.inference.evaluation import evaluate

NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture
def spec(files: list[str], tmp_path: Path) -> DatasetSpec:
    """The images with one object each, of class bee."""
    sizes = ((40, 56), (56, 40), (40, 56), (30, 90))
    images = [
        {"id": index, "file_name": Path(file).name, "height": height, "width": width}
        for index, (file, (height, width)) in enumerate(zip(files, sizes, strict=True))
    ]
    outline = [[5, 5, 25, 5, 25, 20, 5, 20]]
    annotations = [
        {"id": index + 1, "image_id": index, "category_id": 2, "bbox": [5, 5, 20, 15], "area": 300, "iscrowd": 0}
        | {"segmentation": outline}
        for index in range(4)
    ]
    categories = [{"id": index, "name": name} for index, name in enumerate(NAMES, 1)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return DatasetSpec("tiny", path, Path(files[0]).parent)


def test_masks_and_subsets_of_classes(save_tiny: Callable[..., Path], spec: DatasetSpec, tmp_path: Path) -> None:
    detector = Detector.load(save_tiny(MASK_ON=True, HIDDEN_DIM=128, NHEADS=8))
    seen: list[None] = []
    records = load_dataset(spec, for_evaluation=True, masks=True)
    result = evaluate(detector, records, tmp_path, on_image=lambda: seen.append(None), batch_size=2)
    assert result.metrics.keys() == {"bbox", "segm"} and len(seen) == 4
    assert result.objects == {"ant": 0, "bee": 4, "cat": 0, "dog": 0, "elk": 0}
    assert result.best_f1_of_classes["bee"]["recall"] >= result.best_f1["recall"]
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {item["image_id"] for item in results} == set(range(4)) and all("segmentation" in item for item in results)


def test_panoptic_data_sets(save_tiny: Callable[..., Path], spec: DatasetSpec, tmp_path: Path, capsys: Any) -> None:
    content = json.loads(Path(spec.json_file).read_text())
    for index, category in enumerate(content["categories"]):
        category["isthing"] = int(index < 3)
    annotations = []
    for image in content["images"]:
        ids = np.full((image["height"], image["width"]), 1, np.int32)
        ids[5:20, 5:25] = 2
        name = f"{image['id']}.png"
        (tmp_path / name).write_bytes(encode_png(ids))
        segments = [{"id": 1, "category_id": 4, "iscrowd": 0}, {"id": 2, "category_id": 2, "iscrowd": 0}]
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    data = tmp_path / "panoptic.json"
    data.write_text(json.dumps(content | {"annotations": annotations}))

    def val(weights: Path, *words: str | Path) -> int:
        return main(list(map(str, ["val", "--weights", weights, "--data", data, "--images", spec.image_root, *words])))

    out = tmp_path / "out"
    weights = save_tiny("detr", MASK_ON=True, HIDDEN_DIM=128, NHEADS=8, panoptic=True)
    assert val(weights, "--segments", tmp_path, "--latency-images", "0", "--output", out) == 0
    metrics = json.loads((out / "val.json").read_text())["metrics"]["panoptic_seg"]
    found = [Detector.load(weights)(record["file_name"]) for record in load_dataset(spec)]
    quality = PanopticQuality({1: True, 2: True, 3: True, 4: False, 5: False})
    for item, annotation in zip(found, annotations, strict=True):
        assert item.segmentation is not None
        true_ids = read_segment_ids(str(tmp_path / annotation["file_name"]))
        segments = [{**part, "category_id": part["category_id"] + 1} for part in item.segmentation.segments]
        quality.add(true_ids, annotation["segments_info"], item.segmentation.ids.numpy(), segments)
    expected = {name: value for name, value in quality.compute().items() if value == value}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert "| things " in (out / "val.md").read_text() and (out / "panoptic" / "0.png").is_file()
    assert val(weights) == 2
    assert "panoptic.json is in the panoptic format: add --segments DIR" in capsys.readouterr().err
    assert val(save_tiny(), "--segments", tmp_path) == 2
    assert "is in the panoptic format, but the model is not panoptic" in capsys.readouterr().err


def test_a_model_without_the_classes_is_an_error(detector: Detector, spec: DatasetSpec, tmp_path: Path) -> None:
    content = json.loads(Path(spec.json_file).read_text())
    content["categories"][0]["name"] = "fox"
    Path(spec.json_file).write_text(json.dumps(content))
    with pytest.raises(UserError, match="the model lacks the classes fox; its classes are ant, bee, cat, dog, elk"):
        evaluate(detector, load_dataset(spec, for_evaluation=True), tmp_path)
