"""A signal to an evaluation ends it at the next batch; the run resumes after the evaluated iteration."""

import os
import signal

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from projects_deformable_detr.detectron2_plugin import checkpoint, main
from projects_deformable_detr.detectron2_plugin.evaluation import InstancesEvaluator
from projects_deformable_detr.detectron2_plugin.tta import SetPredictionTTA
from projects_deformable_detr.errors import Interrupted
from projects_deformable_detr.training import interruption

EMA = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.5)


@pytest.fixture
def evaluated(monkeypatch):
    """Sends SIGTERM at the first evaluated batch; returns the image ids of all evaluated batches."""
    found = []
    process = InstancesEvaluator.process

    def process_and_signal(self, inputs, outputs):
        process(self, inputs, outputs)
        if not found:
            os.kill(os.getpid(), signal.SIGTERM)
        found.extend(record["image_id"] for record in inputs)

    monkeypatch.setattr(InstancesEvaluator, "process", process_and_signal)
    handler = signal.getsignal(signal.SIGTERM)
    write = checkpoint.write_atomically

    def write_with_handler(*arguments):
        assert interruption._active is not None  # another signal does not end the process before it has saved
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_atomically", write_with_handler)
    yield found
    assert signal.getsignal(signal.SIGTERM) == handler


def test_an_evaluation_during_training_stops(job, tmp_path, coco_files, evaluated):
    options = (*EMA, "TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 4)
    with pytest.raises(Interrupted) as caught:
        main(job(tmp_path, coco_files, *options))
    assert caught.value.signum == signal.SIGTERM and len(evaluated) == 1
    assert (tmp_path / "output" / "last_checkpoint").read_text() == "model_0000001.pth"
    content = torch.load(tmp_path / "output" / "model_0000001.pth", weights_only=True)
    assert any(not torch.equal(content["ema"]["model"][key], value) for key, value in content["model"].items())
    metrics = main(job(tmp_path, coco_files, *options, resume=True))
    assert len(evaluated) == 1 + 8 and "AP" in metrics["bbox"]
    assert (tmp_path / "output" / "model_final.pth").is_file()


def test_the_final_evaluation_stops(job, tmp_path, coco_files, evaluated, caplog):
    options = ("SOLVER.MAX_ITER", 2)
    with pytest.raises(Interrupted):
        main(job(tmp_path, coco_files, *options))
    names = sorted(path.name for path in (tmp_path / "output").glob("model_*"))
    assert len(evaluated) == 1 and names == ["model_final.pth"]  # which is not saved again
    assert "Stopped in the evaluation after all 2 iterations: --resume completes the run" in caplog.text
    assert "AP" in main(job(tmp_path, coco_files, *options, resume=True))["bbox"]
    metrics = (tmp_path / "output" / "metrics.json").read_text()
    assert main(job(tmp_path, coco_files, *options, resume=True)) == {}
    assert "the run is finished; --eval-only --resume evaluates it again" in caplog.text
    assert (tmp_path / "output" / "metrics.json").read_text() == metrics


def test_the_evaluation_with_augmentation_stops(job, tmp_path, coco_files, evaluated, monkeypatch):
    monkeypatch.setattr(SetPredictionTTA, "__call__", lambda self, inputs: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(InstancesEvaluator, "process", lambda *_: None)
    with pytest.raises(Interrupted) as caught:
        main(job(tmp_path, coco_files, "SOLVER.MAX_ITER", 2, "TEST.AUG.ENABLED", True))
    assert caught.value.signum == signal.SIGINT
