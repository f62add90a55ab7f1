"""Exit status, messages and flags of ``train_net.py``."""

import os
import sys
from pathlib import Path

import pytest

from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.engine import is_installed
from projects_deformable_detr.errors import run_command

SCRIPT = Path(__file__).resolve().parents[1] / "train_net.py"
QUICKSTART = str(SCRIPT.parent / "configs" / "quickstart.yaml")
needs_detectron2 = pytest.mark.skipif(not is_installed("detectron2"), reason="detectron2 is not installed")
ENGINES = ["standalone", pytest.param("detectron2", marks=needs_detectron2)]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, load_script):
    """Returns ``run(*arguments)``, which returns exit status, stdout and stderr, in an empty folder."""
    module = load_script("train_net.py")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_net.py", *arguments])
        status = run_command("train_net.py", module.main)
        return status, *capsys.readouterr()

    yield call
    assert list(tmp_path.iterdir()) == []  # nothing was written before the error


def test_busy_wait_of_openmp_is_limited(monkeypatch, load_script):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    load_script("train_net.py")
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    load_script("train_net.py")
    assert os.environ["GOMP_SPINCOUNT"] == "300"


def test_script_exits_with_status_2_without_traceback(tmp_path, python):
    result = python(SCRIPT, "--engine", "caffe", "--config-file", QUICKSTART, cwd=tmp_path)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert lines[-1] == "train_net.py: unknown engine 'caffe': choose one of auto, detectron2, standalone"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_invalid_config(run, engine):
    status, out, err = run("--engine", engine, "--config-file", QUICKSTART, "MODEL.DETR.NUM_QUERIES", "5")
    assert status == 2
    assert out.startswith(f"Engine: {engine} (selected by name).")
    assert err.startswith("train_net.py: command line: ") and "MODEL.DETR.NUM_QUERIES" in err
    assert "Traceback" not in err


@needs_detectron2
def test_auto_prints_engine_and_reason(run):
    status, out, _ = run("--config-file", "nowhere.yaml")
    assert status == 2
    assert out.splitlines()[0] == "Engine: detectron2 (detectron2 is installed)."


def test_default_flags():
    args = argument_parser().parse_args([])
    flags = {"config_file": "", "engine": "auto", "register": [], "resume": False, "overwrite": False}
    flags |= {"eval_only": False, "opts": [], "check_images": False, "train_data": None, "val_data": None}
    flags |= {"weights": None, "output": None, "epochs": None, "report": False}
    assert vars(args) == flags | {"num_gpus": None, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}


def test_full_command_line():
    line = (
        "--config-file a.yaml --engine standalone --num-gpus 2 --num-machines 3 --machine-rank 1 --resume --eval-only "
        "--dist-url tcp://host:1 --register one a.json images --register two b.json more SOLVER.BASE_LR 1e-3"
    )
    args = argument_parser().parse_args(line.split())
    assert (args.config_file, args.engine, args.num_gpus, args.num_machines) == ("a.yaml", "standalone", 2, 3)
    assert (args.machine_rank, args.dist_url, args.resume, args.eval_only) == (1, "tcp://host:1", True, True)
    assert args.register == [["one", "a.json", "images"], ["two", "b.json", "more"]]
    assert args.opts == ["SOLVER.BASE_LR", "1e-3"]


def test_an_unknown_flag_has_a_suggestion(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--ouptut", "x"])
    with pytest.raises(SystemExit):
        argument_parser().parse_args()
    assert "unknown option --ouptut; did you mean --output?" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["--gpus 1", "--register one a.json", "--num-gpus two"])
def test_invalid_flags_exit_with_status_2(line, capsys):
    with pytest.raises(SystemExit) as caught:
        argument_parser().parse_args(line.split())
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err
