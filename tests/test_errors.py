"""The handler of all command lines, errors of loader workers, and config keys in errors."""

import errno
import io
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from projects_deformable_detr.checkpoint import CheckpointError
from projects_deformable_detr.config.reading import naming_keys
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.errors import ArgumentError, Interrupted, UserError, run_command

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("wrong key"), 2, "tool: wrong key"),
        (ArgumentError("size", "must be 1"), 2, "tool: size must be 1"),
        (FloatingPointError("loss is NaN"), 1, "tool: loss is NaN"),
        (OSError(errno.ENOSPC, "No space left on device", "log.txt"), 2, "tool: No space left on device: log.txt"),
        (ModuleNotFoundError("No module", name="detectron2.config"), 2, "tool: requires the package detectron2"),
        (KeyboardInterrupt(), 130, "tool: stopped by SIGINT"),
        (Interrupted(15), 143, "tool: stopped by SIGTERM"),
    ],
)
def test_status_and_message(error, status, message, capsys):
    def command():
        raise error

    assert run_command("tool", command) == status
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("bug"), OSError(errno.EBADF, "bug"), ModuleNotFoundError(name="projects_deformable_detr.typo")],
)
def test_bugs_keep_their_traceback(error):
    def command():
        raise error

    with pytest.raises(type(error)):
        run_command("tool", command)


def test_terminals_that_cannot_encode_a_message(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    child = [sys.executable, "-c", "print('Zelle ö')"]

    def command():
        print("Käfer")
        assert subprocess.check_output(child, text=True) == "Zelle \\xf6\n"

    assert run_command("tool", command) == 0
    assert terminal.buffer.getvalue() == b"K\\xe4fer\n"


class Failing(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise OSError("truncated")
        except OSError as error:
            raise DatasetError("a.jpg: truncated file\n  remove it") from error


def test_error_of_a_worker_is_its_message_alone():
    with pytest.raises(DatasetError) as caught:
        next(iter(torch.utils.data.DataLoader(Failing(), num_workers=1)))
    assert str(caught.value) == "a.jpg: truncated file\n  remove it"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ArgumentError("depth", "needs `norm`"), UserError, "RESNETS.DEPTH needs RESNETS.NORM"),
        (CheckpointError("set `depth=50` or `other=1`"), CheckpointError, "set RESNETS.DEPTH 50 or `other=1`"),
    ],
)
def test_errors_name_config_keys(error, kind, message):
    with pytest.raises(kind) as caught, naming_keys({"depth": "RESNETS.DEPTH", "norm": "RESNETS.NORM"}):
        raise error
    assert type(caught.value) is kind and str(caught.value) == message


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["tools/score_threshold.py", "nowhere.json", "a.json"], "score_threshold: nowhere.json: "),
        (["tools/flops.py", "nowhere.yaml"], "flops: config file .*nowhere.yaml: cannot read"),
        (
            ["projects_deformable_detr", "draw", "--dataset", "x", "--results", "x", "--output", "x"],
            "deformable-detr draw: unknown data set 'x'",
        ),
    ],
)
def test_tools_with_wrong_arguments_print_one_line(command, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.chdir(ROOT)
    run = runpy.run_path if command[0].endswith(".py") else runpy.run_module
    with pytest.raises(SystemExit) as caught:
        run(command[0], run_name="__main__")
    errors = capsys.readouterr().err
    assert caught.value.code == 2
    assert re.match(message, errors.splitlines()[-1]) and "Traceback" not in errors
