"""docs/inference.md: all of its snippets run, in order."""

import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from projects_deformable_detr.cli.main import main

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "inference.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
CLASSES = ("star", "ring", "cat", "dog", "elk")


def test_snippets_run(save_tiny, files, tmp_path, monkeypatch):
    pytest.importorskip("supervision")
    pytest.importorskip("trackers")
    monkeypatch.chdir(tmp_path)
    Path("output/quickstart").mkdir(parents=True)
    Path("photos").mkdir()
    shutil.move(save_tiny(class_names=CLASSES), "output/quickstart/model_final.pth")
    shutil.copy(files[0], "street.jpg")
    shutil.copy(files[1], "photos/1.jpg")
    video = cv2.VideoWriter("clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(2):
        video.write(np.zeros((48, 64, 3), np.uint8))
    video.release()
    Path("val").mkdir()
    shutil.copy(files[0], "val/1.png")
    image = {"id": 1, "file_name": "1.png", "width": 56, "height": 40}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, 1)]
    Path("val.json").write_text(json.dumps({"images": [image], "annotations": [box], "categories": categories}))
    names: dict[str, object] = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(block, names)
        for line in block.splitlines() if language == "sh" else ():
            words = [word.replace("photos/*.jpg", "photos/1.jpg") for word in shlex.split(line)]
            assert words[0] == "deformable-detr" and main(words[1:]) == 0, line
    assert Path("street_detections.png").is_file() and Path("predictions/street.jpg").is_file()
    assert Path("tracked/clip.mp4").is_file() and Path("results/detections.csv").is_file()
