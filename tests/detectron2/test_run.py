"""``python -m projects_deformable_detr.detectron2_plugin.run SCRIPT`` runs scripts like ``python SCRIPT``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

ROOT = Path(__file__).resolve().parents[2]
MODULE = ("-m", "projects_deformable_detr.detectron2_plugin.run")

_PRINT = """
from __future__ import annotations
import json, sys
import neighbor
def state(): return {"argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__, "doc": __doc__}
print(json.dumps({**state(), "is_main": sys.modules["__main__"].state is state, "neighbor": neighbor.__file__}))
if "--exit" in sys.argv: sys.exit(7)
if "--raise" in sys.argv: raise LookupError("its own error")
"""

_LAUNCH = """
import multiprocessing, os, sys
from detectron2.engine import launch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

class Box:  # a class of the script, pickled to the processes
    pass

def work(folder, box, queue):
    known = "DeformableDETR" in META_ARCH_REGISTRY
    assert comm.get_world_size() == 2 and isinstance(box, Box) and sys.argv[1:] == [folder]
    with open(f"{folder}/{comm.get_rank()}", "w") as file:
        file.write(f"{known} {comm.gather(comm.get_rank())} {__name__}")
    queue.put(Box())
    os._exit(0)  # Detectron2 does not destroy the process groups, whose threads may abort the shutdown of Python

if __name__ == "__main__":
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    launch(work, 2, dist_url="auto", args=(sys.argv[1], Box(), queue))
    print(*[type(queue.get()) is Box for _ in range(2)])
"""


def plain_python(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


@pytest.fixture
def script(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "neighbor.py").write_text("")
    (tmp_path / "scripts" / "printing.py").write_text('"""Its docstring."""' + _PRINT)
    return Path("scripts") / "printing.py"


def test_scripts_have_the_same_state_as_in_python(script, tmp_path, python):
    words = script, "a", "--b=c"
    plain, result = plain_python(*words, cwd=tmp_path), python(*MODULE, *words, cwd=tmp_path)
    assert result.returncode == plain.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads(plain.stdout)
    assert json.loads(result.stdout)["is_main"] is True


@pytest.mark.parametrize("flag", ["--exit", "--raise"])
def test_exit_status_and_errors_are_those_of_the_script(script, tmp_path, flag, python):
    plain, result = plain_python(script, flag, cwd=tmp_path), python(*MODULE, script, flag, cwd=tmp_path)
    assert result.returncode == plain.returncode == (7 if flag == "--exit" else 1)
    if flag == "--raise":
        last = plain.stderr.splitlines()[-3:]
        assert result.stderr.splitlines()[-3:] == last and last[-1] == "LookupError: its own error"


def test_spawned_processes_import_the_project(tmp_path):
    (tmp_path / "launches.py").write_text(_LAUNCH)
    result = plain_python(*MODULE, tmp_path / "launches.py", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True", "True"]
    assert (tmp_path / "0").read_text() == "True [0, 1] __mp_main__"
    assert (tmp_path / "1").read_text() == "True [] __mp_main__"


@pytest.mark.parametrize(
    ("words", "message"), [((), "usage: "), (("no such script.py",), "no such script.py: No such")]
)
def test_invalid_command_lines(words, message, python):
    result = python(*MODULE, *words)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr


def test_a_script_has_no_package(tmp_path, python):
    (tmp_path / "relative.py").write_text("from . import monitors\n")
    plain, result = plain_python(tmp_path / "relative.py"), python(*MODULE, tmp_path / "relative.py")
    assert result.returncode == plain.returncode == 1
    assert result.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]
