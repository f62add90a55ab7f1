"""The number of classes, the project's data sets in Detectron2's catalogs, and the evaluators."""

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, LVISEvaluator, PascalVOCDetectionEvaluator
from detectron2.modeling import build_model

from projects_deformable_detr.detectron2_plugin import Trainer, data
from projects_deformable_detr.detectron2_plugin.evaluation import build_evaluator
from projects_deformable_detr.errors import UserError


def test_the_import_registers_the_shapes_data():
    assert {"shapes_train", "shapes_val"} <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("shapes_val").evaluator_type == "coco"


def test_classes_follow_the_data_set(make_cfg):
    assert data.resolve_num_classes(make_cfg()) == 2
    assert data.resolve_num_classes(make_cfg(MODEL__DETR__NUM_CLASSES=2)) == 2


def test_a_disagreement_names_both_numbers(make_cfg):
    with pytest.raises(UserError, match=r"NUM_CLASSES is 80.*tiny_rectangles has 2"):
        data.resolve_num_classes(make_cfg(MODEL__DETR__NUM_CLASSES=80))


def test_data_sets_that_disagree_are_named(make_cfg):
    cfg = make_cfg()
    cfg.DATASETS.TEST = ("coco_2017_val",)
    with pytest.raises(UserError, match=r"tiny_rectangles has 2 .*coco_2017_val has 80"):
        data.resolve_num_classes(cfg)


def test_the_trainer_itself_checks(make_cfg):
    with pytest.raises(UserError, match=r"NUM_CLASSES is 80.*tiny_rectangles has 2"):
        Trainer(make_cfg(MODEL__DETR__NUM_CLASSES=80))


def test_a_model_is_built_without_its_data_when_the_number_is_set(make_cfg):
    cfg = make_cfg(MODEL__DETR__NUM_CLASSES=4)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("nowhere_to_be_found",)
    assert build_model(cfg).detector.decoder.class_heads[0].out_features == 4
    with pytest.raises(UserError, match="nowhere_to_be_found is not in Detectron2's catalog"):
        data.resolve_num_classes(cfg)


def test_no_data_set_and_no_number_is_an_error(make_cfg):
    cfg = make_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    with pytest.raises(UserError, match="NUM_CLASSES is 0"):
        data.resolve_num_classes(cfg)


def test_register_is_repeatable_and_keeps_its_word(coco_files):
    data.register("registered_by_ours", *coco_files)
    data.register("registered_by_ours", *coco_files)
    assert len(DatasetCatalog.get("registered_by_ours")) == 8
    with pytest.raises(UserError, match="registered_by_ours"):
        data.register("registered_by_ours", coco_files[0], "/elsewhere")


def test_a_plain_list_of_records_is_a_data_set_too(make_cfg, coco_files):
    DatasetCatalog.register("plain_records", lambda: [])
    MetadataCatalog.get("plain_records").thing_classes = ["a", "b", "c"]
    cfg = make_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("plain_records",)
    data.check(cfg, cfg.DATASETS.TRAIN, for_evaluation=False)
    assert data.resolve_num_classes(cfg) == 3


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [("coco_2017_val", COCOEvaluator), ("voc_2007_val", PascalVOCDetectionEvaluator), ("lvis_v1_val", LVISEvaluator)],
)
def test_evaluators_are_found_by_type(make_cfg, dataset, kind, tmp_path, monkeypatch):
    # Evaluators look for their ground truth when they are made, which is not here: the choice is what is tested.
    monkeypatch.setattr(kind, "__init__", lambda self, *args, **kwargs: None)
    assert isinstance(build_evaluator(make_cfg(), dataset), kind)


def test_an_unknown_evaluator_type_lists_the_known(make_cfg):
    MetadataCatalog.get("odd_type").evaluator_type = "sculpture"
    with pytest.raises(UserError, match="odd_type.*sculpture.*coco"):
        build_evaluator(make_cfg(), "odd_type")
