"""LVIS: metrics of federated annotations, and training with 1,203 classes."""

import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.data import masks
from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.evaluation.lvis import LvisEvaluator
from projects_deformable_detr.modeling import Detections

CLASSES = 1203
USED = 1 + np.arange(60) * 20 // 3  # category ids of all frequencies, some of them adjacent


def write_lvis(folder: Path, images: int, side: int, seed: int = 0) -> DatasetSpec:
    """Writes images in two folders: some classes present, some known to be absent, some not annotated exhaustively."""
    rng = np.random.default_rng(seed)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    for index in range(CLASSES):
        names = {"name": f"class {index}", "synonyms": [f"class {index}"]}
        content["categories"].append({"id": index + 1, **names, "frequency": "rcf"[index % 3]})
    for image_id in range(1, images + 1):
        name = f"{('train2017', 'val2017')[image_id % 2]}/{image_id:012d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(folder / name)
        present, absent = np.split(rng.choice(USED, 10, replace=False), [6])
        record = {"id": image_id, "height": side, "width": side, "coco_url": f"http://images.example/{name}"}
        record |= {"neg_category_ids": absent.tolist(), "not_exhaustive_category_ids": present[:2].tolist()}
        content["images"].append(record)
        for category in present.tolist():
            for _ in range(int(rng.integers(1, 4))):
                w, h = (float(value) for value in side * rng.choice([0.05, 0.2, 0.5], 2))
                x, y = float(rng.uniform(0, side - w)), float(rng.uniform(0, side - h))
                outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                box = {"bbox": [x, y, w, h], "area": w * h, "segmentation": outline}
                number = len(content["annotations"]) + 1
                content["annotations"].append({"id": number, "image_id": image_id, "category_id": category, **box})
    path = folder / "lvis.json"
    path.write_text(json.dumps(content))
    return DatasetSpec("many", path, folder)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> DatasetSpec:
    return write_lvis(tmp_path_factory.mktemp("many"), images=30, side=400)


def truth(spec: DatasetSpec) -> dict[int, Detections]:
    """Returns the ground truth as detections, by image id."""
    content = json.loads(Path(spec.json_file).read_text())
    found = {}
    for image in content["images"]:
        items = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        boxes = torch.tensor([item["bbox"] for item in items], dtype=torch.float64)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([item["category_id"] - 1 for item in items])
        found[image["id"]] = Detections(boxes, torch.linspace(0.9, 0.5, len(items)), labels)
    return found


def guesses(spec: DatasetSpec) -> dict[int, Detections]:
    """Returns shifted ground truth, and detections of classes that are absent, not exhaustive, or unknown."""
    generator, found = torch.Generator().manual_seed(1), {}
    for image_id, real in truth(spec).items():
        count = len(real.scores)
        moved = real.boxes + torch.randn(count, 4, generator=generator) * 5
        corner = torch.rand(60, 2, generator=generator) * 300
        boxes = torch.cat([moved, torch.cat([corner, corner + 20 + torch.rand(60, 2, generator=generator) * 80], 1)])
        others = torch.from_numpy(USED)[torch.randint(0, 60, (60,), generator=generator)] - 1
        others += torch.randint(0, 2, (60,), generator=generator)
        scores = torch.rand(count + 60, generator=generator)
        found[image_id] = Detections(boxes.float(), scores, torch.cat([real.labels, others]))
    return found


