"""docs/migrating.md: its commands run, and its config keys and links exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from projects_deformable_detr import build_detector, get_cfg
from projects_deformable_detr.checkpoint import write_official
from projects_deformable_detr.cli.main import main
from projects_deformable_detr.config.model import export_hugging_face

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines()]
VARIANTS = {
    "configs/deformable_detr_r50_50ep.yaml": "multi_scale",
    "configs/deformable_detr_r50_box_refine_50ep.yaml": "box_refine",
    "configs/detr_r50_500ep.yaml": "detr",
}


def test_commands_run_on_small_files(make_cfg, tmp_path, monkeypatch):
    """Runs the commands in order, with tiny detectors and configs in place of the named files."""
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    assert COMMANDS
    for line in COMMANDS:
        words = shlex.split(line)[1:]
        source, target = words[1:3]
        if "--config-file" in words:
            config = words[words.index("--config-file") + 1]
            assert (ROOT / config).is_file()
            cfg = make_cfg(VARIANTS[config], NUM_CLASSES=91)
            if source.endswith(".pth"):
                write_official(source, build_detector(cfg))
            else:
                export_hugging_face(cfg, source, build_detector(cfg))
            cfg.MODEL.DETR.NUM_CLASSES = 0
            cfg.DATASETS.TRAIN = ("coco_2017_train",)
            Path(config).write_text(cfg.dump())
        assert main(words) == 0, line
        assert Path(target).exists()


def test_python_blocks_run():
    code = "\n".join(
        [*(block for language, block in BLOCKS if language == "python"), "import MultiScaleDeformableAttention"]
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


@pytest.mark.parametrize(
    "key", sorted({*re.findall(r"\b[A-Z]\w+(?:\.[A-Z]\w+)+\b", TEXT.replace("`MODEL.DETR.`", ""))})
)
def test_config_keys_exist(key):
    node = get_cfg("standalone")
    for name in key.split("."):
        assert name in node, key
        node = node[name]


def test_links_exist():
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (ROOT / "docs" / link).is_file(), link
