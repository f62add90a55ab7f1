"""Model zoo: configs and models by name."""

import importlib.util

import pytest

from projects_deformable_detr import model_zoo
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.modeling import Detector


def test_names():
    found = model_zoo.names()
    expected = {"deformable_detr_r50_two_stage_50ep", "detr_r50_500ep", "ablations/backbone_dcn", "quickstart"}
    assert expected <= set(found)
    assert not any("Base" in name or "lazy" in name for name in found)
    assert all(model_zoo.config_file(name).is_file() for name in found)


def test_the_schedule_is_optional_in_unique_names():
    short = model_zoo.config_file("deformable_detr_r50_two_stage")
    assert short == model_zoo.config_file("deformable_detr_r50_two_stage_50ep")
    message = "'detr_r50' matches several recipes: choose one of detr_r50_300ep, detr_r50_500ep$"
    with pytest.raises(UserError, match=message):
        model_zoo.config_file("detr_r50")


def test_get_config_file_accepts_names_with_yaml_ending():
    expected = str(model_zoo.config_file("quickstart"))
    assert model_zoo.get_config_file("quickstart.yaml") == model_zoo.get_config_file("quickstart") == expected


def test_an_unknown_name_lists_all_names():
    message = "'yolo' is unknown: choose one of ablations/backbone_dcn, .*, small_r18_scratch"
    with pytest.raises(UserError, match=message):
        model_zoo.get_config("yolo")


def test_config_has_the_values_of_its_file():
    cfg = model_zoo.get_config("deformable_detr_r50_two_stage", engine="standalone")
    assert cfg.MODEL.DETR.TWO_STAGE and cfg.SOLVER.MAX_ITER == 184823


def test_standalone_model_is_a_detector():
    model = model_zoo.get("quickstart", engine="standalone")
    assert type(model) is Detector
    assert model.decoder.class_heads[0].out_features == 6
    assert model_zoo.get("quickstart", num_classes=3, engine="standalone").decoder.class_heads[0].out_features == 3


@pytest.mark.skipif(not importlib.util.find_spec("detectron2"), reason="Detectron2 is not installed")
def test_detectron2_model_is_a_meta_architecture():
    from projects_deformable_detr.detectron2_plugin import DeformableDETR

    model = model_zoo.get("quickstart", num_classes=4)
    assert isinstance(model, DeformableDETR) and model.detector.queries.class_head.out_features == 4


def test_a_lazy_config_without_detectron2_is_rejected(monkeypatch):
    monkeypatch.setattr(model_zoo, "is_installed", lambda _: False)
    with pytest.raises(UserError, match="a LazyConfig requires Detectron2"):
        model_zoo.get_config("quickstart", lazy=True)
