"""SIGINT and SIGTERM end a training run after its iteration, with a checkpoint from which it resumes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from projects_deformable_detr.engine import is_installed
from projects_deformable_detr.shapes.dataset import generate

ROOT = Path(__file__).resolve().parents[1]
CONFIG = f"""
_BASE_: {ROOT}/configs/quickstart.yaml
MODEL:
  DEVICE: cpu
  DETR: {{HIDDEN_DIM: 32, ENC_LAYERS: 1, DEC_LAYERS: 1, DIM_FEEDFORWARD: 32}}
  RESNETS: {{STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8}}
INPUT: {{MIN_SIZE_TRAIN: [64], CROP: {{ENABLED: False}}}}
DATALOADER: {{NUM_WORKERS: 1}}
SOLVER: {{MAX_ITER: 10000, IMS_PER_BATCH: 2, WARMUP_ITERS: 0}}
"""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    generate(folder / "shapes", num_train=4, num_val=1, size=64)
    return folder


@pytest.fixture
def start(datasets, tmp_path):
    """Starts training, waits for its first log line and returns the process."""
    started = []

    def run(engine, *flags):
        (tmp_path / "config.yaml").write_text(CONFIG)
        command = [sys.executable, "train_net.py", "--engine", engine, "--config-file", str(tmp_path / "config.yaml")]
        command += [*flags, "OUTPUT_DIR", str(tmp_path / "run")]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "ops"), os.environ.get("PYTHONPATH", "")])
        own = {"OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(datasets), "PYTHONPATH": paths}
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | own, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        metrics, deadline = tmp_path / "run" / "metrics.json", time.monotonic() + 300
        while not (metrics.is_file() and metrics.stat().st_size) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("engine", "processes", "signum", "status"),
    [("standalone", 1, signal.SIGINT, 130), ("detectron2", 2, signal.SIGTERM, 143)],
)
def test_a_signal_saves_the_run(start, tmp_path, engine, processes, signum, status):
    package = {"standalone": "lightning"}.get(engine, engine)
    if not is_installed(package):
        pytest.skip(f"{package} is not installed")
    process = start(engine, "--num-gpus", str(processes))
    os.killpg(process.pid, signum)  # as terminals and batch systems do
    _, error = process.communicate(timeout=120)
    assert process.returncode == status, error
    assert "Traceback" not in error
    assert "Stopping after this iteration or evaluated batch; a second signal stops immediately." in error
    last = (tmp_path / "run" / "last_checkpoint").read_text()
    assert (tmp_path / "run" / last).is_file() and not (tmp_path / "run" / "model_final.pth").exists()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"Stopped after iteration {int(last[6:13]) + 1} of 10000: --resume continues" in log
