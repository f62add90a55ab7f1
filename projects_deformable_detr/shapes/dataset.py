"""Generates the shapes data set: synthetic scenes in COCO instances and panoptic formats.

Shapes of six classes, from 6 pixels to most of the image, overlap in front of textured and cluttered backgrounds.
Boxes, areas and polygons describe the visible part of a shape inside the image, as in COCO; at least 70% of every
shape is visible. Image i of a split depends only on the seed, the split and i, so that a larger data set starts with
the images of a smaller one. In the panoptic annotations, shapes are things, and there are three stuff classes.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import ArgumentError, NonNegativeInt, UserError, check_ranges
from .polygons import mask_to_polygons
from .random import Random
from .scene import CATEGORIES, CLASS_NAMES, FINE, Scene, draw_scene
from .textures import STUFF_NAMES, Pixels

VERSION = 1  # incremented when the scenes of a seed change
_SPLITS = ("train", "val")
_MIN_SIDE = 32


def make_scene(seed: int, split: str, index: int, size: tuple[int, int]) -> Scene:
    """Returns one scene of a data set.

    Args:
        seed: seed of the data set.
        split: ``"train"`` or ``"val"``.
        index: index of the image, from 0.
        size: (minimum, maximum) side in pixels; height and width are sampled independently.
    """
    random = Random(seed, _SPLITS.index(split), index)
    height, width = random.integer(*size), random.integer(*size)
    return draw_scene(random, height, width)


def annotate(scene: Scene) -> list[dict[str, Any]]:
    """Returns COCO annotations of a scene, back to front, without ``id`` and ``image_id``; category ids start at 1."""
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
    """Returns the panoptic segments of a scene; each stuff class is one segment, as in COCO.

    Returns:
        Segment ids (H, W) below 256, sampled at pixel centers, and for each segment ``id``, ``category_id`` (from 1, in
        the order of `CLASS_NAMES` and `STUFF_NAMES`), ``area`` and ``bbox`` in pixels, and ``iscrowd``.
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
    num_train: NonNegativeInt = 4000,
    num_val: NonNegativeInt = 500,
    size: int | tuple[int, int] = (128, 160),
    seed: NonNegativeInt = 0,
) -> None:
    """Writes the data set.

    The files below ``root`` are ``train/``, ``val/`` and ``annotations/instances_{train,val}.json``, and the panoptic
    annotations ``panoptic_train/``, ``panoptic_val/`` and ``annotations/panoptic_{train,val}.json``. An annotation file
    is written after its images.

    Args:
        root: folder to write to.
        num_train, num_val: numbers of images; a split of 0 images is not written.
        size: side of the images in pixels, or (minimum, maximum).
        seed: seed of all scenes, at least 0.

    Raises:
        ArgumentError: for numbers out of range.
        UserError: if the folder cannot be written.
    """
    check_ranges(generate, locals())
    low, high = (size, size) if isinstance(size, int) else size
    if low < _MIN_SIDE or high < low:
        raise ArgumentError("size", f"must be at least {_MIN_SIDE}, the minimum first, got {low} to {high}")
    try:
        for split, count in zip(_SPLITS, (num_train, num_val), strict=True):
            if count:
                _write_split(Path(root), split, count, (low, high), seed)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or root}: {error.strerror}; choose another folder") from error


def _write_split(root: Path, split: str, count: int, size: tuple[int, int], seed: int) -> None:
    folder, segments_folder, annotation_folder = root / split, root / f"panoptic_{split}", root / "annotations"
    for made in (folder, segments_folder, annotation_folder):
        made.mkdir(parents=True, exist_ok=True)
    kinds = ("instances", "panoptic")
    for kind in kinds:  # existing annotations would not match the new images
        (annotation_folder / f"{kind}_{split}.json").unlink(missing_ok=True)
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    for index in range(count):
        scene = make_scene(seed, split, index, size)
        identifier = {"image_id": index + 1}
        name, segments_name = f"{index + 1:06d}.jpg", f"{index + 1:06d}.png"
        _write_image(folder / name, scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        height, width = scene.image.shape[:2]
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        instances += [{"id": len(instances) + i, **identifier, **item} for i, item in enumerate(annotate(scene), 1)]
        ids, segments = annotate_panoptic(scene)
        _write_image(segments_folder / segments_name, np.dstack((ids, 0 * ids, 0 * ids)).astype(np.uint8))  # id: red
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


def _write_image(path: Path, pixels: Pixels, options: Sequence[int] = ()) -> None:
    success, encoded = cv2.imencode(path.suffix, pixels[:, :, ::-1], options)
    if not success:
        raise RuntimeError(f"OpenCV could not encode {path.name}")
    path.write_bytes(encoded.tobytes())  # unlike cv2.imwrite, raises an informative error
