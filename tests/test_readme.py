"""Executes the commands and snippets of README.md in a folder with small files of the names that it uses."""

import dataclasses
import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from projects_deformable_detr import model_zoo, zoo
from projects_deformable_detr.checkpoint import save_detector, write_official
from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.cli.main import main
from projects_deformable_detr.engine import is_installed
from projects_deformable_detr.modeling import Targets
from projects_deformable_detr.zoo.coco_classes import THINGS

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
SNIPPETS = [text for language, text in BLOCKS if language == "python"]
SHELL = "".join(text for language, text in BLOCKS if not language).replace("\\\n", " ")
COMMANDS = [shlex.split(line, comments=True) for line in SHELL.splitlines() if shlex.split(line, comments=True)]
PUBLISHED = "deformable_detr_r50_two_stage"
SMALL = f"_BASE_: {model_zoo.config_file('quickstart')}\nMODEL:\n  DEVICE: cpu\nDATASETS:\n  TRAIN: [coco_2017_train]\n"


@pytest.fixture(scope="module")
def small_model():
    """Returns the quickstart's model with random weights for COCO's classes."""
    torch.manual_seed(0)
    return model_zoo.get("quickstart", num_classes=len(THINGS), engine="standalone").eval()


@pytest.fixture
def folder(tmp_path, monkeypatch, small_model):
    """Returns the working directory: images, a data set, weights, and small models in place of the published ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("projects_deformable_detr.data.catalog._registered", {})
    if is_installed("detectron2"):
        from detectron2.data import DatasetCatalog, MetadataCatalog

        for name in {"train.json", "val.json"} & set(DatasetCatalog):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    for name in ("street.jpg", "photos/a.jpg", *(f"cells/images/{i}.jpg" for i in range(4))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (90, 120, 40)).save(tmp_path / name)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(4)]
    boxes = [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0}
        for i in range(4)
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    for split in ("train", "val"):
        (tmp_path / f"cells/{split}.json").write_text(json.dumps(content))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/deformable_detr_r50_50ep.yaml").write_text(SMALL)
    save_detector(tmp_path / "model_final.pth", small_model, iteration=-1, cfg_text="", class_names=THINGS)
    weights = tmp_path / "published.pth"
    torch.save({"model": small_model.state_dict()}, weights)
    write_official(tmp_path / "detr-r50.pth", small_model)
    (tmp_path / "detr_r50_500ep").write_text(SMALL)
    monkeypatch.setitem(zoo.ENTRIES, PUBLISHED, dataclasses.replace(zoo.ENTRIES[PUBLISHED], config="quickstart"))
    monkeypatch.setattr(zoo, "download", lambda name: weights)
    return tmp_path


@pytest.mark.parametrize("text", SNIPPETS, ids=[text.splitlines()[-1][:30] for text in SNIPPETS])
def test_snippet(text, folder):
    if "detectron2" in text and not is_installed("detectron2"):
        pytest.skip("Detectron2 is not installed")
    target = Targets(labels=torch.tensor([3]), boxes=torch.tensor([[0.5, 0.5, 0.2, 0.4]]))
    names = {
        "image": np.zeros((48, 64, 3), np.uint8),
        "images": torch.zeros(1, 3, 64, 64),
        "padding_mask": torch.zeros(1, 64, 64, dtype=torch.bool),
        "targets": [target],
    }
    exec(text, names)
    if "detections" in names:
        assert len(names["detections"].boxes) == len(names["detections"].names)
        assert Image.open("out.png").size[0] >= 64
    elif "instances" in names:
        assert len(names["instances"]) == 100
    else:
        assert sum(names["losses"].values()).isfinite()


def test_training_and_prediction(folder):
    commands = [command for command in COMMANDS if command[0] == "deformable-detr"]
    assert [command[1] for command in commands] == ["predict", "train", "predict", "convert"]
    for _, *words in commands:
        words = ["1" if before == "--epochs" else word for before, word in zip(["", *words], words, strict=False)]
        options = ["SOLVER.IMS_PER_BATCH", "2"] if words[0] == "train" else []
        assert main([*words, *options]) == 0, words
    assert Path("output/cells/model_final.pth").is_file() and Path("detector.pth").is_file()
    assert {path.name for path in Path("predictions").iterdir()} >= {"street.jpg"}
    assert {path.name for path in Path("predictions_cells").iterdir()} >= {"0.jpg", "3.jpg"}


def test_commands_with_detectron2_name_configs_and_flags():
    commands = [command[2:] for command in COMMANDS if command[:2] == ["python", "train_net.py"]]
    for words in commands:
        args = argument_parser().parse_args(words)
        assert (ROOT / args.config_file).is_file() and len(args.opts) in (0, 2)
    assert len(commands) == 3


@pytest.mark.parametrize("command", [command for command in COMMANDS if command[0] in ("make", "pip")], ids=" ".join)
def test_targets_and_folders_exist(command):
    if command[0] == "make":
        subprocess.run([*command, "--dry-run"], cwd=ROOT, check=True, capture_output=True)
    else:
        folders = [word.partition("[")[0] for word in command[2:]]
        assert all((ROOT / folder / "pyproject.toml").is_file() for folder in folders)


def test_all_commands_are_covered():
    assert {command[0] for command in COMMANDS} == {"deformable-detr", "python", "make", "pip"}
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_to_files_and_headings(path):
    for file, heading in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", path.read_text()):
        target = path.parent / file if file else path
        assert target.exists(), file
        assert not heading or heading in headings(target), f"{file}#{heading}"


def headings(path):
    """Returns the anchors of a Markdown file's headings, as on GitHub."""
    titles = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
