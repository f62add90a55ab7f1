"""The tutorials and how-to pages run as written, on small data, after the quick start and the first tutorial."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from projects_deformable_detr import build_detector, get_cfg, model_zoo
from projects_deformable_detr.checkpoint import save_detector
from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.config.recipes import find_config
from projects_deformable_detr.shapes.scene import CLASS_NAMES
from projects_deformable_detr.zoo.coco_classes import THINGS

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCKS = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HOWTO = sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / "howto").glob("*.md"))
PAGES = ["quickstart.md", *sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / "tutorials").glob("*.md"))]


def test_quick_start_and_first_tutorial(workspace):
    for name in ("predictions/000001.jpg", "detections.png", "cells.png", "evaluation/val.md", "pictures"):
        assert (workspace / name).exists()
    train, val = (json.loads((workspace / f"cells/{split}.json").read_text()) for split in ("train", "val"))
    assert (len(train["images"]), len(val["images"]), len(train["annotations"])) == (8, 2, 16)
    assert train["annotations"][0]["bbox"] == [9.0, 8.0, 22.0, 32.0]


def test_fine_tuning(workspace, run_page):
    model = model_zoo.get("quickstart", num_classes=len(THINGS), engine="standalone")
    save_detector("published.pth", model, iteration=-1, cfg_text="", class_names=THINGS)
    # This file takes the place of the recipe of the same name, which downloads weights of this kind.
    Path("finetune_r50").write_text(
        f"_BASE_: {model_zoo.config_file('quickstart')}\nMODEL: {{WEIGHTS: published.pth}}\n"
    )
    run_page("tutorials/fine_tuning.md")
    assert (workspace / "output/finetuned/model_best.pth").is_file()
    assert "keeps its initial weights" in (workspace / "output/finetuned/log.txt").read_text()


@pytest.mark.parametrize("page", ["tutorials/attention.md", "tutorials/cpu_speed.md", *HOWTO])
def test_page(page, workspace, run_page):
    run_page(page)


@pytest.mark.slow  # export to ONNX takes a minute
def test_deployment(workspace, run_page, make_cfg, tmp_path, monkeypatch):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # a smaller model than that of the quick start, to export faster
    Path("datasets").symlink_to(workspace / "datasets")
    cfg = make_cfg("two_stage", NUM_CLASSES=len(CLASS_NAMES), ENC_LAYERS=1, DEC_LAYERS=1)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 128, 160
    Path("output/quickstart").mkdir(parents=True)
    file = "output/quickstart/model_final.pth"
    save_detector(file, build_detector(cfg), iteration=0, cfg_text=cfg.dump(), class_names=CLASS_NAMES)
    names = run_page("tutorials/deployment.md")
    assert torch.allclose(names["checkpoint"].boxes, names["exported"].boxes, atol=0.01)


def test_explain(run_page, make_cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = make_cfg("two_stage", NORM="GN", NUM_OBJECT_QUERIES=3, NUM_CLASSES=1)
    cfg.INPUT.MIN_SIZE_TEST = 64
    detector = build_detector(cfg)
    torch.nn.init.zeros_(detector.decoder.class_heads[-1].bias)  # scores of 0.5
    Path("output/quickstart").mkdir(parents=True)
    save_detector("output/quickstart/model_final.pth", detector, iteration=0, cfg_text=cfg.dump())
    Image.fromarray(np.random.default_rng(0).integers(256, size=(240, 340, 3), dtype=np.uint8)).save("street.jpg")
    run_page("explain.md")
    assert {path.name for path in Path("explanations").iterdir()} >= {"street.html", "street_0.png", "street_boxes.png"}
    for file in ("details/street_0_head.png", "encoder/street_encoder_0_level3.png", "layers.png", "street.html"):
        assert Path(file).is_file()


@pytest.mark.parametrize("page", [*PAGES, *HOWTO])
def test_keys_and_training_commands_are_valid(page, workspace):
    text = (DOCS / page).read_text(encoding="utf-8")
    for key in re.findall(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z][A-Z0-9_]*)+\b", text):
        node = get_cfg("standalone")
        for name in key.split("."):
            assert name in node, key
            node = node[name]
    for line in "\n".join(block for _, block in BLOCKS.findall(text)).replace("\\\n", " ").splitlines():
        if line.startswith("deformable-detr train"):
            args = argument_parser().parse_args(shlex.split(line)[2:])
            cfg = get_cfg("standalone")
            cfg.merge_from_file(find_config(args.config_file))
            cfg.merge_from_list(args.opts)
