"""A data set of colored boxes and a model so small that a whole training takes seconds."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from projects_deformable_detr.cli.arguments import argument_parser

pytest.importorskip("lightning", reason="the standalone engine needs lightning")

COLORS = {5: (230, 40, 40), 9: (40, 40, 230)}  # category id: color

CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, NORM: GN, STEM_OUT_CHANNELS: 32, RES2_OUT_CHANNELS: 32, OUT_FEATURES: [res4, res5]}
  DETR:
    HIDDEN_DIM: 32
    NHEADS: 4
    ENC_LAYERS: 1
    DEC_LAYERS: 2
    DIM_FEEDFORWARD: 32
    NUM_OBJECT_QUERIES: 8
    IN_FEATURES: [res4, res5]
    NUM_FEATURE_LEVELS: 2
INPUT:
  MIN_SIZE_TRAIN: [32, 48]
  MAX_SIZE_TRAIN: 64
  MIN_SIZE_TEST: 48
  MAX_SIZE_TEST: 64
  CROP: {RESIZE: [40, 48], SIZE: [24, 40]}
DATASETS: {TRAIN: [tiny_train], TEST: [tiny_val]}
DATALOADER: {NUM_WORKERS: 0}
SOLVER:
  IMS_PER_BATCH: 4
  BASE_LR: 0.002
  BACKBONE_MULTIPLIER: 1.0
  MAX_ITER: 24
  STEPS: [20]
  WARMUP_ITERS: 4
  CHECKPOINT_PERIOD: 8
  CHECKPOINT_KEEP: 0
TEST: {EVAL_PERIOD: 12}
SEED: 3
"""


def write_data_set(folder: Path, count: int, seed: int, counts: Sequence[int] = ()) -> Path:
    """Writes ``count`` images of two sizes with one or two colored boxes each; returns the JSON file.

    With ``counts``, all images have one size, and these numbers of boxes.
    """
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for image_id in range(1, count + 1):
        height, width = (40, 56) if image_id % 3 or counts else (56, 40)
        pixels = rng.integers(90, 110, (height, width, 3), dtype=np.uint8)
        for _ in range(counts[image_id - 1] if counts else int(rng.integers(1, 3))):
            w, h = (int(side) for side in rng.integers(12, 28, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            category = int(rng.choice(list(COLORS)))
            pixels[y : y + h, x : x + w] = COLORS[category]
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category, **box})
        name = f"{image_id}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
    categories = [{"id": 9, "name": "blue"}, {"id": 5, "name": "red"}]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture(scope="session")
def write_tiny() -> Callable[..., Path]:
    """Returns `write_data_set`."""
    return write_data_set


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, str]]:
    """``--register`` arguments of ``tiny_train`` (16 images) and ``tiny_val`` (7)."""
    registered = []
    for name, count, seed in (("tiny_train", 16, 0), ("tiny_val", 7, 1)):
        folder = tmp_path_factory.mktemp(name)
        registered.append((name, str(write_data_set(folder, count, seed)), str(folder)))
    return registered


@pytest.fixture(scope="session")
def make_args(
    data_sets: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Namespace]:
    """``make_args(output_dir, "--resume", "SOLVER.MAX_ITER", 10)``: parsed arguments of the tiny training."""
    config = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.write_text(CONFIG)

    def make(output_dir: Path, *arguments: object) -> Namespace:
        words: list[object] = ["--config-file", config]
        for item in data_sets:
            words += ["--register", *item]
        return argument_parser().parse_args([str(word) for word in (*words, *arguments, "OUTPUT_DIR", output_dir)])

    return make
