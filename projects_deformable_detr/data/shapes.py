"""A data set of synthetic scenes in COCO's format, for demonstrations and tests.

    python -m projects_deformable_detr.data.shapes --out datasets/shapes --train 4000 --val 500

Six classes of shapes, from 6 pixels to most of the image, overlap in front of textured and cluttered backgrounds.
Boxes, areas and polygons are those of the *visible* part of a shape inside the image, as in COCO; at least 70 % of
every shape is visible. Image i of a split depends on the seed, the split and i alone: a larger data set begins
with the images of a smaller one.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .catalog import datasets_root
from .draws import Draws
from .outlines import mask_to_polygons
from .problems import DatasetError
from .scene import CLASS_NAMES, FINE, Scene, draw_scene

VERSION = 1  # of the scenes: raised when the same seed gives other ones
_SPLITS = ("train", "val")
_MIN_SIDE = 32


def make_scene(seed: int, split: str, index: int, size: tuple[int, int]) -> Scene:
    """Image ``index`` (from 0) of a split: ``"train"`` or ``"val"``.

    Args:
        size: (smallest, largest) side in pixels; height and width are drawn from it independently.
    """
    draws = Draws(seed, _SPLITS.index(split), index)
    height, width = draws.integer(*size), draws.integer(*size)
    return draw_scene(draws, height, width)


def annotate(scene: Scene) -> list[dict[str, Any]]:
    """COCO annotations of a scene without ``id`` and ``image_id``, from the back to the front; category ids from 1."""
    annotations = []
    for item in scene.objects:
        mask = (scene.owners == item.index).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        annotations.append(
            {
                "category_id": item.label + 1,
                "bbox": [left / FINE, top / FINE, width / FINE, height / FINE],
                "area": int(np.count_nonzero(mask)) / FINE**2,
                "iscrowd": 0,
                "segmentation": mask_to_polygons(mask, FINE),
            }
        )
    return annotations


def generate(
    root: str | Path,
    *,
    num_train: int = 4000,
    num_val: int = 500,
    size: int | tuple[int, int] = (128, 160),
    seed: int = 0,
) -> None:
    """Writes ``train/``, ``val/`` and ``annotations/instances_{train,val}.json`` below ``root``.

    An annotation file appears only when all its images are there.

    Args:
        num_train, num_val: numbers of images; a split of 0 images is not written.
        size: side of the images in pixels, or (smallest, largest).
        seed: >= 0; another seed is another data set.

    Raises:
        DatasetError: for numbers out of range, or a folder that cannot be written.
    """
    low, high = (size, size) if isinstance(size, int) else size
    if low < _MIN_SIDE or high < low:
        raise DatasetError(f"image sizes {low} to {high}: choose sides of at least {_MIN_SIDE}, the smaller first")
    if min(num_train, num_val, seed) < 0:
        raise DatasetError(f"{num_train} and {num_val} images, seed {seed}: none can be negative")
    try:
        for split, count in zip(_SPLITS, (num_train, num_val), strict=True):
            if count:
                _write_split(Path(root), split, count, (low, high), seed)
    except OSError as error:
        raise DatasetError(f"cannot write to {error.filename or root}: {error.strerror}; name another --out") from error


def _write_split(root: Path, split: str, count: int, size: tuple[int, int], seed: int) -> None:
    folder, json_file = root / split, root / "annotations" / f"instances_{split}.json"
    folder.mkdir(parents=True, exist_ok=True)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.unlink(missing_ok=True)  # it would describe other images while these are written
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = make_scene(seed, split, index, size)
        name = f"{index + 1:06d}.jpg"
        _write_image(folder / name, scene)
        height, width = scene.image.shape[:2]
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for item in annotate(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **item})
    content = {
        "info": {"description": "Synthetic shapes", "version": VERSION, "seed": seed, "size": list(size)},
        "licenses": [],
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASS_NAMES, 1)],
        "images": images,
        "annotations": annotations,
    }
    partial = json_file.with_suffix(".partial")
    partial.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    os.replace(partial, json_file)


def _write_image(path: Path, scene: Scene) -> None:
    fine, encoded = cv2.imencode(".jpg", scene.image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not fine:
        raise RuntimeError(f"OpenCV could not encode {path.name}")
    path.write_bytes(encoded.tobytes())  # unlike cv2.imwrite, it says why it fails


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m projects_deformable_detr.data.shapes",
        description="Makes a COCO-format data set of synthetic scenes.",
    )
    default = datasets_root() / "shapes"
    parser.add_argument("--out", type=Path, default=default, help="folder to write to (default: %(default)s)")
    parser.add_argument("--train", type=int, default=4000, help="images to train on (default: %(default)s)")
    parser.add_argument("--val", type=int, default=500, help="images to validate on (default: %(default)s)")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[128, 160],
        help="side of the images in pixels, or smallest and largest (default: 128 160)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another data set (default: %(default)s)")
    options = parser.parse_args(arguments)
    if len(options.size) > 2:
        parser.error("--size takes one number or two")
    cv2.setNumThreads(1)  # images this small are slower with threads
    try:
        generate(
            options.out,
            num_train=options.train,
            num_val=options.val,
            size=(options.size[0], options.size[-1]),
            seed=options.seed,
        )
    except DatasetError as error:
        parser.error(str(error))
    print(f"{options.train} images to train on and {options.val} to validate on are in {options.out}")


if __name__ == "__main__":
    main()
