"""Evaluators and checks for Detectron2's built-in data sets; panoptic data sets in both formats."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

import dataset_formats
from builtin_datasets import config_file, options, perfect
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from projects_deformable_detr import get_cfg
from projects_deformable_detr.config.data import data_config
from projects_deformable_detr.detectron2_plugin import DetrDatasetMapper, data, main
from projects_deformable_detr.detectron2_plugin.class_ap import VOCEvaluator
from projects_deformable_detr.detectron2_plugin.classes import (
    known_class_names,
    panoptic_classes,
    resolve_thing_classes,
)
from projects_deformable_detr.detectron2_plugin.evaluation import build_evaluator
from projects_deformable_detr.detectron2_plugin.meta_arch import to_targets
from projects_deformable_detr.errors import UserError

pytestmark = pytest.mark.usefixtures("builtin_root")


def random_instances(seed, classes=20, count=30):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 40
    found = Instances(dataset_formats.SIZE, scores=torch.rand(count, generator=generator))
    found.pred_boxes = Boxes(torch.cat((corners, corners + 10 + torch.rand(count, 2, generator=generator) * 14), dim=1))
    found.pred_classes = torch.randint(0, classes, (count,), generator=generator)
    return found


def test_voc_metrics_match_detectron2(builtin_root):
    """Compares the means over classes on predictions that are half correct."""
    evaluators = VOCEvaluator("voc_2007_val"), PascalVOCDetectionEvaluator("voc_2007_val")
    for evaluator in evaluators:
        evaluator.reset()
    car, person = (MetadataCatalog.get("voc_2007_val").thing_classes.index(name) for name in ("car", "person"))
    for index, record in enumerate(DatasetCatalog.get("voc_2007_val")):
        found = random_instances(index)
        truth = record["annotations"][index % 2]
        found.pred_boxes.tensor[0] = torch.tensor(truth["bbox"]) + index
        found.pred_classes[0] = truth["category_id"]
        for evaluator in evaluators:
            evaluator.process([record], [{"instances": found}])
    found, expected = (evaluator.evaluate()["bbox"] for evaluator in evaluators)
    assert {key: found[key] for key in expected} == pytest.approx(expected) and expected["AP"] > 0.5
    assert np.mean([found["AP-car"], found["AP-person"]]) == pytest.approx(10 * expected["AP"])
    assert {car, person} == {6, 14} and sum(key.startswith("AP-") for key in found) == 20


def test_panoptic_model_outputs_category_ids_of_the_separated_format(tmp_path):
    name = "coco_2017_panoptic_separated"
    cfg = get_cfg("detectron2")
    cfg.merge_from_file(config_file(name))
    cfg.merge_from_list([*options(name, tmp_path), "MODEL.DETR.PANOPTIC.SCORE_THRESH", "0.0"])
    model = build_model(cfg).eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.randint(0, 256, (3, 64, 96))}])
    ids, segments = output["panoptic_seg"]
    stuff = [item for item in segments if not item["isthing"]]
    assert stuff and all(1 <= item["category_id"] <= 53 for item in stuff)
    assert all(item["category_id"] < 80 for item in segments if item["isthing"])
    labels = output["sem_seg"].argmax(0)
    assert output["sem_seg"].shape == (54, 64, 96) and output["sem_seg"].sum(0).eq(1).all()
    for item in segments:
        assert labels[ids == item["id"]].eq(0 if item["isthing"] else item["category_id"]).all()


def test_only_panoptic_models_train_on_stuff_of_the_separated_format(tmp_path):
    name = "coco_2017_train_panoptic_separated"
    record = DatasetCatalog.get(name)[0]
    cfg = get_cfg("detectron2")
    cfg.merge_from_file(config_file("coco_2017_panoptic_separated"))
    cfg.merge_from_list(options("coco_2017_panoptic_separated", tmp_path))
    labels = to_targets(DetrDatasetMapper(cfg, True)(record)["instances"]).labels.tolist()
    names = known_class_names(cfg)
    assert sorted(names[label] for label in labels) == ["car", "person", "road", "sky"]
    cfg.MODEL.DETR.PANOPTIC.ENABLED = False
    assert data.resolve_num_classes(cfg) == 80
    labels = to_targets(DetrDatasetMapper(cfg, True)(record)["instances"]).labels.tolist()
    assert sorted(names[label] for label in labels) == ["car", "person"]


def test_registered_lvis_file_is_trained_and_evaluated_as_lvis(builtin_root, job, tmp_path, coco_files):
    """The file has a subset of the categories, ids with gaps, and images that are located by ``coco_url`` only."""
    pytest.importorskip("faster_coco_eval")
    content = json.loads((builtin_root / "lvis/lvis_v1_val.json").read_text())
    used = {item["category_id"] for item in content["annotations"]}
    content["categories"] = [item for item in content["categories"] if item["id"] in used]
    (tmp_path / "own.json").write_text(json.dumps(content))
    args = job(tmp_path, coco_files)
    args.config_file, args.register = config_file("coco_2017"), [("own", tmp_path / "own.json", builtin_root / "coco")]
    args.opts = [*options("coco_2017", tmp_path / "output"), "DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "('own',)"]
    metrics = main(args)
    assert {"AP", "APr", "APf"} <= set(metrics["bbox"])
    assert MetadataCatalog.get("own").thing_classes == ["car_(automobile)", "person"]
    results = json.loads((tmp_path / "output/inference/lvis_instances_results.json").read_text())
    assert {item["category_id"] for item in results} <= used
    cfg = get_cfg("detectron2")
    cfg.merge_from_file(str(tmp_path / "output/config.yaml"))
    assert cfg.MODEL.DETR.NUM_CLASSES == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cityscapes_fine_sem_seg_train", [], "labels of pixels.*cityscapes_fine_instance_seg_train"),
        ("coco_2017_train_panoptic_stuffonly", [], "labels of pixels.*coco_2017_train_panoptic"),
        ("voc_2007_train", ["MODEL.MASK_ON", True], "MASK_ON is True, but data set voc_2007_train has boxes only"),
        ("voc_2012_train", [], "voc_2012_train is not where .* no dirname .*VOC2012.*DETECTRON2_DATASETS"),
        ("lvis_v1_test_dev", [], "lvis_v1_test_dev is not where .* no json_file .*test_dev.json"),
    ],
)
def test_unsuitable_data_sets_are_rejected(name, options, message):
    if name.startswith("lvis"):
        pytest.importorskip("faster_coco_eval")
    cfg = get_cfg("detectron2")
    cfg.merge_from_list(options)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    with pytest.raises(UserError, match=f"(?s){message}"):
        data.check(data_config(cfg))


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("lvis_v1_val", "faster-coco-eval"),
        ("cityscapes_fine_instance_seg_val", "cityscapesscripts shapely"),
        ("cityscapes_fine_panoptic_val", "cityscapesscripts"),
    ],
)
def test_missing_packages_are_reported_before_training(monkeypatch, name, package):
    monkeypatch.setattr(data, "is_installed", lambda package: False)
    cfg = get_cfg("detectron2")
    cfg.DATASETS.TEST = (name,)
    with pytest.raises(UserError, match=f"{name} requires .*pip install {package}"):
        data.check(data_config(cfg))


def test_box_ap_on_panoptic_data_without_masks(tmp_path):
    pytest.importorskip("cityscapesscripts")
    dataset = "cityscapes_fine_panoptic_val"
    cfg = get_cfg("detectron2")
    cfg.merge_from_file(config_file("coco_2017"))
    cfg.merge_from_list([*options("coco_2017", tmp_path), "DATASETS.TRAIN", f"('{dataset}',)"])
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "none", False
    metrics = perfect(cfg, dataset, build_evaluator(cfg, dataset), panoptic_classes(dataset, True))
    assert set(metrics) == {"bbox"} and metrics["bbox"]["AP"] == pytest.approx(100)
    assert metrics["bbox"]["AP-car"] == pytest.approx(100) and "AP-road" not in metrics["bbox"]


def test_ap_of_things_whose_ids_follow_those_of_stuff(builtin_root, tmp_path):
    """COCO's panoptic files with four classes, stuff first."""
    names = ["sky", "road", "car", "person"]
    metadata = {"thing_classes": names, "stuff_classes": names,
                "thing_dataset_id_to_contiguous_id": {3: 2, 1: 3},
                "stuff_dataset_id_to_contiguous_id": {187: 0, 149: 1}}  # fmt: skip
    content = json.loads((builtin_root / "coco/annotations/instances_val2017.json").read_text())
    content["categories"] = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    files = [
        builtin_root / "coco" / path for path in ("val2017", "panoptic_val2017", "annotations/panoptic_val2017.json")
    ]
    register_coco_panoptic("stuff_first", metadata, *map(str, [*files, tmp_path / "instances.json"]))
    cfg = get_cfg("detectron2")
    cfg.merge_from_file(config_file("coco_2017_panoptic"))
    cfg.merge_from_list([*options("coco_2017", tmp_path), "MODEL.MASK_ON", "True", "MODEL.DETR.NUM_CLASSES", "4"])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("stuff_first",)
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "none", False
    assert data.resolve_num_classes(cfg) == 4 and resolve_thing_classes(cfg) == (2, 3)
    classes = panoptic_classes("stuff_first", True)
    metrics = perfect(cfg, "stuff_first", build_evaluator(cfg, "stuff_first"), classes)
    assert metrics["bbox"]["AP-car"] == metrics["segm"]["AP-person"] == pytest.approx(100)
    metrics = perfect(cfg, "stuff_first", build_evaluator(cfg, "stuff_first"), classes, things=[names.index("car")])
    assert (metrics["bbox"]["AP-car"], metrics["bbox"]["AP-person"]) == (pytest.approx(100), 0)


