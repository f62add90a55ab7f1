"""Masks in the standalone engine: augmentation, batches, training, evaluation."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the standalone engine needs lightning")

from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.config.data import load, load_instances
from projects_deformable_detr.data import catalog, panoptic
from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.config import DataConfig
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.evaluation import Evaluator
from projects_deformable_detr.evaluation.panoptic import PanopticEvaluator
from projects_deformable_detr.modeling.mask_head import MaskHead
from projects_deformable_detr.shapes import dataset as shapes
from projects_deformable_detr.standalone import main
from projects_deformable_detr.standalone.batch import collate
from projects_deformable_detr.standalone.data import DetectionDataset
from projects_deformable_detr.training import AugmentationPolicy

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CONFIG = Path(__file__).resolve().parents[2] / "configs/quickstart_panoptic.yaml"
TINY = [
    "MODEL.DEVICE", "cpu", "MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.DETR.DIM_FEEDFORWARD", 32, "DATALOADER.NUM_WORKERS", 0,
    "SOLVER.IMS_PER_BATCH", 4, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "SEED", 2,
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    shapes.generate(root / "shapes", num_train=8, num_val=5, size=(64, 80), seed=3)
    return root


@pytest.fixture(autouse=True)
def _datasets(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(made))


def policy(**changes: Any) -> AugmentationPolicy:
    values = {"flip_prob": 0.5, "min_sizes": (48, 72), "max_size": 120, "crop_prob": 1.0, "crop_resize": (60, 80),
              "crop_range": (24, 50)}  # fmt: skip
    return AugmentationPolicy(**{**values, **changes})


@pytest.mark.parametrize("name", ["shapes_train", "shapes_train_panoptic"])
def test_masks_are_transformed_with_their_boxes(name: str) -> None:
    """The box of each mask equals the target's box after flip and crop."""
    records = load_dataset(catalog.get(name), masks=True)
    augmented = DetectionDataset(records, policy(), seed=1, with_masks=True)
    fewer = 0
    for position in range(24):
        index = position % len(records)
        item = augmented[(position, index)]
        whole = len(records.object_labels(crowds=True)[index])
        fewer += len(item.targets) < whole
        height, width = item.pixels.shape[1:]
        assert item.targets.masks is not None and item.targets.masks.shape == (len(item.targets), height, width)
        assert item.targets.masks.dtype == torch.bool and item.targets.masks.flatten(1).any(1).all()
        corners = torch.from_numpy(panoptic.mask_boxes(item.targets.masks.numpy())) / torch.tensor([width, height] * 2)
        center = (corners[:, :2] + corners[:, 2:]) / 2
        torch.testing.assert_close(item.targets.boxes, torch.cat((center, corners[:, 2:] - corners[:, :2]), dim=1))
        if "panoptic" in name:
            assert (item.targets.masks.sum(0) == 1).all()
    assert fewer > 3  # objects outside a crop are removed


@pytest.mark.parametrize("name", ["shapes_train", "shapes_train_panoptic"])
def test_images_without_objects_have_masks_of_the_transformed_size(name: str) -> None:
    """Images have no objects, or crowds only."""
    record = load_dataset(catalog.get(name), masks=True)[0]
    key = "segments_info" if "panoptic" in name else "annotations"
    for items in ([], [{**item, "iscrowd": 1} for item in record[key]]):
        dataset = DetectionDataset([{**record, key: items}, record], policy(), with_masks=True)
        item, other = dataset[(0, 0)], dataset[(1, 1)]
        assert item.targets.masks is not None and item.targets.masks.shape == (0, *item.pixels.shape[1:])
        assert item.targets.masks.dtype == torch.bool and item.targets.boxes.shape == (0, 4)
        batch = collate([item, other])
        assert batch.masks is not None and len(batch.masks) == len(other.targets) > 0
        assert [len(target) for target in batch.targets] == [0, len(other.targets)]


def test_collate_pads_masks() -> None:
    records = load_dataset(catalog.get("shapes_train"), masks=True)
    dataset = DetectionDataset(records, policy(), with_masks=True)
    items = [dataset[(i, i)] for i in range(4)]
    batch = collate(items)
    assert batch.masks is not None and batch.masks.shape[1:] == batch.images.shape[2:]
    for item, target in zip(items, batch.targets, strict=True):
        assert target.masks is not None and torch.equal(target.masks, item.targets.masks)
    assert collate([DetectionDataset(records, policy())[(0, 0)]]).masks is None


def test_image_without_a_result_is_an_error(tmp_path: Path) -> None:
    spec = catalog.get("shapes_val_panoptic")
    with pytest.raises(DatasetError, match="5 images without a panoptic result"):
        PanopticEvaluator(spec, load_dataset(spec).summary.category_ids).evaluate(tmp_path)


