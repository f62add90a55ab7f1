"""Detectron2's own data sets by their names, each on small data in its format: built, trained on, evaluated."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="the real Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from projects_deformable_detr import get_cfg
from projects_deformable_detr.detectron2_plugin import DetrDatasetMapper, data, inspection, main
from projects_deformable_detr.detectron2_plugin.evaluation import build_evaluator
from projects_deformable_detr.detectron2_plugin.inspection import check
from projects_deformable_detr.detectron2_plugin.meta_arch import _targets
from projects_deformable_detr.detectron2_plugin.panoptic import panoptic_classes
from projects_deformable_detr.detectron2_plugin.voc_evaluation import VOCEvaluator
from projects_deformable_detr.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))
import dataset_formats

NEEDS = {
    "lvis": "lvis",
    "cityscapes_fine_instance_seg": "cityscapesscripts",
    "cityscapes_fine_panoptic": "cityscapesscripts",
}
# Name without the split: number of classes, things among them, whether the model gives masks, and panoptic segments.
SETS = {
    "coco_2017": (80, 0, False, False),
    "voc_2007": (20, 0, False, False),
    "lvis_v1": (1203, 0, True, False),
    "cityscapes_fine_instance_seg": (8, 0, True, False),
    "coco_2017_panoptic": (133, 80, True, True),
    "coco_2017_panoptic_separated": (133, 80, True, True),
    "cityscapes_fine_panoptic": (19, 8, True, True),
}
METRICS = {
    "coco_2017": {"bbox"},
    "voc_2007": {"bbox"},
    "lvis_v1": {"bbox", "segm"},
    "cityscapes_fine_instance_seg": {"bbox", "segm"},
    "coco_2017_panoptic": {"bbox", "segm", "panoptic_seg"},
    "coco_2017_panoptic_separated": {"bbox", "segm", "panoptic_seg", "sem_seg"},
    "cityscapes_fine_panoptic": {"segm", "panoptic_seg"},
}


def full_name(name, split):
    head, marker, tail = name.partition("_panoptic")
    return f"{head}_{split}{marker}{tail}" if name.startswith("coco") else f"{name}_{split}"


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory):
    """The files, and Detectron2's catalogs as they are where DETECTRON2_DATASETS names their folder."""
    folder = tmp_path_factory.mktemp("formats")
    dataset_formats.write_all(folder)
    saved = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    DatasetCatalog.data.clear()
    MetadataCatalog.data.clear()
    for register in (builtin.register_all_coco, builtin.register_all_lvis, builtin.register_all_cityscapes,
                     builtin.register_all_cityscapes_panoptic, builtin.register_all_pascal_voc):  # fmt: skip
        register(str(folder))
    yield folder
    for catalog, entries in zip((DatasetCatalog, MetadataCatalog), saved, strict=True):
        catalog.data.clear()
        catalog.data.update(entries)


@pytest.fixture(params=SETS)
def name(request):
    pytest.importorskip(NEEDS.get(request.param, "torch"))
    return request.param


def options(name, folder):
    _, _, with_masks, is_panoptic = SETS[name]
    train, val = full_name(name, "train"), full_name(name, "val")
    features = ["res2", "res3", "res4", "res5"]
    tiny = {
        "MODEL.DEVICE": "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS": 8, "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
        "MODEL.DETR.DEC_LAYERS": 1, "MODEL.DETR.HIDDEN_DIM": 128 if with_masks else 32,
        "MODEL.DETR.NUM_OBJECT_QUERIES": 300,
        "DATALOADER.NUM_WORKERS": 0, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 2, "SOLVER.STEPS": "()",
        "INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": 64, "SEED": 2, "OUTPUT_DIR": str(folder),
        "DATASETS.TRAIN": f"('{train}',)", "DATASETS.TEST": f"('{val}',)", "MODEL.MASK_ON": with_masks,
        "MODEL.DETR.PANOPTIC.ENABLED": is_panoptic, "MODEL.DETR.PANOPTIC.SCORE_THRESH": 0.001,
        "MODEL.RESNETS.OUT_FEATURES": str(features if with_masks else features[1:]),
        "TEST.DETECTIONS_PER_IMAGE": 300 if name.startswith("lvis") else 20,
    }  # fmt: skip
    return [str(part) for pair in tiny.items() for part in pair]


def config_file(name):
    kind = "_panoptic" if SETS[name][3] else "_instance" if SETS[name][2] else ""
    return str(Path(__file__).resolve().parents[2] / f"configs/quickstart{kind}.yaml")


