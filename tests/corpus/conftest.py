"""Runs ``train_net.py`` in this process on inputs of the corpus."""

import functools
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for the modules of the corpus

from corpus_inputs import Case, Inputs

from projects_deformable_detr.data import catalog
from projects_deformable_detr.errors import run_command
from projects_deformable_detr.modeling.criterion import SetCriterion
from projects_deformable_detr.modeling.detector import Detector


@dataclass
class Result:
    """Outcome of a run.

    Attributes:
        status: exit status.
        output: stdout and stderr.
        folder: output folder.
        images: images (3, H, W) of the training batches, in 0–255.
        targets: labels and boxes, x1, y1, x2, y2 in pixels, of these images.
    """

    status: int
    output: str
    folder: Path
    images: list[torch.Tensor] = field(default_factory=list)
    targets: list[tuple[list[int], list[list[float]]]] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """Values in the last line of metrics.json with AP."""
        lines = map(json.loads, (self.folder / "metrics.json").read_text().splitlines())
        return [line for line in lines if "bbox/AP" in line][-1]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], load_script: Callable
) -> Iterator[Callable]:
    """Returns ``run(case, engine)``. In evaluations, the detector predicts the objects in ``Inputs.truth``."""
    script = load_script("train_net.py")

    def start(engine: str, inputs: Inputs, arguments: list[str]) -> int:
        for name, value in inputs.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["train_net.py", "--engine", engine, *arguments])
        monkeypatch.setattr(catalog, "_registered", {})
        if engine == "detectron2":
            _prepare_detectron2(monkeypatch, inputs)
        try:
            return run_command("train_net.py", script.main)
        except SystemExit as end:  # argparse
            return int(end.code or 0)

    def call(case: Case, engine: str) -> Result:
        inputs = Inputs(tmp_path)
        case.make(inputs)
        result = Result(-1, "", tmp_path / "output")
        _observe(monkeypatch, inputs, result)
        if inputs.first_run:
            assert start(engine, inputs, inputs.write(inputs.first_run)) == 0
            capfd.readouterr()
            inputs.between()
            result.images.clear()
            result.targets.clear()
        result.status = start(engine, inputs, inputs.write())
        out, err = capfd.readouterr()
        result.output = out + err
        return result

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield call
    shutil.rmtree(tmp_path / "output", ignore_errors=True)  # pytest keeps the folders of its last sessions


@pytest.fixture
def check_policy(run: Callable[[Case, str], Result]) -> Callable[[Case, str], None]:
    """Returns ``check_policy(case, engine)``, which asserts the policy, message and values of a row."""

    def check(case: Case, engine: str) -> None:
        result = run(case, engine)
        assert "Traceback" not in result.output, result.output
        text = result.output if case.policy != "error" else result.output.partition("train_net.py: ")[2]
        assert re.search(case.message, text), result.output
        assert result.status == (2 if case.policy == "error" else 0), result.output
        if case.check is not None:
            case.check(result)
        if case.policy != "error" and case.ap is not None:
            assert result.metrics["bbox/AP"] == pytest.approx(case.ap), result.output

    return check


def _observe(monkeypatch: pytest.MonkeyPatch, inputs: Inputs, result: Result) -> None:
    """Records training batches, and replaces predictions in evaluations."""
    forward, loss = Detector.forward, SetCriterion.forward

    def predict(self: Detector, images: torch.Tensor, padding_mask: torch.Tensor) -> Any:
        predictions = forward(self, images, padding_mask)
        if self.training:
            for image, mask in zip(images, padding_mask, strict=True):
                height, width = int((~mask[:, 0]).sum()), int((~mask[0]).sum())
                result.images.append(image[:, :height, :width].detach().clone())
            return predictions
        logits, boxes = torch.full_like(predictions.logits, -20.0), predictions.boxes.clone()
        for query, (label, box) in enumerate(inputs.truth):
            logits[:, :, query, label] = 20.0
            boxes[:, :, query] = torch.tensor(box)
        return replace(predictions, logits=logits, boxes=boxes) if inputs.truth else predictions

    def compute(self: SetCriterion, predictions: Any, targets: Any) -> Any:
        for image, target in zip(result.images[-len(targets) :], targets, strict=True):
            center, size = target.boxes[:, :2], target.boxes[:, 2:]
            scale = torch.tensor([image.shape[2], image.shape[1]] * 2)
            corners = torch.cat([center - size / 2, center + size / 2], dim=1) * scale
            result.targets.append((target.labels.tolist(), corners.round(decimals=2).tolist()))
        return loss(self, predictions, targets)

    monkeypatch.setattr(Detector, "forward", predict)
    monkeypatch.setattr(SetCriterion, "forward", compute)


def _prepare_detectron2(monkeypatch: pytest.MonkeyPatch, inputs: Inputs) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from projects_deformable_detr.detectron2_plugin.data import register_builtin

    def get(cfg: Any, *keys: str, default: Any = None) -> Any:
        values = (functools.reduce(lambda node, name: node.get(name, {}), key.split("."), cfg) for key in keys)
        return next((value for value in values if value != {}), default)

    # These functions take most of the time of a short run.
    monkeypatch.setattr("detectron2.engine.defaults._highlight", lambda code, _: code)
    monkeypatch.setattr("detectron2.engine.defaults.collect_env_info", lambda: "")
    monkeypatch.setattr("detectron2.engine.defaults._try_get_key", get)
    for registry in (DatasetCatalog, MetadataCatalog):
        for name in [name for name in registry.data if name.startswith("corpus")]:
            registry.data.pop(name)
        for name in [name for name in registry.data if name.startswith("shapes_") and inputs.environment]:
            monkeypatch.delitem(registry.data, name)
    register_builtin()
    if inputs.function is not None:
        DatasetCatalog.register("corpus_function", inputs.function)
        MetadataCatalog.get("corpus_function").set(thing_classes=["red", "blue"])