def run(output_dir: Path, *options: object, eval_only: bool = False) -> dict[str, Any]:
    flags = ["--eval-only"] * eval_only
    words = [*flags, "--config-file", CONFIG, *TINY, *options, "OUTPUT_DIR", output_dir]
    return main(argument_parser().parse_args([str(word) for word in words]))


def test_panoptic_training_and_evaluation(tmp_path: Path) -> None:
    # Scores of an untrained model are about 0.01.
    options = ("MODEL.DETR.PANOPTIC.SCORE_THRESH", 0.005, "SOLVER.MAX_ITER", 6, "INPUT.CROP.ENABLED", True,
               "INPUT.CROP.SIZE", "[32, 60]", "INPUT.CROP.RESIZE", "[64, 80]")  # fmt: skip
    metrics = run(tmp_path, *options)
    assert set(metrics) == {"bbox", "segm", "panoptic_seg"}
    assert {"PQ", "SQ", "RQ", "PQ_th", "PQ_st", "PQ-smooth", "PQ-ring"} <= metrics["panoptic_seg"].keys()
    assert 0 <= metrics["panoptic_seg"]["PQ"] <= 100
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert all(np.isfinite(line["loss_mask"]) and line["loss_dice"] > 0 for line in lines if "loss_ce" in line)
    assert any("panoptic_seg/PQ" in line for line in lines)
    results = json.loads((tmp_path / "inference/coco_instances_results.json").read_text())
    assert all(item["category_id"] <= 6 and item["segmentation"]["counts"] for item in results)


def test_mask_head_on_a_frozen_detector(tmp_path: Path) -> None:
    boxes = run(tmp_path / "boxes", "MODEL.MASK_ON", False, "MODEL.DETR.PANOPTIC.ENABLED", False, "SOLVER.MAX_ITER", 2)
    assert set(boxes) == {"bbox"}
    weights = tmp_path / "boxes/model_final.pth"
    options = ("SOLVER.MAX_ITER", 2, "MODEL.DETR.MASKS.FREEZE_DETECTOR", True)
    run(tmp_path / "frozen", "MODEL.WEIGHTS", weights, *options)
    before, after = (torch.load(f, weights_only=True)["model"] for f in (weights, tmp_path / "frozen/model_final.pth"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name.split(".")[1] for name in after.keys() - before.keys()} == {"mask_head"}
    with pytest.raises(UserError, match="has no mask head"):
        run(tmp_path / "evaluation", "MODEL.WEIGHTS", weights, eval_only=True)


def test_masks_are_evaluated_in_full_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Postprocessing computes mask logits on demand, which must not happen under autocast."""
    kinds: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    upsample = MaskHead.upsample

    def record_dtype(head: MaskHead, *arguments: Any) -> torch.Tensor:
        logits = upsample(head, *arguments)
        kinds[head.training].add(logits.dtype)
        return logits

    monkeypatch.setattr(MaskHead, "upsample", record_dtype)
    run(tmp_path, "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 1, "MODEL.DETR.PANOPTIC.SCORE_THRESH", 0.005)
    assert kinds == {True: {torch.bfloat16}, False: {torch.float32}}


def test_no_ap_of_things_without_an_instances_file() -> None:
    spec = replace(catalog.get("shapes_val_panoptic"), instances_json=None)
    evaluator = Evaluator(load_dataset(spec), is_panoptic=True)
    assert evaluator.coco is None and evaluator.panoptic is not None


def test_ap_of_panoptic_data_uses_its_images_and_the_rule_for_invalid_boxes(tmp_path: Path) -> None:
    shapes.generate(tmp_path, num_train=0, num_val=3, size=48)
    root = tmp_path / "annotations"
    content = json.loads((root / "instances_val.json").read_text())
    spec = DatasetSpec(
        "shapes", root / "panoptic_val.json", tmp_path / "val", tmp_path / "panoptic_val", root / "instances_val.json"
    )
    (tmp_path / "val" / content["images"][1]["file_name"]).write_bytes(b"")
    config = DataConfig(test=("shapes",), unreadable_images="skip")
    records = load(spec, config)
    evaluator = Evaluator(records, is_panoptic=True, instances=load_instances(records, config))
    assert evaluator.coco is not None
    ids = [content["images"][0]["id"], content["images"][2]["id"]]
    assert [item["id"] for item in evaluator.coco.records.ground_truth()["images"]] == ids
    assert {item["image_id"] for item in evaluator.coco.records.ground_truth()["annotations"]} == set(ids)
    content["annotations"][0]["bbox"][2] = 0
    (root / "instances_val.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="boxes without area"):
        load_instances(records, config)
    assert load_instances(records, replace(config, invalid_boxes="drop_many")) is not None
    del content["images"][0]
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in ids[1:]]
    (root / "instances_val.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"instances_val\.json lacks 1 images of .*panoptic_val\.json"):
        load_instances(records, config)
