"""Detectron2's keys and defaults in the standalone engine, and keys that it does not support."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projects_deformable_detr import add_deformable_detr_config, get_cfg
from projects_deformable_detr.config import leaves, merge
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.standalone.config import default_cfg


@pytest.fixture
def merged(tmp_path: Path) -> Callable[[str], Any]:
    def merge_text(text: str) -> Any:
        path = tmp_path / "model.yaml"
        path.write_text(text)
        cfg = get_cfg("standalone")
        merge(cfg, str(path), [])
        return cfg

    return merge_text


def test_defaults_are_those_of_detectron2() -> None:
    config = pytest.importorskip("detectron2.config", reason="compares with Detectron2's defaults")
    detectron2_defaults, defaults = dict(leaves(config.get_cfg())), dict(leaves(default_cfg()))
    chosen_by_the_project = {"MODEL.DEVICE", "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME"}
    assert {key for key in defaults if defaults[key] != detectron2_defaults[key]} == chosen_by_the_project


def test_reads_config_dumped_by_detectron2(merged: Callable[[str], Any]) -> None:
    config = pytest.importorskip("detectron2.config", reason="reads a config of Detectron2")
    detectron2_cfg = config.get_cfg()
    add_deformable_detr_config(detectron2_cfg)
    detectron2_cfg.SOLVER.MAX_ITER = 77
    assert merged(detectron2_cfg.dump()).SOLVER.MAX_ITER == 77


def test_dumped_config_is_read_by_detectron2(tmp_path: Path) -> None:
    config = pytest.importorskip("detectron2.config", reason="Detectron2 reads a config of the standalone engine")
    standalone_cfg = get_cfg("standalone")
    standalone_cfg.SOLVER.MAX_ITER = 77
    (tmp_path / "config.yaml").write_text(standalone_cfg.dump())
    detectron2_cfg = config.get_cfg()
    add_deformable_detr_config(detectron2_cfg)
    detectron2_cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert detectron2_cfg.SOLVER.MAX_ITER == 77


def test_base_files_are_merged(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 10, GAMMA: 0.5}")
    (tmp_path / "model.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 20}")
    cfg = get_cfg("standalone")
    cfg.merge_from_file(str(tmp_path / "model.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.GAMMA) == (20, 0.5)


def test_all_unknown_keys_are_named_with_the_nearest_key(merged: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match=r"model\.yaml") as error:
        merged("SOLVER: {MAX_ITERS: 10}\nMODEL: {DETR: {QUERIES: 3}}")
    assert "SOLVER.MAX_ITERS does not exist; did you mean SOLVER.MAX_ITER?" in str(error.value)
    assert "MODEL.DETR.QUERIES does not exist" in str(error.value)


def test_features_of_the_detectron2_engine_are_errors_unless_disabled(merged: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match="TEST.PRECISE_BN.ENABLED True is supported by Detectron2's engine only"):
        merged("TEST: {PRECISE_BN: {ENABLED: true}}")
    assert "PRECISE_BN" not in merged("TEST: {PRECISE_BN: {ENABLED: false, NUM_ITER: 3}}").TEST
    assert merged("MODEL: {RESNETS: {NUM_GROUPS: 1}}")


@pytest.mark.parametrize(
    ("key", "other"), [("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"), ("MODEL.BACKBONE.NAME", "build_resnet_backbone")]
)
def test_names_of_detectron2_registries_are_errors(key: str, other: str) -> None:
    cfg = get_cfg("standalone")
    merge(cfg, "", [key, dict(leaves(cfg))[key]])
    with pytest.raises(UserError, match=f"{key} must be one of .* got '{other}': .* --engine detectron2"):
        merge(cfg, "", [key, other])


def test_sections_of_other_architectures_are_ignored(merged: Callable[[str], Any]) -> None:
    assert "RPN" not in merged("MODEL: {RPN: {IN_FEATURES: [p2]}}").MODEL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.FOO", "1"], "command line: config key SOLVER.FOO does not exist"),
        (["SOLVER", "1"], "SOLVER is a section"),
        (["SOLVER.AMP.ENABLED", "True", "VIS_PERIOD", "5"], "VIS_PERIOD 5 is supported by"),
    ],
)
def test_invalid_options(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        merge(get_cfg("standalone"), "", options)


def test_options_are_decoded_as_in_yaml() -> None:
    cfg = get_cfg("standalone")
    cfg.merge_from_list(["SOLVER.STEPS", "(3, 4)", "SOLVER.BASE_LR", "1e-3", "DATASETS.TRAIN", "('a',)"])
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.BASE_LR, cfg.DATASETS.TRAIN) == ((3, 4), 1e-3, ("a",))


def test_missing_file_and_version(merged: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match="config file nowhere.yaml: cannot read nowhere.yaml: No such file"):
        merge(get_cfg("standalone"), "nowhere.yaml", [])
    with pytest.raises(UserError, match="VERSION must be 2, got 1"):
        merged("VERSION: 1")
