"""docs/export.md: the snippets run, in order."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import save_detector
from projects_deformable_detr.cli.main import main

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_snippets_run(make_cfg, tmp_path, monkeypatch):
    for package in ("onnxruntime", "onnxscript", "openvino", "nncf", "torchao"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    cfg = make_cfg("two_stage", ENC_LAYERS=1, DEC_LAYERS=1)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 128, 160
    folder = Path("output/quickstart")
    folder.mkdir(parents=True)
    names = ("ant", "bee", "cow", "dog", "elk")
    save_detector(folder / "model_final.pth", build_detector(cfg), iteration=0, cfg_text=cfg.dump(), class_names=names)
    Path("photos").mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(100, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("street.jpg")
    shutil.copy("street.jpg", "photos/1.jpg")
    variables: dict[str, object] = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(block, variables)
        for line in block.splitlines() if language == "sh" else ():
            words = shlex.split(line)
            assert words[0] == "pip" or main(words[1:]) == 0, line
    assert np.asarray(variables["boxes"]).shape == (35, 4)
    assert {path.name for path in Path.cwd().iterdir()} >= {"model_int8.pt2", "model_int8.xml", "model.torchscript"}
