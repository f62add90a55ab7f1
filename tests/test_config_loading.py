"""Config files and options, device selection and checks of the command line, in both engines."""

import os

import pytest
import torch

from projects_deformable_detr import get_cfg
from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.config import load_cfg, merge
from projects_deformable_detr.config.loading import choose_device
from projects_deformable_detr.config.training import log_start
from projects_deformable_detr.engine import is_installed
from projects_deformable_detr.errors import UserError

needs_detectron2 = pytest.mark.skipif(not is_installed("detectron2"), reason="detectron2 is not installed")
engines = pytest.mark.parametrize("engine", ["standalone", pytest.param("detectron2", marks=needs_detectron2)])


def load(engine, *words):
    return load_cfg(engine, argument_parser().parse_args([str(word) for word in words]))


@engines
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.DETR.NHEAD", 4], r"command line: .*MODEL\.DETR\.NHEAD.*; did you mean MODEL.DETR.NHEADS\?"),
        (["SOLVER.EMA.DECAY", 1], "command line: .*write the number with a decimal point, such as 2.0"),
        (["SOLVER.GAMMA", "x"], r"command line: SOLVER.GAMMA must be of type float, like 0.1, got x \(str\)"),
        (["MODEL", 5], r"command line: MODEL is a section, not a key: name the key within it$"),
        (["SOLVER.GAMMA"], "command line: 'SOLVER.GAMMA' has no value"),
        (["SOLVER.GAMMA", 1.0, "--resume"], "command line: --resume must come before"),
    ],
)
def test_invalid_options(engine, options, message):
    with pytest.raises(UserError, match=message):
        merge(get_cfg(engine), "", [str(option) for option in options])


@engines
@pytest.mark.parametrize(("name", "expected"), [("finetune_r18", 1), ("small_r18_scratch", 0)])
def test_warns_about_a_frozen_random_backbone(engine, name, expected, caplog):
    cfg = load(engine, "--config-file", name, "--weights", "", "--num-gpus", 0)
    log_start(cfg, resume=False)
    assert len(caplog.messages) == expected
    for part in ("MODEL.BACKBONE.FREEZE_AT is 2", "MODEL.RESNETS.NORM is FrozenBN", "use BN or GN as norm"):
        assert (part in caplog.text) == bool(expected)


def test_a_changed_number_of_iterations_is_logged_on_resuming(tmp_path, caplog):
    cfg = load("standalone", "--config-file", "quickstart", "--output", tmp_path, "--num-gpus", 0)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    log_start(cfg, resume=True)
    assert not caplog.messages
    cfg.SOLVER.MAX_ITER += 1
    log_start(cfg, resume=True)
    assert f"SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}, not the {cfg.SOLVER.MAX_ITER - 1} of {tmp_path}" in caplog.text


@engines
def test_empty_weights_replace_those_of_the_config(engine):
    words = ("--config-file", "finetune_r18", "--num-gpus", 0)
    assert load(engine, *words).MODEL.WEIGHTS
    assert load(engine, *words, "--weights", "").MODEL.WEIGHTS == ""


