"""deformable-detr info on checkpoints, published weights and backbones."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from projects_deformable_detr import build_detector, zoo
from projects_deformable_detr.checkpoint import write_official
from projects_deformable_detr.cli.main import main
from projects_deformable_detr.zoo.files import UrlFile


@pytest.fixture
def info(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs the command and returns its JSON."""

    def run(*words: object) -> dict[str, Any]:
        assert main(["info", *map(str, words), "--json"]) == 0
        out = capsys.readouterr().out
        facts: dict[str, Any] = json.loads(out[out.index("{") :])  # handlers of other tests log to stdout
        return facts

    return run


def test_checkpoint(
    save_tiny: Callable[..., Path], info: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_tiny("two_stage")
    facts = info(path.parent)
    assert facts["SHA-256"] == hashlib.sha256(path.read_bytes()).hexdigest() and facts["file"] == str(path)
    assert facts["classes"] == ["ant", "bee", "cat", "dog", "elk"] and facts["format"] == "deformable-detr"
    assert "ResNet-18" in facts["architecture"] and facts["architecture"].endswith(
        "7 queries; box refinement; two-stage"
    )
    state = torch.load(path, weights_only=True)["model"]
    count = sum(value.numel() for key, value in state.items() if ".running_" not in key and "num_batches" not in key)
    assert facts["parameters"] == f"{count / 1e6:.1f} M"
    assert facts["FLOPs"].endswith("G at 64 x 85; a multiply-add counts as one")
    assert "ADAMW, learning rate 0.0002" in facts["training"] and facts["training"].endswith("saved after 1 iterations")
    cfg_file = path.with_name("other.yaml")
    text = torch.load(path, weights_only=True)["config"]
    cfg_file.write_text(text.replace("LR_SCHEDULER_NAME: WarmupMultiStepLR", "LR_SCHEDULER_NAME: Custom"))
    other = info(path, "--config-file", cfg_file)
    assert "unknown: SOLVER.LR_SCHEDULER_NAME must be one of" in other["training"]
    assert {**other, "training": facts["training"]} == facts
    larger = info(path, "--size", 128, 170)
    assert float(larger["FLOPs"].split()[0]) > 3 * float(facts["FLOPs"].split()[0])
    assert main(["info", str(path), "--size", "8", "8"]) == 2
    assert "--size 8 8 is too small for the model (Expected more than 1 value" in capsys.readouterr().err
    assert main(["info", str(path)]) == 0
    assert "classes       5: ant, bee, cat, dog, elk\n" in capsys.readouterr().out


def test_official_file(make_cfg: Callable[..., Any], tmp_path: Path, info: Callable[..., dict[str, Any]]) -> None:
    cfg = make_cfg("detr", NUM_CLASSES=91)
    write_official(tmp_path / "detr.pth", build_detector(cfg))
    facts = info(tmp_path / "detr.pth")
    assert facts["format"] == "official" and "contains no config" in facts["config"]
    cfg.MODEL.DETR.NUM_CLASSES = 0
    (tmp_path / "detr.yaml").write_text(cfg.dump())
    facts = info(tmp_path / "detr.pth", "--config-file", tmp_path / "detr.yaml")
    assert facts["training"].startswith("not recorded; the config")
    assert facts["architecture"].startswith("DETR with ResNet-18") and facts["classes"][:2] == ["person", "bicycle"]


def test_published_weights(
    make_cfg: Callable[..., Any], tmp_path: Path, info: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = info()
    assert listed.keys() == zoo.ENTRIES.keys()
    assert listed["detr_r50_panoptic"] == "box AP 38.8, mask AP 31.1, PQ 43.4; config detr_r50_panoptic"
    write_official(tmp_path / "detr.pth", build_detector(make_cfg("detr", NUM_CLASSES=91)))
    monkeypatch.setattr(UrlFile, "download", lambda file: tmp_path / "detr.pth")
    for name in ("detr_r50", "zoo://detr_r50"):
        facts = info(name)
        assert facts["source"].endswith("/detr-r50-e632da11.pth") and facts["license"] == "Apache-2.0"
        assert facts["published results"] == "box AP 42.0" and len(facts["classes"]) == 80
        assert facts["parameters"] == "41.5 M" and facts["FLOPs"].startswith("81.2 G at 800 x 1067")


def test_backbone(tmp_path: Path, info: Callable[..., dict[str, Any]]) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    assert info(tmp_path / "resnet18.pth")["format"] == "resnet, a backbone without a detector"
