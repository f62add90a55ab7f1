"""A tiny data set and a tiny model, so that each test takes seconds."""

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from projects_deformable_detr.cli.arguments import argument_parser

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for the modules that tests share

CLASS_COLORS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
CATEGORY_IDS = {"red": 3, "blue": 7}  # not 1 and 2, so that ids must be mapped in both directions


def write_coco(folder: Path, images: int, seed: int = 0) -> tuple[str, str]:
    """Writes gray images with one or two rectangles each; returns (JSON file, image folder)."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    records["categories"] = [{"id": value, "name": name} for name, value in CATEGORY_IDS.items()]
    for index in range(images):
        height, width = (64, 80) if index % 2 == 0 else (80, 64)
        pixels = np.full((height, width, 3), 128, dtype=np.uint8)
        for name in list(CLASS_COLORS)[: 1 + index % 2]:
            x, y = int(generator.integers(0, width - 36)), int(generator.integers(0, height - 36))
            w, h = (int(side) for side in generator.integers(20, 36, 2))
            pixels[y : y + h, x : x + w] = CLASS_COLORS[name]
            box = {"bbox": [x, y, w, h], "area": w * h, "category_id": CATEGORY_IDS[name], "iscrowd": 0}
            records["annotations"].append({"id": len(records["annotations"]) + 1, "image_id": index + 1, **box})
        Image.fromarray(pixels).save(folder / f"{index}.png")
        records["images"].append({"id": index + 1, "file_name": f"{index}.png", "height": height, "width": width})
    (folder / "annotations.json").write_text(json.dumps(records))
    return str(folder / "annotations.json"), str(folder)


@pytest.fixture(scope="session")
def coco_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_coco(tmp_path_factory.mktemp("tiny") / "data", images=8)


@pytest.fixture(scope="session")
def tiny_name(coco_files: tuple[str, str]) -> str:
    """Registers a data set with Detectron2's function."""
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances("tiny_rectangles", {}, *coco_files)
    return "tiny_rectangles"


# Command-line options of the tiny model.
TINY_OPTIONS: dict[str, Any] = {
    "MODEL.DEVICE": "cpu",
    "SOLVER.CHECKPOINT_KEEP": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.DETR.HIDDEN_DIM": 64,
    "MODEL.DETR.NHEADS": 4,
    "MODEL.DETR.ENC_LAYERS": 1,
    "MODEL.DETR.DEC_LAYERS": 2,
    "MODEL.DETR.DIM_FEEDFORWARD": 64,
    "MODEL.DETR.NUM_OBJECT_QUERIES": 10,
    "MODEL.DETR.NUM_FEATURE_LEVELS": 3,
    "MODEL.DETR.DROPOUT": 0.0,
    "MODEL.WEIGHTS": "",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MAX_SIZE_TRAIN": 96,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 96,
    "INPUT.CROP.ENABLED": False,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 1e-3,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.STEPS": "()",
    "SOLVER.MAX_ITER": 4,
    "SEED": 1,
}


def tiny_options(**overrides: Any) -> list[str]:
    """Returns KEY VALUE …; keys of ``overrides`` have __ in place of dots."""
    options = TINY_OPTIONS | {key.replace("__", "."): value for key, value in overrides.items()}
    return [str(part) for pair in options.items() for part in pair]


@pytest.fixture(scope="session")
def tiny_model() -> dict[str, Any]:
    """Returns ``TINY_OPTIONS``."""
    return TINY_OPTIONS


@pytest.fixture
def make_cfg(tiny_name: str, tmp_path: Path) -> Callable[..., Any]:
    """Returns ``make_cfg(KEY__KEY=value…)`` for the tiny model on the tiny data set."""

    def make(**overrides: Any) -> Any:
        from projects_deformable_detr import get_cfg

        cfg = get_cfg("detectron2")
        cfg.OUTPUT_DIR = str(tmp_path / "output")
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (tiny_name,)
        cfg.merge_from_list(tiny_options(**overrides))
        return cfg

    return make


def arguments(*options, register=(), eval_only=False, resume=False, config_file="", num_gpus=1):
    args = argument_parser().parse_args([])
    vars(args).update(
        config_file=config_file,
        num_gpus=num_gpus,
        resume=resume,
        overwrite=not resume,
        eval_only=eval_only,
        register=list(register),
        engine="detectron2",
        opts=[str(option) for option in options],
    )
    return args


def make_job(folder, coco_files, *extra, **keywords):
    """Returns the arguments of a run on a data set given by ``--register``."""
    name = f"job_{zlib.crc32(repr(coco_files).encode())}"  # registrations last for the session
    options = tiny_options(OUTPUT_DIR=folder / "output", DATASETS__TRAIN=f"('{name}',)", DATASETS__TEST=f"('{name}',)")
    return arguments(*options, *extra, register=[(name, *coco_files)], **keywords)


@pytest.fixture(scope="session")
def job() -> Callable[..., argparse.Namespace]:
    """Returns ``make_job``."""
    return make_job


@pytest.fixture(scope="module")
def builtin_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Writes small data sets in every format; registers them as Detectron2 does for DETECTRON2_DATASETS."""
    import dataset_formats
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import builtin

    from projects_deformable_detr.detectron2_plugin import import_aliases

    import_aliases.install()  # for Detectron2's Cityscapes functions
    folder = tmp_path_factory.mktemp("formats")
    dataset_formats.write_all(folder)
    saved = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    DatasetCatalog.data.clear()
    MetadataCatalog.data.clear()
    for register in (builtin.register_all_coco, builtin.register_all_lvis, builtin.register_all_cityscapes,
                     builtin.register_all_cityscapes_panoptic, builtin.register_all_pascal_voc):  # fmt: skip
        register(str(folder))
    yield folder
    for catalog, entries in zip((DatasetCatalog, MetadataCatalog), saved, strict=True):
        catalog.data.clear()
        catalog.data.update(entries)
