"""Data sets in Detectron2's catalogs: registration, classes, records and evaluators."""

import json
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model

from projects_deformable_detr.config.data import data_config
from projects_deformable_detr.detectron2_plugin import Trainer, data
from projects_deformable_detr.detectron2_plugin.evaluation import build_evaluator
from projects_deformable_detr.errors import UserError


def test_import_registers_the_shapes_data():
    assert {"shapes_train", "shapes_val"} <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("shapes_val").evaluator_type == "coco"


def test_number_of_classes(make_cfg):
    assert data.resolve_num_classes(make_cfg()) == 2
    assert data.resolve_num_classes(make_cfg(MODEL__DETR__NUM_CLASSES=2)) == 2
    for function in (data.resolve_num_classes, Trainer, DefaultTrainer):
        with pytest.raises(UserError, match=r"NUM_CLASSES is 80.*tiny_rectangles has 2"):
            function(make_cfg(MODEL__DETR__NUM_CLASSES=80))
    cfg = make_cfg()
    cfg.DATASETS.TEST = ("coco_2017_val",)
    with pytest.raises(UserError, match=r"tiny_rectangles has 2 .*coco_2017_val has 80"):
        data.resolve_num_classes(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    with pytest.raises(UserError, match="NUM_CLASSES is 0"):
        data.resolve_num_classes(cfg)


def test_model_is_built_without_its_data_if_the_number_of_classes_is_set(make_cfg):
    cfg = make_cfg(MODEL__DETR__NUM_CLASSES=4)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("nowhere_to_be_found",)
    assert build_model(cfg).detector.decoder.class_heads[0].out_features == 4
    with pytest.raises(UserError, match="nowhere_to_be_found is not in Detectron2's catalog"):
        data.resolve_num_classes(cfg)
    assert data.resolve_num_classes(cfg, allow_uncatalogued=True) == 4  # for a DefaultTrainer with its own loader


def test_register_is_idempotent(coco_files):
    data.register("registered_by_ours", *coco_files)
    data.register("registered_by_ours", *coco_files)
    assert len(DatasetCatalog.get("registered_by_ours")) == 8
    with pytest.raises(UserError, match="registered_by_ours"):
        data.register("registered_by_ours", coco_files[0], "/elsewhere")


def test_register_rejects_names_that_detectron2_uses_for_other_files(tiny_name, coco_files):
    data.register(tiny_name, *coco_files)
    with pytest.raises(UserError) as caught:
        data.register("coco_2017_val_100", *coco_files)
    for path in ("instances_val2017_100.json", "coco/val2017", *coco_files):
        assert path in str(caught.value)
    DatasetCatalog.register("a_function", lambda: [])
    with pytest.raises(UserError, match="a_function.*json_file None"):
        data.register("a_function", *coco_files)


def test_json_file_without_image_folder_is_not_checked(make_cfg, coco_files):
    DatasetCatalog.register("own_paths", lambda: [])
    MetadataCatalog.get("own_paths").set(json_file=coco_files[0], evaluator_type="coco")
    cfg = make_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("own_paths",)
    data.check(data_config(cfg))


def test_data_set_registered_as_a_list_of_records(make_cfg, coco_files):
    DatasetCatalog.register("plain_records", lambda: [])
    MetadataCatalog.get("plain_records").thing_classes = ["a", "b", "c"]
    cfg = make_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("plain_records",)
    data.check(data_config(cfg))
    assert data.resolve_num_classes(cfg) == 3


def test_registered_files_are_read_by_the_project(make_cfg, coco_files):
    data.register("registered_file", *coco_files)
    cfg = make_cfg(DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler", DATALOADER__REPEAT_THRESHOLD=1.0)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("registered_file",)
    found, records = data.training_data(data_config(cfg), cfg.SEED), get_detection_dataset_dicts("registered_file")
    assert list(found["dataset"]) == records
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 1.0)
    expected = RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    assert list(islice(iter(found["sampler"]), 50)) == list(islice(iter(expected), 50))
    assert [record["image_id"] for record in data.test_data("registered_file", data_config(cfg))] == list(range(1, 9))
    # A function may return a part of the file only.
    DatasetCatalog.register("part_of_a_file", lambda: records[:3])
    MetadataCatalog.get("part_of_a_file").set(json_file=coco_files[0], image_root=coco_files[1], evaluator_type="coco")
    cfg.DATASETS.TRAIN = ("part_of_a_file",)
    assert (
        data.training_data(data_config(cfg), cfg.SEED) == {}
        and data.test_data("part_of_a_file", data_config(cfg)) is None
    )


def test_root_category_is_dropped(make_cfg, coco_files, tmp_path):
    content = json.loads(Path(coco_files[0]).read_text())
    for category in content["categories"]:
        category["supercategory"] = "shapes"
    content["categories"].append({"id": 0, "name": "shapes", "supercategory": "none"})
    (tmp_path / "rooted.json").write_text(json.dumps(content))
    data.register("rooted", str(tmp_path / "rooted.json"), coco_files[1])
    cfg = make_cfg(DATASETS__DROP_ROOT_CATEGORY=True)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("rooted",)
    assert data.resolve_num_classes(cfg) == 2
    records = data.training_data(data_config(cfg), cfg.SEED)["dataset"].datasets[0]
    assert records.summary.class_names == ("red", "blue")
    truth = build_evaluator(cfg, "rooted").evaluator.ground_truth
    assert truth.getCatIds() == [3, 7] and len(truth.getAnnIds()) == len(content["annotations"])


def test_unknown_evaluator_type(make_cfg):
    MetadataCatalog.get("odd_type").evaluator_type = "sculpture"
    with pytest.raises(UserError, match="odd_type.*sculpture.*coco"):
        build_evaluator(make_cfg(), "odd_type")


def test_maximum_number_of_detections(make_cfg, tiny_name):
    found = build_evaluator(make_cfg(TEST__DETECTIONS_PER_IMAGE=7), tiny_name)
    assert found.evaluator.max_detections == 7


def test_results_of_several_test_sets_have_separate_folders(make_cfg, tiny_name, tmp_path):
    cfg = make_cfg(OUTPUT_DIR=tmp_path)
    assert build_evaluator(cfg, tiny_name).output_dir == (tmp_path / "inference")
    cfg.DATASETS.TEST = (tiny_name, "another")
    assert build_evaluator(cfg, tiny_name).output_dir == (tmp_path / "inference" / tiny_name)