@pytest.fixture
def cfg(name, tmp_path):
    cfg = get_cfg("detectron2")
    cfg.merge_from_file(config_file(name))
    cfg.merge_from_list(options(name, tmp_path))
    return cfg


def test_classes_and_things_follow_the_catalog(name, cfg):
    classes, things, *_ = SETS[name]
    assert data.resolve_num_classes(cfg) == classes
    cfg.MODEL.DETR.NUM_CLASSES = classes
    found = data.resolve_things(cfg)
    assert len(found) == things
    if name == "cityscapes_fine_panoptic":
        assert found == tuple(range(11, 19))
        assert data.known_class_names(cfg)[11] == "person" and data.known_class_names(cfg)[0] == "road"
    cfg.MODEL.DETR.NUM_CLASSES = classes + 1
    with pytest.raises(UserError, match=f"NUM_CLASSES is {classes + 1}, but .* has {classes}"):
        data.resolve_num_classes(cfg)


def test_a_short_training_is_evaluated_in_the_formats_own_way(name, job, tmp_path, coco_files):
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


def truth_of(record, targets, classes, things):
    """What a model would give that finds exactly the truth."""
    size = dataset_formats.SIZE
    kept = torch.tensor([not things or int(label) in things for label in targets.labels], dtype=torch.bool)
    centre, extent = (targets.boxes[kept] * torch.tensor([size[1], size[0]] * 2)).split(2, dim=1)
    found = Instances(size, pred_boxes=Boxes(torch.cat((centre - extent / 2, centre + extent / 2), dim=1)))
    found.scores, found.pred_classes = torch.full((int(kept.sum()),), 0.9), targets.labels[kept]
    output = {"instances": found}
    if targets.masks is not None:
        found.pred_masks = targets.masks[kept]
    if classes is not None:
        ids = torch.zeros(size, dtype=torch.int32)
        segments = []
        for number, (mask, label) in enumerate(zip(targets.masks, targets.labels.tolist(), strict=True), start=1):
            ids[mask] = number
            is_thing = label in classes.things
            segments.append({"id": number, "category_id": classes.segment_ids[label], "isthing": is_thing})
        output["panoptic_seg"] = ids, segments
        if classes.is_separated:
            labels = torch.zeros(size, dtype=torch.int64)
            for item in segments:
                labels[ids == item["id"]] = 0 if item["isthing"] else item["category_id"]
            output["sem_seg"] = torch.nn.functional.one_hot(labels, 54).permute(2, 0, 1)
    return output


def test_the_truth_as_predictions_is_perfect(name, cfg, tmp_path):
    """Targets come from the mapper, so that its class ids and the evaluator's are held against each other."""
    _, _, with_masks, is_panoptic = SETS[name]
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "none", False
    dataset = full_name(name, "val")
    cfg.DATASETS.TRAIN = (dataset,)
    classes = panoptic_classes(dataset, is_panoptic)
    evaluator = build_evaluator(cfg, dataset)
    evaluator.reset()
    mapper = DetrDatasetMapper(cfg, True)
    for record in DatasetCatalog.get(dataset):
        targets = _targets(mapper(record)["instances"])
        evaluator.process([record], [truth_of(record, targets, classes, classes.things if classes else ())])
    metrics = evaluator.evaluate()
    assert set(metrics) == METRICS[name]
    for kind, values in metrics.items():
        for key in {"AP", "AP50", "PQ", "PQ_th", "PQ_st", "mIoU"} & set(values):
            # Polygons of Cityscapes are half a pixel fatter: Detectron2 says why.
            if name == "voc_2007":  # only two of whose twenty classes are there
                assert values[key] == pytest.approx(10)
                continue
            least = 99.9 if not name.startswith("cityscapes") or kind == "panoptic_seg" or key == "AP50" else 80
            assert values[key] >= least, (kind, key)
    if name.startswith("cityscapes"):
        assert metrics["segm"]["AP-car"] > 80 and "AP-bus" in metrics["segm"]
    if name == "lvis_v1":
        classes = json.loads((tmp_path / "inference/lvis_class_ap_segm.json").read_text())
        assert len(classes) == 1203 and classes["person"] == pytest.approx(100) and math.isnan(classes["zebra"])
    if name == "voc_2007":
        assert metrics["bbox"]["AP-car"] == pytest.approx(100) and "AP-sofa" in metrics["bbox"]


def random_instances(seed, classes=20, count=30):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 40
    found = Instances(dataset_formats.SIZE, scores=torch.rand(count, generator=generator))
    found.pred_boxes = Boxes(torch.cat((corners, corners + 10 + torch.rand(count, 2, generator=generator) * 14), dim=1))
    found.pred_classes = torch.randint(0, classes, (count,), generator=generator)
    return found


