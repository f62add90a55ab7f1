"""Ranges of config keys: rejected values, documentation, and warnings about the recipe."""

import importlib.util
import logging
import re
from pathlib import Path

import pytest

from projects_deformable_detr import build_criterion, build_detector, get_cfg, model_zoo
from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.config import leaves, load_cfg
from projects_deformable_detr.config.keys import SECTIONS_WITHOUT_EFFECT
from projects_deformable_detr.config.run import check_run
from projects_deformable_detr.config.training import log_recipe, training_config
from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.modeling import CriterionConfig, DetectorConfig, HungarianMatcher
from projects_deformable_detr.modeling.losses import FocalClassification
from projects_deformable_detr.training import GradientClip, OptimizerConfig, ScheduleConfig

ENGINES = ["standalone"] + ["detectron2"] * bool(importlib.util.find_spec("detectron2"))
QUICKSTART = str(model_zoo.config_file("quickstart"))
# Keys without effect on these models, and keys that must have Detectron2's defaults.
WITHOUT_RANGE = {
    "VERSION", "GLOBAL.HACK", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN",
    "SOLVER.BIAS_LR_FACTOR", "SOLVER.WEIGHT_DECAY_NORM",
}  # fmt: skip


def check(engine, tmp_path, *options):
    """Checks a command line as train_net.py does before it reads data."""
    options = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), *map(str, options)]
    args = argument_parser().parse_args(["--config-file", QUICKSTART, "--engine", engine, *options])
    check_run(load_cfg(engine, args), args)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("MODEL.DETR.CLASS_WEIGHT", -2.0, "at least 0"),
        ("MODEL.DETR.CLASS_WEIGHT", "1e999", "at least 0, got inf"),
        ("MODEL.DETR.L1_WEIGHT", -1.0, "at least 0"),
        ("MODEL.DETR.GIOU_WEIGHT", -1.0, "at least 0"),
        ("MODEL.DETR.MASKS.MASK_WEIGHT", -1.0, "at least 0"),
        ("MODEL.DETR.MASKS.DICE_WEIGHT", -1.0, "at least 0"),
        ("MODEL.DETR.COST_CLASS", -1.0, "at least 0"),
        ("MODEL.DETR.COST_BBOX", -1.0, "at least 0"),
        ("MODEL.DETR.COST_GIOU", -1.0, "at least 0"),
        ("MODEL.DETR.FOCAL_ALPHA", 1.5, "in [0, 1]"),
        ("MODEL.DETR.FOCAL_GAMMA", -1.0, "at least 0"),
        ("MODEL.DETR.NO_OBJECT_WEIGHT", 0.0, "above 0"),
        ("MODEL.DETR.NUM_CLASSES", -1, "at least 0"),
        ("MODEL.DETR.NUM_OBJECT_QUERIES", 0, "at least 1"),
        ("MODEL.DETR.HIDDEN_DIM", 0, "at least 1"),
        ("MODEL.DETR.NHEADS", 0, "at least 1"),
        ("MODEL.DETR.DIM_FEEDFORWARD", 0, "at least 1"),
        ("MODEL.DETR.DROPOUT", 1.5, "in [0, 1)"),
        ("MODEL.DETR.ENC_LAYERS", -1, "at least 0"),
        ("MODEL.DETR.DEC_LAYERS", -1, "at least 0"),
        ("MODEL.DETR.ENC_N_POINTS", 0, "at least 1"),
        ("MODEL.DETR.NUM_FEATURE_LEVELS", 0, "at least 1"),
        ("MODEL.DETR.SCORE_THRESH_TEST", 50.0, "in [0, 1]"),
        ("MODEL.DETR.PANOPTIC.SCORE_THRESH", 2.0, "in [0, 1]"),
        ("MODEL.DETR.PANOPTIC.MIN_AREA", -1, "at least 0"),
        ("MODEL.DETR.PANOPTIC.NUM_THING_CLASSES", -1, "at least 0"),
        ("MODEL.BACKBONE.FREEZE_AT", 6, "in [0, 5]"),
        ("MODEL.RESNETS.DEPTH", 20, "one of 18, 34, 50, 101"),
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", 0, "at least 1"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", 0, "at least 1"),
        ("MODEL.PIXEL_MEAN", "[120.0]", "three values"),
        ("MODEL.PIXEL_STD", "[58.0, 0.0, 57.0]", "above 0 in each element"),
        ("SOLVER.BASE_LR", 0.0, "above 0"),
        ("SOLVER.BASE_LR", -1e-4, "above 0"),
        ("SOLVER.BACKBONE_MULTIPLIER", -0.1, "at least 0"),
        ("SOLVER.SAMPLING_MULTIPLIER", -0.1, "at least 0"),
        ("SOLVER.WEIGHT_DECAY", -1e-4, "at least 0"),
        ("SOLVER.MOMENTUM", 2.0, "in [0, 1)"),
        ("SOLVER.GAMMA", 0.0, "in (0, 1]"),
        ("SOLVER.STEPS", "(0, 5)", "at least 1 in each element"),
        ("SOLVER.STEPS", "(2.5,)", "an integer in each element"),
        ("SOLVER.WARMUP_FACTOR", 2.0, "in [0, 1]"),
        ("SOLVER.WARMUP_ITERS", -1, "at least 0"),
        ("SOLVER.MAX_ITER", 0, "at least 1"),
        ("SOLVER.IMS_PER_BATCH", 0, "a positive multiple of the 1 processes"),
        ("SOLVER.ACCUMULATION_STEPS", 0, "at least 1"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "at least 1"),
        ("SOLVER.CHECKPOINT_KEEP", -1, "at least 0"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", -1.0, "at least 0"),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 0.0, "in [1, inf]"),
        ("SOLVER.LR_SCHEDULER_NAME", "Linear", "one of 'WarmupMultiStepLR', 'WarmupCosineLR'"),
        ("TEST.DETECTIONS_PER_IMAGE", 0, "at least 1"),
        ("TEST.EVAL_PERIOD", -5, "at least 0"),
        ("DATALOADER.NUM_WORKERS", -1, "at least 0"),
        ("DATALOADER.REPEAT_THRESHOLD", 2.0, "in [0, 1]"),
        ("INPUT.MIN_SIZE_TRAIN", "(-1,)", "at least 0 in each element"),
        ("INPUT.MAX_SIZE_TRAIN", 0, "at least 1"),
        ("INPUT.MIN_SIZE_TEST", -1, "at least 0"),
        ("INPUT.MAX_SIZE_TEST", 0, "at least 1"),
        ("SEED", 10**12, "at most 2147483647"),
        ("FLOAT32_PRECISION", "half", "one of"),
    ],
)
def test_bad_value(engine, key, value, problem, tmp_path):
    with pytest.raises(UserError) as caught:
        check(engine, tmp_path, key, value)
    assert str(caught.value).startswith(f"{key} must ") and problem in str(caught.value)
    assert ", got " in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("section", "key", "value", "problem"),
    [
        ("SOLVER.EMA", "DECAY", 1.0, "in (0, 1)"),
        ("TEST.AUG", "MIN_SIZES", "(0,)", "at least 1 in each element"),
        ("TEST.AUG", "MAX_SIZE", 0, "at least 1"),
        ("INPUT.CROP", "SIZE", "[0, 600]", "at least 1 in each element"),
        ("INPUT.CROP", "RESIZE", "[0]", "at least 1 in each element"),
    ],
)
def test_bad_value_of_a_section(engine, section, key, value, problem, tmp_path):
    check(engine, tmp_path, f"{section}.ENABLED", False, f"{section}.{key}", value)
    with pytest.raises(UserError) as caught:
        check(engine, tmp_path, f"{section}.ENABLED", True, f"{section}.{key}", value)
    assert str(caught.value).startswith(f"{section}.{key} must be {problem}, got")


