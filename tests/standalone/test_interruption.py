"""A signal to an evaluation ends it at the next batch; the run resumes after the evaluated iteration."""

import json
import os
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from projects_deformable_detr.errors import Interrupted
from projects_deformable_detr.evaluation import Evaluator
from projects_deformable_detr.standalone import callbacks, main
from projects_deformable_detr.training import interruption

Make = Callable[..., Namespace]
OPTIONS = (
    "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 4, "TEST.EVAL_PERIOD", 2, "SOLVER.EMA.ENABLED", True,
    "SOLVER.EMA.DECAY", 0.5, "SOLVER.IMS_PER_BATCH", 2,
)  # fmt: skip


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sends SIGTERM at the first evaluated batch; returns the image ids of all evaluated batches."""
    found: list[int] = []
    add = Evaluator.add

    def add_and_signal(self: Evaluator, image_ids: list[int], *arguments: Any) -> None:
        add(self, image_ids, *arguments)
        if not found:
            os.kill(os.getpid(), signal.SIGTERM)
        found.extend(image_ids)

    monkeypatch.setattr(Evaluator, "add", add_and_signal)
    handler = signal.getsignal(signal.SIGTERM)
    write = callbacks.write_atomically

    def write_with_handler(*arguments: Any) -> None:
        assert interruption._active is not None  # another signal does not end the process before it has saved
        write(*arguments)

    monkeypatch.setattr(callbacks, "write_atomically", write_with_handler)
    yield found
    assert signal.getsignal(signal.SIGTERM) == handler


def weights(folder: Path, name: str = "model_final.pth") -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)["model"]


def test_an_evaluation_during_training_stops(make_args: Make, tmp_path: Path, evaluated: list[int]) -> None:
    with pytest.raises(Interrupted) as caught:
        main(make_args(tmp_path / "run", *OPTIONS))
    assert caught.value.signum == signal.SIGTERM and len(evaluated) == 2
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000001.ckpt"
    metrics = main(make_args(tmp_path / "run", "--resume", *OPTIONS))
    assert len(evaluated) == 2 + 7  # the first evaluation is not repeated
    assert metrics == main(make_args(tmp_path / "whole", *OPTIONS))
    resumed, whole = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_the_final_evaluation_stops(
    make_args: Make, tmp_path: Path, evaluated: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    options = (*OPTIONS, "TEST.EVAL_PERIOD", 0)
    with pytest.raises(Interrupted):
        main(make_args(tmp_path, *options))
    assert len(evaluated) == 2
    before = (tmp_path / "model_0000003.ckpt").read_bytes()
    with pytest.raises(Interrupted):
        evaluated.clear()
        main(make_args(tmp_path, "--resume", *options))
    assert (tmp_path / "model_0000003.ckpt").read_bytes() == before
    assert "Stopped in the evaluation after all 4 iterations: --resume completes the run" in caplog.text
    assert "AP" in main(make_args(tmp_path, "--resume", *options))["bbox"]
    metrics = (tmp_path / "metrics.json").read_text()
    assert sum("bbox/AP" in json.loads(line) for line in metrics.splitlines()) == 1
    assert main(make_args(tmp_path, "--resume", *options, "TEST.AUG.ENABLED", True)) == {}
    assert "the run is finished; --eval-only --resume evaluates it again" in caplog.text
    assert (tmp_path / "metrics.json").read_text() == metrics
