"""tools/two_machines.py: training on two network namespaces, a killed machine, and resuming."""

import subprocess
import sys
from pathlib import Path

import pytest

from projects_deformable_detr.engine import is_installed

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "two_machines.py"
SKIPPED = 77


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "package"), [("standalone", "lightning"), ("detectron2", "detectron2")])
def test_a_killed_machine_ends_the_run_and_both_resume(engine, package):
    if not is_installed(package):
        pytest.skip(f"{package} is not installed")
    process = subprocess.run([sys.executable, str(SCRIPT), "--engine", engine], capture_output=True, text=True)
    if process.returncode == SKIPPED:
        pytest.skip(process.stdout.strip())
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("ok: ") == (11 if engine == "standalone" else 7)
