"""Detectron2's built-in data sets: classes, training and evaluation on small data in each format."""

import json
import math

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from builtin_datasets import SETS, config_file, full_name, options, perfect

from projects_deformable_detr import get_cfg
from projects_deformable_detr.detectron2_plugin import classes, data, main
from projects_deformable_detr.detectron2_plugin.classes import panoptic_classes
from projects_deformable_detr.detectron2_plugin.evaluation import build_evaluator
from projects_deformable_detr.errors import UserError

pytestmark = pytest.mark.usefixtures("builtin_root")
NEEDS = {
    "lvis_v1": "faster_coco_eval",
    "cityscapes_fine_instance_seg": "cityscapesscripts",
    "cityscapes_fine_panoptic": "cityscapesscripts",
}
METRICS = {
    "coco_2017": {"bbox"},
    "keypoints_coco_2017": {"bbox"},
    "voc_2007": {"bbox"},
    "lvis_v1": {"bbox", "segm"},
    "cityscapes_fine_instance_seg": {"bbox", "segm"},
    "coco_2017_panoptic": {"bbox", "segm", "panoptic_seg"},
    "coco_2017_panoptic_separated": {"bbox", "segm", "panoptic_seg", "sem_seg"},
    "cityscapes_fine_panoptic": {"bbox", "segm", "panoptic_seg"},
}


@pytest.fixture(params=SETS)
def name(request):
    pytest.importorskip(NEEDS.get(request.param, "torch"))
    return request.param


@pytest.fixture
def cfg(name, tmp_path):
    cfg = get_cfg("detectron2")
    cfg.merge_from_file(config_file(name))
    cfg.merge_from_list(options(name, tmp_path))
    return cfg


def test_number_of_classes_and_things(name, cfg):
    number, things, *_ = SETS[name]
    assert data.resolve_num_classes(cfg) == number
    cfg.MODEL.DETR.NUM_CLASSES = number
    found = classes.resolve_thing_classes(cfg)
    assert len(found) == things
    if name == "cityscapes_fine_panoptic":
        assert found == tuple(range(11, 19))
        assert classes.known_class_names(cfg)[11] == "person" and classes.known_class_names(cfg)[0] == "road"
    cfg.MODEL.DETR.NUM_CLASSES = number + 1
    with pytest.raises(UserError, match=f"NUM_CLASSES is {number + 1}, but .* has {number}"):
        data.resolve_num_classes(cfg)


def test_short_training_reports_the_metrics_of_the_format(name, job, tmp_path, coco_files):
    args = job(tmp_path, coco_files)
    args.config_file, args.register = config_file(name), []
    args.opts = options(name, tmp_path / "output")
    metrics = main(args)
    assert set(metrics) == METRICS[name]
    assert all(0 <= metrics[kind]["AP"] <= 100 for kind in {"bbox", "segm"} & set(metrics))
    saved = get_cfg("detectron2")
    saved.merge_from_file(str(tmp_path / "output/config.yaml"))
    assert SETS[name][0] == saved.MODEL.DETR.NUM_CLASSES
    if name == "cityscapes_fine_panoptic":
        assert list(saved.MODEL.DETR.PANOPTIC.THING_CLASSES) == list(range(11, 19))


def test_ground_truth_as_predictions_is_perfect(name, cfg, tmp_path):
    """Predictions are the targets of the mapper, so that its class ids are compared with those of the evaluator."""
    is_panoptic = SETS[name][3]
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "none", False
    dataset = full_name(name, "val")
    cfg.DATASETS.TRAIN = (dataset,)
    metrics = perfect(cfg, dataset, build_evaluator(cfg, dataset), panoptic_classes(dataset, is_panoptic))
    assert set(metrics) == METRICS[name]
    for kind, values in metrics.items():
        for key in {"AP", "AP50", "PQ", "PQ_th", "PQ_st", "mIoU"} & set(values):
            # Detectron2 dilates polygons of Cityscapes by half a pixel.
            if name == "voc_2007":  # two of its twenty classes are in the data
                assert values[key] == pytest.approx(10)
                continue
            least = 99.9 if not name.startswith("cityscapes") or kind == "panoptic_seg" or key == "AP50" else 80
            assert values[key] >= least, (kind, key)
    if name.startswith("cityscapes"):
        assert metrics["segm"]["AP-car"] > 80 and "AP-bus" in metrics["segm"]
    if name == "lvis_v1":
        found = json.loads((tmp_path / "inference/lvis_class_ap_segm.json").read_text())
        assert len(found) == 1203 and found["person"] == pytest.approx(100) and math.isnan(found["zebra"])
    if name == "voc_2007":
        assert metrics["bbox"]["AP-car"] == pytest.approx(100) and "AP-sofa" in metrics["bbox"]
