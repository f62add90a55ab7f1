"""Training, evaluating, resuming and predicting with Detectron2's own classes, on a tiny data set."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from projects_deformable_detr.checkpoint import save_detector
from projects_deformable_detr.detectron2_plugin import Trainer, main
from projects_deformable_detr.detectron2_plugin.hooks import MetricPrinter
from projects_deformable_detr.detectron2_plugin.launch import setup
from projects_deformable_detr.errors import UserError

ROOT = Path(__file__).parents[2]


def metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(job, tmp_path_factory, coco_files):
    """Folder and metrics of a run of 60 iterations."""
    folder = tmp_path_factory.mktemp("trained")
    results = main(job(folder, coco_files, "SOLVER.MAX_ITER", 60, "SOLVER.CHECKPOINT_PERIOD", 30))
    return folder / "output", results


def test_training_lowers_the_loss_and_writes_files_of_detectron2(trained):
    folder, results = trained
    losses = [line["total_loss"] for line in metrics(folder) if "total_loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-red", "AP-blue"} <= results["bbox"].keys()
    for name in ("config.yaml", "model_final.pth", "model_0000029.pth", "inference/coco_instances_results.json"):
        assert (folder / name).is_file(), name
    assert "cardinality_error" in metrics(folder)[0] and metrics(folder)[0]["grad_norm"] > 0.1  # before clipping
    records = json.loads((folder / "inference/coco_instances_results.json").read_text())
    assert {record["category_id"] for record in records} <= {3, 7}
    assert not list(folder.glob(".model*"))  # temporary files


def test_report_of_a_training(trained, tmp_path):
    pytest.importorskip("hotcoco", reason="reports need hotcoco")
    from projects_deformable_detr.report import write_report

    folder, results = trained
    write_report([folder], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert f"{results['bbox']['AP']:.2f} after 60 iterations" in text
    assert "saved by the evaluation after 60 iterations" in text and "detectron2" in text


def test_remaining_time_includes_evaluations(make_cfg, monkeypatch):
    now = 0.0

    def clock(seconds=1.0):  # read once for each iteration and once after each evaluation
        nonlocal now
        now += seconds
        return now

    cfg = make_cfg(SOLVER__MAX_ITER=40, TEST__EVAL_PERIOD=20)
    monkeypatch.setattr(Trainer, "test", lambda *_: clock(9.0) and {})
    Path(cfg.OUTPUT_DIR).mkdir()
    trainer = Trainer(cfg)
    trainer.remaining_time.clock = clock
    trainer.train()
    seconds = {line["iteration"]: line["eta_seconds"] for line in metrics(cfg.OUTPUT_DIR)}
    assert seconds == pytest.approx({19: 20 * 1 + 10, 39: 10})
    (printer,) = (writer for writer in trainer.build_writers() if isinstance(writer, MetricPrinter))
    trainer.remaining_time.iterations = 30  # as after early stopping
    with EventStorage(30) as storage:
        assert printer._get_eta(storage) is None


def test_the_model_can_be_copied(make_cfg):
    trainer = Trainer(make_cfg(SOLVER__MAX_ITER=1))
    copy.deepcopy(trainer.model)
    trainer.train()
    assert not copy.deepcopy(trainer.model)._forward_pre_hooks


def test_accumulation_gives_the_weights_and_losses_of_the_whole_batch(make_cfg, tmp_path):
    options = {"SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_ITER": 2, "SOLVER__OPTIMIZER": "SGD", "SOLVER__BASE_LR": 0.02}
    runs = []
    for parts in (1, 2):
        seed_all_rng(1)
        folder = str(tmp_path / str(parts))
        trainer = Trainer(make_cfg(**options, SOLVER__ACCUMULATION_STEPS=parts, OUTPUT_DIR=folder, DATASETS__TEST="()"))
        trainer.train()
        losses = {name: value for name, value in metrics(folder)[0].items() if "loss" in name}
        runs.append((trainer.model.state_dict(), losses))
    (weights, losses), (others, other_losses) = runs
    assert other_losses == pytest.approx(losses, rel=1e-5) and "total_loss" in losses
    for name, expected in weights.items():
        torch.testing.assert_close(others[name], expected, rtol=0, atol=1e-5)


def test_accumulation_steps_must_divide_a_scaled_batch(make_cfg):
    cfg = make_cfg(SOLVER__IMS_PER_BATCH=12, SOLVER__REFERENCE_WORLD_SIZE=2, SOLVER__ACCUMULATION_STEPS=4)
    with pytest.raises(UserError, match=r"multiple of 1 processes x SOLVER.ACCUMULATION_STEPS 4, got 6"):
        Trainer(cfg)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_failed_step_is_saved_with_its_images(make_cfg, parts):
    trainer = Trainer(make_cfg(SOLVER__ACCUMULATION_STEPS=parts))
    states = []
    trainer.model.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
    trainer.model.criterion.weights["loss_bbox"] = math.inf
    with pytest.raises(
        FloatingPointError, match=r"iteration=0.*\n.*\n.*\.png \(image id \d\).*failed_step_0000000"
    ) as error:
        trainer.train()
    step = torch.load(Path(trainer.cfg.OUTPUT_DIR) / "failed_step_0000000_rank0.pth", weights_only=True)
    assert len(step["names"]) == len(step["images"]) == 2 and step["num_classes"] == 2
    assert all(name in str(error.value) for name in step["names"])
    assert step["accumulation_steps"] == len(states) == parts and torch.equal(step["rng_state"], states[0])


def test_eval_only_gives_the_metrics_of_the_training_run(trained, job, tmp_path, coco_files):
    folder, results = trained
    again = main(job(tmp_path, coco_files, "MODEL.WEIGHTS", folder / "model_final.pth", eval_only=True))
    assert again["bbox"] == pytest.approx(results["bbox"], nan_ok=True)


def test_the_saved_config_works_in_default_predictor(trained, coco_files):
    from projects_deformable_detr import get_cfg

    folder, _ = trained
    cfg = get_cfg("detectron2")
    cfg.merge_from_file(str(folder / "config.yaml"))
    assert cfg.MODEL.DETR.NUM_CLASSES == 2
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    instances = DefaultPredictor(cfg)(cv2.imread(f"{coco_files[1]}/1.png"))["instances"]
    assert instances.image_size == (80, 64)
    assert len(instances) == 20 and torch.isfinite(instances.pred_boxes.tensor).all()


def test_training_resumes_where_a_killed_run_stopped(job, tmp_path, coco_files):
    folder = tmp_path / "output"
    endless = job(tmp_path, coco_files, "SOLVER.MAX_ITER", 100000, "SOLVER.CHECKPOINT_PERIOD", 5)
    command = [sys.executable, "train_net.py", "--engine", "detectron2", "--register", *endless.register[0]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([*command, *endless.opts], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "model_0000009.pth").exists() and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL

    last = torch.load(folder / (folder / "last_checkpoint").read_text(), weights_only=True)
    first = last["iteration"] + 1
    assert first >= 5
    stop = first + 3
    trainer = Trainer(setup(job(tmp_path, coco_files, "SOLVER.MAX_ITER", stop, resume=True)))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == first
    assert {int(state["step"]) for state in trainer.optimizer.state_dict()["state"].values()} == {first}
    trainer.train()
    assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == stop - 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read on Linux only")
def test_memory_of_the_predictor_does_not_grow(make_cfg, tmp_path):
    save_detector(tmp_path / "model.pth", build_model(make_cfg()).detector, iteration=0, cfg_text="")
    predictor, sizes = DefaultPredictor(make_cfg(MODEL__WEIGHTS=tmp_path / "model.pth")), []
    for count in (30, 120):
        for _ in range(count):
            predictor(np.zeros((64, 80, 3), np.uint8))
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    assert sizes[1] - sizes[0] < 5  # MiB


def test_predictor_names_an_image_without_pixels(make_cfg, tmp_path):
    save_detector(tmp_path / "model.pth", build_model(make_cfg()).detector, iteration=0, cfg_text="")
    predictor = DefaultPredictor(make_cfg(MODEL__WEIGHTS=tmp_path / "model.pth"))
    with pytest.raises(UserError, match="the image is 0 x 80 .*no pixels"):
        predictor(np.zeros((0, 80, 3), np.uint8))
    for size in ((1, 300), (300, 1), (1, 1)):
        instances = predictor(np.zeros((*size, 3), np.uint8))["instances"]
        assert instances.image_size == size and instances.pred_boxes.tensor.isfinite().all()
