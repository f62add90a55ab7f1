"""Configs by name, from a checkout and from an installed package."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from projects_deformable_detr import model_zoo
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.modeling import Detector

ROOT = Path(__file__).resolve().parents[1]
try:
    _SETUPTOOLS = int(importlib.metadata.version("setuptools").partition(".")[0])
except importlib.metadata.PackageNotFoundError:
    _SETUPTOOLS = 0


def test_names_are_those_of_all_configs():
    found = model_zoo.names()
    assert {"deformable_detr_r50_two_stage_50ep", "detr_r50_500ep", "ablations/backbone_dcn", "quickstart"} <= set(
        found
    )
    assert not any("Base" in name or "lazy" in name for name in found)
    assert all(model_zoo.config_file(name).is_file() for name in found)


def test_the_schedule_may_be_left_out_where_it_is_clear():
    short = model_zoo.config_file("deformable_detr_r50_two_stage")
    assert short == model_zoo.config_file("deformable_detr_r50_two_stage_50ep")
    with pytest.raises(
        UserError, match="'detr_r50' matches several recipes: choose one of detr_r50_300ep, detr_r50_500ep$"
    ):
        model_zoo.config_file("detr_r50")


def test_a_script_that_asks_detectron2s_model_zoo_may_ask_this_one():
    expected = str(model_zoo.config_file("quickstart"))
    assert model_zoo.get_config_file("quickstart.yaml") == model_zoo.get_config_file("quickstart") == expected


def test_an_unknown_name_lists_those_that_are_known():
    with pytest.raises(
        UserError, match="'yolo' is not known: choose one of ablations/backbone_dcn, .*, small_r18_scratch"
    ):
        model_zoo.get_config("yolo")


def test_a_config_is_its_file():
    cfg = model_zoo.get_config("deformable_detr_r50_two_stage", engine="standalone")
    assert cfg.MODEL.DETR.TWO_STAGE and cfg.SOLVER.MAX_ITER == 184823


def test_a_model_without_any_engine():
    model = model_zoo.get("quickstart", engine="standalone")
    assert type(model) is Detector
    assert model.decoder.class_heads[0].out_features == 6
    assert model_zoo.get("quickstart", num_classes=3, engine="standalone").decoder.class_heads[0].out_features == 3


@pytest.mark.skipif(not importlib.util.find_spec("detectron2"), reason="Detectron2 is not installed")
def test_a_model_with_detectron2_is_its_meta_architecture():
    from projects_deformable_detr.detectron2_plugin import DeformableDETR

    model = model_zoo.get("quickstart", num_classes=4)
    assert isinstance(model, DeformableDETR) and model.detector.queries.class_head.out_features == 4
    lazy = model_zoo.get_config("quickstart", lazy=True)
    assert lazy.train.max_iter == model_zoo.get_config("quickstart").SOLVER.MAX_ITER


def test_a_lazy_config_without_detectron2_is_refused(monkeypatch):
    monkeypatch.setattr(model_zoo, "is_installed", lambda _: False)
    with pytest.raises(UserError, match="a LazyConfig requires Detectron2"):
        model_zoo.get_config("quickstart", lazy=True)


@pytest.mark.skipif(_SETUPTOOLS < 77, reason="pyproject.toml asks for setuptools >= 77")
def test_an_installed_package_carries_its_configs(tmp_path):
    """What setup.py packages, the compiled operator apart."""
    (tmp_path / "info").mkdir()
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path / "info")]
    command += ["build_py", "--build-lib", str(tmp_path / "lib")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    archive = tmp_path / "lib/projects_deformable_detr/configs"
    packaged = {path.relative_to(archive).as_posix() for path in archive.rglob("*") if path.is_file()}
    wanted = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    wanted |= {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs/lazy").rglob("*.py")}
    assert packaged == wanted