def evaluate(
    spec: DatasetSpec, found: dict[int, Detections], folder: Path, most: int = 300
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    pytest.importorskip("faster_coco_eval", reason="computes LVIS's AP with faster-coco-eval")
    evaluator = LvisEvaluator(load_dataset(spec, masks=True), most)
    evaluator.add(list(found), list(found.values()))
    metrics = evaluator.evaluate(folder)["bbox"]
    return metrics, json.loads((folder / "lvis_instances_results.json").read_text())


def test_ground_truth_has_ap_100(many: DatasetSpec, tmp_path: Path) -> None:
    metrics, results = evaluate(many, truth(many), tmp_path)
    assert list(metrics) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
    assert list(metrics.values()) == pytest.approx([100.0] * 9)
    annotations = json.loads(Path(many.json_file).read_text())["annotations"]
    assert {row["category_id"] for row in results} == {item["category_id"] for item in annotations}
    classes = json.loads((tmp_path / "lvis_class_ap.json").read_text())
    assert len(classes) == CLASSES
    measured = [value for value in classes.values() if not math.isnan(value)]
    assert len(measured) > 40 and measured == pytest.approx([100.0] * len(measured))


def test_ground_truth_masks_have_ap_100(many: DatasetSpec, tmp_path: Path) -> None:
    """Boxes are wrong, so that object sizes must be those of the masks."""
    pytest.importorskip("faster_coco_eval", reason="computes LVIS's AP with faster-coco-eval")
    evaluator = LvisEvaluator(load_dataset(many, masks=True), 300)
    annotations = json.loads(Path(many.json_file).read_text())["annotations"]
    for image_id, item in truth(many).items():
        outlines = [found["segmentation"] for found in annotations if found["image_id"] == image_id]
        rles = [masks.to_rle(outline, 400, 400, "an object") for outline in outlines]
        shapes = torch.from_numpy(masks.decode(rles, 400, 400))
        evaluator.add([image_id], [Detections(torch.ones_like(item.boxes), item.scores, item.labels, shapes)])
    metrics = evaluator.evaluate(tmp_path)
    assert list(metrics["segm"].values()) == pytest.approx([100.0] * 9)
    assert metrics["bbox"]["AP"] < 1
    assert len(json.loads((tmp_path / "lvis_class_ap_segm.json").read_text())) == CLASSES


@pytest.mark.parametrize(
    ("kind", "is_error"), [("absent", True), ("exhaustive", True), ("not exhaustive", False), ("unknown", False)]
)
def test_false_positives_only_count_if_their_class_is_annotated(
    many: DatasetSpec, tmp_path: Path, kind: str, is_error: bool
) -> None:
    """Adds a detection with a high score at a wrong position."""
    image = json.loads(Path(many.json_file).read_text())["images"][0]
    found = truth(many)
    real = found[image["id"]]
    present = (real.labels.unique() + 1).tolist()
    absent, not_exhaustive = image["neg_category_ids"], image["not_exhaustive_category_ids"]
    measured = {int(label) + 1 for item in found.values() for label in item.labels}
    category = {
        "absent": next(index for index in absent if index in measured),
        "exhaustive": next(index for index in present if index not in not_exhaustive),
        "not exhaustive": not_exhaustive[0],
        "unknown": next(index for index in USED.tolist() if index not in {*present, *absent}),
    }[kind]
    boxes = torch.cat([real.boxes, torch.tensor([[390.0, 390.0, 399.0, 399.0]], dtype=torch.float64)])
    labels = torch.cat([real.labels, torch.tensor([category - 1])])
    found[image["id"]] = Detections(boxes, torch.cat([real.scores, torch.ones(1)]), labels)
    assert (evaluate(many, found, tmp_path)[0]["AP"] < 99.99) == is_error


@pytest.mark.parametrize("most", [300, 25])
def test_metrics_and_results_match_detectron2(
    many: DatasetSpec, tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("detectron2", reason="compares with Detectron2's evaluator")
    pytest.importorskip("lvis", reason="Detectron2's evaluator needs lvis")
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import LVISEvaluator
    from detectron2.structures import Boxes, Instances

    monkeypatch.setattr(np, "float", float, raising=False)  # used by lvis 0.5.3
    MetadataCatalog.get("many_lvis").set(json_file=str(many.json_file))
    evaluator = LVISEvaluator("many_lvis", output_dir=str(tmp_path / "detectron2"), max_dets_per_image=most)
    evaluator.reset()
    found = guesses(many)
    for image_id, item in found.items():
        fields = {"pred_boxes": Boxes(item.boxes), "scores": item.scores, "pred_classes": item.labels}
        evaluator.process([{"image_id": image_id}], [{"instances": Instances((400, 400), **fields)}])
    expected = evaluator.evaluate()["bbox"]
    metrics, results = evaluate(many, found, tmp_path / "project", most)
    assert metrics == pytest.approx(dict(expected), abs=5e-4)
    assert 5 < metrics["AP"] < 95
    written = json.loads((tmp_path / "detectron2/lvis_instances_results.json").read_text())
    assert results[0].keys() == written[0].keys() - {"id", "area", "segmentation"}
    assert [(row["image_id"], row["category_id"]) for row in results] == [
        (row["image_id"], row["category_id"]) for row in written
    ]
    assert [row["bbox"] for row in results] == [pytest.approx(row["bbox"], abs=1e-3) for row in written]


def test_metrics_are_nan_without_detections(many: DatasetSpec, tmp_path: Path) -> None:
    metrics, _ = evaluate(many, {}, tmp_path)
    assert len(metrics) == 9 and all(math.isnan(value) for value in metrics.values())


@pytest.fixture
def many_args(tmp_path: Path) -> Callable[..., Namespace]:
    """Returns training arguments with 1,203 classes, 300 queries and 300 detections, on twelve small images."""
    pytest.importorskip("lightning", reason="the standalone engine needs lightning")
    spec = write_lvis(tmp_path / "data", images=12, side=48, seed=3)
    options: dict[str, Any] = {
        "MODEL.DEVICE": "cpu", "MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.NORM": "GN", "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 32, "MODEL.RESNETS.RES2_OUT_CHANNELS": 32, "MODEL.DETR.HIDDEN_DIM": 32,
        "MODEL.DETR.NHEADS": 4, "MODEL.DETR.ENC_LAYERS": 1, "MODEL.DETR.DEC_LAYERS": 2, "MODEL.WEIGHTS": "''",
        "MODEL.DETR.DIM_FEEDFORWARD": 32, "INPUT.MIN_SIZE_TRAIN": "(48,)", "INPUT.MIN_SIZE_TEST": 48,
        "INPUT.CROP.ENABLED": False, "DATASETS.TRAIN": "('many_small',)", "DATASETS.TEST": "('many_small',)",
        "DATALOADER.NUM_WORKERS": 0, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.MAX_ITER": 2, "SOLVER.STEPS": "()",
        "TEST.DETECTIONS_PER_IMAGE": 300, "OUTPUT_DIR": tmp_path / "output", "SEED": 0,
    }  # fmt: skip

    def make(*more: object) -> Namespace:
        words = ["--register", "many_small", spec.json_file, spec.image_root]
        pairs = [part for pair in options.items() for part in pair]
        return argument_parser().parse_args([str(word) for word in (*words, *pairs, *more)])

    return make


def test_training_and_evaluation_with_1203_classes(
    many_args: Callable[..., Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faster_coco_eval", reason="computes LVIS's AP with faster-coco-eval")
    monkeypatch.setattr("projects_deformable_detr.data.catalog._registered", {})
    best = ("TEST.BEST_CHECKPOINT.ENABLED", True, "TEST.BEST_CHECKPOINT.METRIC", "bbox/APr", "TEST.EVAL_PERIOD", 2)
    sampler = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.3)
    from projects_deformable_detr.standalone import main

    metrics = main(many_args(*best, *sampler))
    assert {"AP", "APr", "APc", "APf"} <= metrics["bbox"].keys()
    output = tmp_path / "output"
    results = json.loads((output / "inference/lvis_instances_results.json").read_text())
    assert len(results) == 12 * 300
    weights = torch.load(output / "model_best.pth", weights_only=True)
    assert len(weights["class_names"]) == CLASSES == len(weights["model"]["detector.decoder.class_heads.0.weight"])
    logged = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert any("bbox/APr" in line for line in logged)


def test_missing_package_is_an_error_before_training(
    many_args: Callable[..., Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projects_deformable_detr.data.catalog._registered", {})
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    from projects_deformable_detr.standalone import main

    with pytest.raises(UserError, match="many_small is in LVIS format.*pip install faster-coco-eval"):
        main(many_args())
