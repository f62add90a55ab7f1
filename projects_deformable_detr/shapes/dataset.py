"""A data set of synthetic scenes in COCO's format, for demonstrations and tests.

    python -m projects_deformable_detr.shapes --out datasets/shapes --train 4000 --val 500

Six classes of shapes, from 6 pixels to most of the image, overlap in front of textured and cluttered backgrounds.
Boxes, areas and polygons are those of the *visible* part of a shape inside the image, as in COCO; at least 70 % of
every shape is visible. Image i of a split depends on the seed, the split and i alone: a larger data set begins
with the images of a smaller one.

The same images have panoptic annotations: the shapes are things, the surfaces behind them stuff of three kinds.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data.catalog import datasets_root
from ..data.panoptic_format import encode_png, ids_to_colours
from ..data.problems import DatasetError
from .draws import Draws
from .outlines import mask_to_polygons
from .scene import CATEGORIES, CLASS_NAMES, FINE, Scene, draw_scene
from .textures import STUFF_NAMES

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


def annotate_panoptic(scene: Scene) -> tuple[np.ndarray[Any, np.dtype[np.int32]], list[dict[str, Any]]]:
    """A scene's segments: all pixels of one kind of stuff are one segment, as in COCO's panoptic format.

    Returns:
        (H, W) segment ids, each pixel's that of its middle, and for each segment its ``id``, ``category_id`` (shapes
        from 1 in the order of `CLASS_NAMES`, then `STUFF_NAMES`), ``area`` and ``bbox`` in pixels, and ``iscrowd``.
    """
    owners = scene.owners[FINE // 2 :: FINE, FINE // 2 :: FINE].astype(np.int32)
    first = len(scene.objects) + 1
    ids = np.where(owners > 0, owners, scene.stuff + first).astype(np.int32)
    categories = {item.index: item.label + 1 for item in scene.objects}
    categories |= {first + index: len(CLASS_NAMES) + 1 + index for index in range(len(STUFF_NAMES))}
    segments = []
    for identifier in np.unique(ids).tolist():
        mask = (ids == identifier).astype(np.uint8)
        box = [int(value) for value in cv2.boundingRect(mask)]
        area = int(np.count_nonzero(mask))
        category = categories[identifier]
        segments.append({"id": identifier, "category_id": category, "area": area, "bbox": box, "iscrowd": 0})
    return ids, segments


def generate(
    root: str | Path,
    *,
    num_train: int = 4000,
    num_val: int = 500,
    size: int | tuple[int, int] = (128, 160),
    seed: int = 0,
) -> None:
    """Writes ``train/``, ``val/`` and ``annotations/instances_{train,val}.json`` below ``root``.

    Beside them, the panoptic annotations: ``panoptic_train/``, ``panoptic_val/`` and
    ``annotations/panoptic_{train,val}.json``. An annotation file appears only when all its images are there.

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
    folder, segments_folder, annotation_folder = root / split, root / f"panoptic_{split}", root / "annotations"
    for made in (folder, segments_folder, annotation_folder):
        made.mkdir(parents=True, exist_ok=True)
    kinds = ("instances", "panoptic")
    for kind in kinds:  # they would describe other images while these are written
        (annotation_folder / f"{kind}_{split}.json").unlink(missing_ok=True)
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    for index in range(count):
        scene = make_scene(seed, split, index, size)
        identifier = {"image_id": index + 1}
        name, segments_name = f"{index + 1:06d}.jpg", f"{index + 1:06d}.png"
        _write_image(folder / name, scene)
        height, width = scene.image.shape[:2]
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        instances += [{"id": len(instances) + i, **identifier, **item} for i, item in enumerate(annotate(scene), 1)]
        ids, segments = annotate_panoptic(scene)
        (segments_folder / segments_name).write_bytes(encode_png(ids_to_colours(ids)))
        panoptic.append({**identifier, "file_name": segments_name, "segments_info": segments})
    things = [{"id": item["id"], "name": item["name"]} for item in CATEGORIES if item["isthing"]]
    common = {
        "info": {"description": "Synthetic shapes", "version": VERSION, "seed": seed, "size": list(size)},
        "licenses": [],
    }
    for kind, categories, annotations in zip(kinds, (things, CATEGORIES), (instances, panoptic), strict=True):
        content = {**common, "categories": categories, "images": images, "annotations": annotations}
        _write_json(annotation_folder / f"{kind}_{split}.json", content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    os.replace(partial, path)


def _write_image(path: Path, scene: Scene) -> None:
    fine, encoded = cv2.imencode(".jpg", scene.image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not fine:
        raise RuntimeError(f"OpenCV could not encode {path.name}")
    path.write_bytes(encoded.tobytes())  # unlike cv2.imwrite, it says why it fails


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m projects_deformable_detr.shapes",
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