def test_vocs_metrics_are_detectron2s(root):
    """A class by itself, and all together, on predictions that are half right."""
    ours, theirs = VOCEvaluator("voc_2007_val"), PascalVOCDetectionEvaluator("voc_2007_val")
    for evaluator in (ours, theirs):
        evaluator.reset()
    car, person = (MetadataCatalog.get("voc_2007_val").thing_classes.index(name) for name in ("car", "person"))
    for index, record in enumerate(DatasetCatalog.get("voc_2007_val")):
        found = random_instances(index)
        truth = record["annotations"][index % 2]
        found.pred_boxes.tensor[0] = torch.tensor(truth["bbox"]) + index
        found.pred_classes[0] = truth["category_id"]
        for evaluator in (ours, theirs):
            evaluator.process([record], [{"instances": found}])
    found, expected = ours.evaluate()["bbox"], theirs.evaluate()["bbox"]
    assert {key: found[key] for key in expected} == pytest.approx(expected) and expected["AP"] > 0.5
    assert np.mean([found["AP-car"], found["AP-person"]]) == pytest.approx(10 * expected["AP"])
    assert {car, person} == {6, 14} and sum(key.startswith("AP-") for key in found) == 20


def test_a_panoptic_model_of_the_separated_format_numbers_stuff_as_it_does(tmp_path):
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


def test_stuff_of_the_separated_format_is_trained_on_by_panoptic_models_only(tmp_path):
    name = "coco_2017_train_panoptic_separated"
    record = DatasetCatalog.get(name)[0]
    cfg = get_cfg("detectron2")
    cfg.merge_from_file(config_file("coco_2017_panoptic_separated"))
    cfg.merge_from_list(options("coco_2017_panoptic_separated", tmp_path))
    labels = _targets(DetrDatasetMapper(cfg, True)(record)["instances"]).labels.tolist()
    names = data.known_class_names(cfg)
    assert sorted(names[label] for label in labels) == ["car", "person", "road", "sky"]
    cfg.MODEL.DETR.PANOPTIC.ENABLED = False
    assert data.resolve_num_classes(cfg) == 80
    labels = _targets(DetrDatasetMapper(cfg, True)(record)["instances"]).labels.tolist()
    assert sorted(names[label] for label in labels) == ["car", "person"]


def test_a_registered_file_of_lvis_is_lvis(root, job, tmp_path, coco_files):
    """With categories of its own, ids with gaps, and images that only ``coco_url`` tells."""
    pytest.importorskip("lvis")
    content = json.loads((root / "lvis/lvis_v1_val.json").read_text())
    used = {item["category_id"] for item in content["annotations"]}
    content["categories"] = [item for item in content["categories"] if item["id"] in used]
    (tmp_path / "own.json").write_text(json.dumps(content))
    args = job(tmp_path, coco_files)
    args.config_file, args.register = config_file("coco_2017"), [("own", tmp_path / "own.json", root / "coco")]
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
    ("name", "options", "named"),
    [
        ("cityscapes_fine_sem_seg_train", [], "labels of pixels.*cityscapes_fine_instance_seg_train"),
        ("coco_2017_train_panoptic_stuffonly", [], "labels of pixels.*coco_2017_train_panoptic"),
        ("voc_2007_train", ["MODEL.MASK_ON", True], "MASK_ON is True, but data set voc_2007_train has boxes only"),
        ("voc_2012_train", [], "voc_2012_train is not where .* no dirname .*VOC2012.*DETECTRON2_DATASETS"),
        ("lvis_v1_test_dev", [], "lvis_v1_test_dev is not where .* no json_file .*test_dev.json"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(name, options, named):
    if name.startswith("lvis"):
        pytest.importorskip("lvis")
    cfg = get_cfg("detectron2")
    cfg.merge_from_list(options)
    with pytest.raises(UserError, match=f"(?s){named}"):
        check(cfg, [name], for_evaluation=False)


@pytest.mark.parametrize(
    ("name", "package"),
    [("lvis_v1_val", "--no-deps lvis"), ("cityscapes_fine_instance_seg_val", "cityscapesscripts shapely")],
)
def test_a_missing_package_is_named_before_training(monkeypatch, name, package):
    monkeypatch.setattr(inspection, "is_installed", lambda package: False)
    with pytest.raises(UserError, match=f"{name} needs .*pip install {package}"):
        check(get_cfg("detectron2"), [name], for_evaluation=False)


def test_metadata_that_breaks_its_format_is_named():
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