@engines
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {DETR: {NUM_QUERYS: 5}}", r"model\.yaml: .*MODEL\.DETR\.NUM_QUERYS"),
        ("SOLVER: {MAX_ITER: many}", r"model\.yaml: .*SOLVER\.MAX_ITER"),
        ("MODEL: [", r"model\.yaml: "),
        ("_BASE_: nowhere.yaml", r"model\.yaml: cannot read .*nowhere\.yaml"),
        ("OUTPUT_DIR: !!python/object/apply:os.mkdir ['made']", r"model\.yaml: .*python/object"),
    ],
    ids=["unknown_key", "type", "syntax", "base", "code"],
)
def test_invalid_files(engine, text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        merge(get_cfg(engine), str(tmp_path / "model.yaml"), [])
    assert os.listdir(tmp_path) == ["model.yaml"]


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml"])
def test_configs_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a folder is not a config
    cfg = load("standalone", "--config-file", name)
    assert cfg.DATASETS.TRAIN == ("shapes_train",)
    (tmp_path / name).with_suffix(".yaml").write_text("DATASETS: {TRAIN: [cells]}")
    assert load("standalone", "--config-file", "quickstart.yaml").DATASETS.TRAIN == ("cells",)  # files take precedence


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolo", "config 'yolo' is unknown: choose one of .*quickstart"),
        ("detr_r50", "'detr_r50' matches several recipes"),
        ("nowhere.yaml", "cannot read nowhere.yaml: No such file or directory$"),
        (
            "configs/quickstart.yaml",
            "No such file or directory; the packaged config is selected by its name, quickstart",
        ),
    ],
)
def test_unknown_configs(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        merge(get_cfg("standalone"), name, [])


@pytest.mark.parametrize(
    ("gpus", "wanted", "num_gpus", "device"),
    [
        (0, "auto", None, "cpu"),
        (0, "auto", 0, "cpu"),
        (0, "cpu", 2, "cpu"),
        (2, "auto", None, "cuda"),
        (2, "auto", 2, "cuda"),
        (2, "auto", 0, "cpu"),
        (2, "cuda:1", None, "cuda:1"),
    ],
)
def test_device(monkeypatch, capsys, gpus, wanted, num_gpus, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_device(wanted, num_gpus) == device
    assert bool(capsys.readouterr().out) == (wanted == "auto" and num_gpus is None and not gpus)


@pytest.mark.parametrize(
    ("wanted", "num_gpus", "message"),
    [
        ("cuda:1", None, "MODEL.DEVICE cuda:1 .* more GPUs than the 1 available"),
        ("auto", 2, "--num-gpus 2 requires .* MODEL.DEVICE cpu"),
        ("tpu", None, "MODEL.DEVICE must be .* got 'tpu'"),
    ],
)
def test_a_named_device_is_never_replaced(monkeypatch, capsys, wanted, num_gpus, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=message):
        choose_device(wanted, num_gpus)
    assert capsys.readouterr().out == ""


@engines
def test_a_device_named_in_a_file_is_never_replaced(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (tmp_path / "gpu.yaml").write_text("MODEL: {DEVICE: cuda}\nVERSION: 2\n")
    with pytest.raises(UserError, match="MODEL.DEVICE cuda"):
        load(engine, "--config-file", tmp_path / "gpu.yaml", "DATASETS.TRAIN", "('a',)")


@engines
@pytest.mark.parametrize(
    ("flags", "options", "message"),
    [
        (["--num-gpus", 3], [], "IMS_PER_BATCH must be a positive multiple of the 3 processes, got 16"),
        ([], ["SOLVER.IMS_PER_BATCH", 0], "IMS_PER_BATCH must be a positive .* got 0"),
        (["--num-gpus", 2, "--num-machines", 2], [], "--dist-url auto"),
        (["--num-gpus", 2, "--dist-url", "file:///x"], [], "must be tcp://HOST:PORT"),
        ([], ["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["--eval-only"], [], "--eval-only requires a data set: set DATASETS.TEST"),
    ],
)
def test_invalid_command_lines(engine, flags, options, message):
    with pytest.raises(UserError, match=message):
        load(engine, *flags, "MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "('a',)", *options)


@pytest.mark.parametrize(("option", "value"), [("--num-gpus", 2), ("--num-machines", 2), ("--dist-url", "tcp://a:1")])
def test_torchrun_determines_the_processes(monkeypatch, option, value):
    names = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "3", "GROUP_RANK": "1"}
    for name, text in {**names, "MASTER_ADDR": "host", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, text)
    words = ["--config-file", "quickstart", "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "6"]
    args = argument_parser().parse_args(words)
    load_cfg("standalone", args)
    assert (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url) == (2, 3, 1, "tcp://host:29500")
    with pytest.raises(UserError, match="torchrun sets the number of processes and machines: omit --num-gpus"):
        load("standalone", option, value, *words)