@pytest.mark.parametrize(("key", "value"), [("SOLVER.REFERENCE_WORLD_SIZE", -1), ("VIS_PERIOD", -1)])
def test_bad_value_of_keys_of_detectron2(key, value, tmp_path):
    pytest.importorskip("detectron2", reason="keys of Detectron2")
    with pytest.raises(UserError, match=f"^{key} must be at least 0, got -1"):
        check("detectron2", tmp_path, key, value)


@pytest.mark.parametrize("engine", ENGINES)
def test_all_weights_zero(engine, tmp_path):
    options = [item for key in ("CLASS", "L1", "GIOU") for item in (f"MODEL.DETR.{key}_WEIGHT", 0.0)]
    check(engine, tmp_path, *options[:4])
    with pytest.raises(UserError, match=r"^MODEL.DETR.CLASS_WEIGHT must not be 0"):
        check(engine, tmp_path, *options)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (CriterionConfig, {"class_weight": -2.0}, "class_weight must be at least 0, got -2.0"),
        (CriterionConfig, {"giou_weight": float("nan")}, "giou_weight must be at least 0, got nan"),
        (FocalClassification, {"alpha": 2}, r"alpha must be in \[0, 1\], got 2"),
        (
            HungarianMatcher,
            {"classification": FocalClassification(), "cost_giou": -1.0},
            "cost_giou must be at least 0",
        ),
        (DetectorConfig, {"num_classes": True}, "num_classes must be an integer, got True"),
        (DetectorConfig, {"num_classes": 3, "d_model": 64.0}, "d_model must be an integer, got 64.0"),
        (OptimizerConfig, {"weight_decay": "0.1"}, "weight_decay must be a number, got '0.1'"),
        (
            ScheduleConfig,
            {"name": "WarmupMultiStepLR", "max_iter": 9, "base_lr": 1.0, "steps": 5},
            "must be a sequence",
        ),
    ],
)
def test_constructors_check_the_same_ranges(build, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        build(**arguments)


def test_unknown_number_of_classes_has_a_remedy():
    cfg = get_cfg("standalone")
    with pytest.raises(UserError, match=r"MODEL\.DETR\.NUM_CLASSES is 0.*set it to the number of classes"):
        build_detector(cfg)
    build_criterion(cfg)


def test_clip_value_0_disables_clipping():
    import torch

    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.full((2,), 100.0)
    assert GradientClip(value=0.0)([parameter]) is None
    assert parameter.grad.tolist() == [100.0, 100.0]


@pytest.fixture(scope="module")
def reference(load_script):
    return load_script("tools/config_reference.py")


def is_numeric(value):
    if isinstance(value, list | tuple):
        return bool(value) and all(map(is_numeric, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("engine", ENGINES)
def test_all_numeric_keys_have_a_range_that_includes_their_default(engine, reference):
    known = reference.ranges()
    defaults = {key: value for key, value in leaves(get_cfg(engine)) if not key.startswith(SECTIONS_WITHOUT_EFFECT)}
    assert {key for key, value in defaults.items() if is_numeric(value)} <= known.keys() | WITHOUT_RANGE
    problems = {key: known[key].problem(value) for key, value in defaults.items() if key in known}
    del problems["INPUT.CROP.SIZE"]  # relative sizes while Detectron2's crop is disabled
    assert set(problems.values()) == {None}


def test_documentation_lists_all_keys(reference):
    document = (Path(__file__).parents[1] / "docs" / "config.md").read_text(encoding="utf-8")
    assert reference.update(document) == (document, set()), "run tools/config_reference.py docs/config.md"


def test_documentation_is_updated(reference, tmp_path, monkeypatch, capsys):
    document = tmp_path / "config.md"
    document.write_text("| `SEED` | `0` | integer | seed |\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["config_reference.py", str(document)])
    reference.main()
    default, values = reference.reference()["SEED"]
    assert document.read_text(encoding="utf-8") == f"| `SEED` | `{default}` | {values} | seed |\n"
    assert "SOLVER.BASE_LR\n" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["config_reference.py"])
    with pytest.raises(SystemExit, match="2"):
        reference.main()
    assert "arguments are required: document" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"WARMUP_ITERS": 2}, None),
        ({"WARMUP_ITERS": 200}, r"WARMUP_ITERS 200 .*MAX_ITER 60: the learning rate is at most 1\.97e-05"),
        ({"WARMUP_ITERS": 10, "STEPS": (5,)}, "STEPS .*begin before the end of SOLVER.WARMUP_ITERS 10"),
        (
            {"WARMUP_ITERS": 2, "STEPS": (30, 90)},
            r"STEPS \(30, 90\) are not all below SOLVER.MAX_ITER 60.* only drops at \[30\]",
        ),
    ],
)
def test_recipe_in_one_line(options, warning, caplog):
    cfg = get_cfg("standalone")
    cfg.SOLVER.update({"MAX_ITER": 60, "STEPS": (40,), **options})
    with caplog.at_level(logging.INFO):
        log_recipe(training_config(cfg), batch_size=4, num_images=80)
    recipe, *warnings = caplog.messages
    for part in ("60 iterations of 4 images = 3 epochs of 80", "ADAMW", "learning rate 0.0002", "weight decay 0.0001"):
        assert part in recipe
    assert len(warnings) == (warning is not None)
    if warning:
        assert caplog.records[1].levelno == logging.WARNING
        assert re.search(warning, warnings[0])


@pytest.mark.parametrize(
    ("key", "value"), [("SOLVER.MAX_ITER", 0), ("TEST.DETECTIONS_PER_IMAGE", 0), ("DATALOADER.NUM_WORKERS", -1)]
)
def test_detectron2_trainer_checks_values_first(key, value):
    engine = pytest.importorskip("detectron2.engine", reason="Detectron2's trainer")
    cfg = model_zoo.get_config("quickstart", engine="detectron2")
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=f"^{key} must be at least .*, got {value}$"):
        engine.DefaultTrainer(cfg)
