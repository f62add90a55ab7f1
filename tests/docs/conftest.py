"""Runs the shell and Python blocks of documentation pages, in a folder with the files that a reader would have."""

import csv
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from projects_deformable_detr.cli.main import main

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCKS = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Values that replace those of the pages: the last one of a flag and of a key applies.
FLAGS = {"shapes": "--train 8 --val 5 --size 64", "val": "--latency-images 1", "train": "--engine standalone"}
KEYS = "SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0 SOLVER.CHECKPOINT_PERIOD 1 SEED 1 "
KEYS += "INPUT.MIN_SIZE_TRAIN (64,) INPUT.MAX_SIZE_TRAIN 96 INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 96"


def shortened(words: list[str]) -> list[str]:
    """Returns the arguments of ``deformable-detr`` for small data and a short training."""
    command, *rest = words
    rest = ["1" if before == "--epochs" else word for before, word in zip(["", *rest], rest, strict=False)]
    words = [command, *rest] if command == "shapes" else [command, *FLAGS.get(command, "").split(), *rest]
    if command in ("shapes", "val"):
        words += FLAGS[command].split()
    if command == "train":
        words += [*KEYS.split(), *([] if "--epochs" in words else ["SOLVER.MAX_ITER", "2"])]
    return words


@pytest.fixture(scope="session")
def run_page(load_script: Callable[[str], ModuleType]) -> Callable[[str], dict[str, object]]:
    """Returns ``run_page(path)``, which runs a page of docs/ in the working directory and returns its variables."""

    def run_line(line: str) -> None:
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:  # environment variables
            del words[0]
        if words[0] == "deformable-detr":
            assert main(shortened(words[1:])) == 0, line
        elif words[0] == "python" and words[1].startswith("tools/"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", words[1:])
                load_script(words[1]).main()
        elif words[0] == "pip":
            named = [DOCS.parent / word.partition("[")[0] for word in words[2:]]
            assert all((path / "pyproject.toml").is_file() for path in named) or "projects-deformable-detr" in line
        elif words[:3] not in (["python3", "-m", "venv"], [".", ".venv/bin/activate"]) and words[0] != ".":
            subprocess.run(["python", *words[1:]] if words[0] == "python" else words, check=True)

    def run(path: str) -> dict[str, object]:
        names: dict[str, object] = {"__name__": "page"}
        for language, block in BLOCKS.findall((DOCS / path).read_text(encoding="utf-8")):
            if language == "python":
                exec(compile(block, path, "exec"), names)
            for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
                run_line(line)
        return names

    return run


@pytest.fixture(scope="module")  # restores the working directory for the tests of other files
def workspace(tmp_path_factory: pytest.TempPathFactory, run_page: Callable[[str], dict[str, object]]) -> Iterator[Path]:
    """The working directory of a reader who has followed the quick start and the first tutorial."""
    folder = tmp_path_factory.mktemp("reader")
    random = np.random.default_rng(0)
    rows = []
    (folder / "cells/images").mkdir(parents=True)
    for index in range(10):
        name = f"{index + 1:04d}.jpg"
        Image.fromarray(random.integers(256, size=(48, 64, 3), dtype=np.uint8)).save(folder / "cells/images" / name)
        rows += [[name, kind, 8 + index, 8, 30 + index, 40] for kind in ("red", "white")]
    with (folder / "cells/labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "class", "x1", "y1", "x2", "y2"], *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DETECTRON2_DATASETS", raising=False)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setattr("projects_deformable_detr.data.catalog._registered", {})
        run_page("quickstart.md")
        run_page("tutorials/own_data.md")
        yield folder