def test_ground_truth_of_records_without_a_file(tmp_path):
    """Category ids that are not in the order of the classes; images are those of the function."""
    cfg = get_cfg("detectron2")
    cfg.merge_from_file(config_file("coco_2017"))
    cfg.merge_from_list([*options("coco_2017", tmp_path), "DATASETS.TRAIN", "('two_images',)"])
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "none", False
    voc = MetadataCatalog.get("voc_2007_val").thing_classes
    DatasetCatalog.register("two_images", lambda: DatasetCatalog.get("voc_2007_val")[:2])
    ids = {20 - index: index for index in range(20)}
    MetadataCatalog.get("two_images").set(thing_classes=voc, thing_dataset_id_to_contiguous_id=ids)
    metrics = perfect(cfg, "two_images", build_evaluator(cfg, "two_images"))["bbox"]
    assert metrics["AP"] == metrics["AP-car"] == pytest.approx(100)
    results = json.loads((tmp_path / "inference/coco_instances_results.json").read_text())
    assert {item["category_id"] for item in results} == {20 - voc.index(name) for name in ("car", "person")}


def test_inconsistent_panoptic_metadata():
    metadata = MetadataCatalog.get("odd_panoptic")
    DatasetCatalog.register("odd_panoptic", list)
    metadata.set(evaluator_type="coco_panoptic_seg", thing_classes=["a", "b"], stuff_classes=["a", "b"],
                 thing_dataset_id_to_contiguous_id={4: 0}, stuff_dataset_id_to_contiguous_id={5: 0})  # fmt: skip
    with pytest.raises(UserError, match=r"odd_panoptic has 2 thing_classes .* ids \[0, 0\]"):
        panoptic_classes("odd_panoptic", True)
    metadata.set(sem_seg_root="somewhere")
    with pytest.raises(UserError, match=r"odd_panoptic has 2 thing_classes and 1 stuff_classes"):
        panoptic_classes("odd_panoptic", True)
    assert panoptic_classes("odd_panoptic", False) is None
