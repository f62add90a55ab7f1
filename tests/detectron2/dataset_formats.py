"""Writes a small data set of rectangles in each format of Detectron2's built-in data sets.

Images are 64 x 96 pixels: sky above, road below, a car and one or two persons, which do not overlap.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from projects_deformable_detr.data.segment_ids import encode_png

SIZE = (64, 96)  # height, width
COLORS = {"sky": (90, 150, 230), "road": (90, 90, 90), "car": (200, 30, 40), "person": (240, 210, 40)}
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Scene:
    """Objects of an image as (kind, x, y, width, height) in pixels; the rest is sky above and road below."""

    number: int
    objects: tuple[tuple[str, int, int, int, int], ...]

    def mask(self, index: int) -> np.ndarray:
        """Returns the mask (H, W) of one object."""
        _, x, y, w, h = self.objects[index]
        mask = np.zeros(SIZE, bool)
        mask[y : y + h, x : x + w] = True
        return mask

    def stuff(self) -> dict[str, np.ndarray]:
        """Returns the masks (H, W) of sky and road."""
        free = ~np.any([self.mask(index) for index in range(len(self.objects))], axis=0)
        above = np.arange(SIZE[0])[:, None] < SIZE[0] // 2
        return {"sky": free & above, "road": free & ~above}

    def segments(self) -> list[tuple[str, np.ndarray]]:
        """Returns kinds and masks of objects, then stuff."""
        return [(item[0], self.mask(index)) for index, item in enumerate(self.objects)] + list(self.stuff().items())

    def pixels(self) -> np.ndarray:
        """Returns the image (H, W, 3) uint8."""
        image = np.zeros((*SIZE, 3), np.uint8)
        for kind, mask in self.segments():
            image[mask] = COLORS[kind]
        return image


def scenes(split: str, count: int = 4) -> list[Scene]:
    """Returns the images of a split."""
    generator = np.random.default_rng(SPLITS.index(split))
    made = []
    for index in range(count):
        x, y = (int(generator.integers(0, side)) for side in (8, 20))
        objects = [("car", x, y, 30, 22), ("person", x + 36, y + 4, 12, 34)]
        if index % 2:
            objects.append(("person", x + 56, y + 6, 14, 30))
        made.append(Scene(index + 1, tuple(objects)))
    return made


def rectangle(x: int, y: int, w: int, h: int) -> list[float]:
    """Returns the polygon of a rectangle in COCO's format."""
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def write_all(root: Path) -> None:
    """Writes all formats where Detectron2 expects them below $DETECTRON2_DATASETS."""
    for split in SPLITS:
        made = scenes(split)
        write_coco(root / "coco", split, made)
        write_lvis(root, split, made)
        write_voc(root / "VOC2007", split, made)
        write_cityscapes(root / "cityscapes", split, made)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def _annotations(made: Iterable[Scene], ids: dict[str, int]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for scene in made:
        for kind, *box in scene.objects:
            item = {"bbox": box, "area": box[2] * box[3], "segmentation": [rectangle(*box)], "iscrowd": 0}
            found.append({"id": len(found) + 1, "image_id": scene.number, "category_id": ids[kind], **item})
    return found


def write_coco(root: Path, split: str, made: list[Scene]) -> None:
    """Writes instances, keypoints, panoptic segments, and the stuff labels of Detectron2's "separated" format."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    ids = {"person": 1, "car": 3, "road": 149, "sky": 187}
    things = [{"id": item["id"], "name": item["name"]} for item in COCO_CATEGORIES if item["isthing"]]
    classes = [{key: item[key] for key in ("id", "name", "isthing")} for item in COCO_CATEGORIES]
    labels = {item["id"]: index for index, item in enumerate(i for i in COCO_CATEGORIES if not i["isthing"])}
    images = [
        {"id": scene.number, "file_name": f"{scene.number:012d}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for scene in made
    ]
    annotated = []
    for scene, image in zip(made, images, strict=True):
        name = image["file_name"].replace(".jpg", ".png")
        _save(root / f"{split}2017" / image["file_name"], scene.pixels())
        segments = scene.segments()
        info, segment_ids = _panoptic(segments, ids, lambda index, kind: 1000 * index + 7)
        png = root / f"panoptic_{split}2017" / name
        png.parent.mkdir(parents=True, exist_ok=True)
        png.write_bytes(encode_png(segment_ids))
        annotated.append({"image_id": scene.number, "file_name": name, "segments_info": info})
        stuff = np.zeros(SIZE, np.uint8)
        for kind, mask in scene.stuff().items():
            stuff[mask] = labels[ids[kind]] + 1
        _save(root / f"panoptic_stuff_{split}2017" / name, stuff)
    content = {"images": images, "categories": things, "annotations": _annotations(made, ids)}
    _write_json(root / f"annotations/instances_{split}2017.json", content)
    content = {"images": images, "categories": classes, "annotations": annotated}
    _write_json(root / f"annotations/panoptic_{split}2017.json", content)
    persons = [item for item in _annotations(made, ids) if item["category_id"] == ids["person"]]
    for item in persons:
        item |= {"keypoints": [0, 0, 0] * 17, "num_keypoints": 0}
    content = {"images": images, "categories": things[:1], "annotations": persons}
    _write_json(root / f"annotations/person_keypoints_{split}2017.json", content)


def _panoptic(
    segments: list[tuple[str, np.ndarray]], ids: dict[str, int], number: Callable[[int, str], int]
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Returns ``segments_info`` and segment ids (H, W) int32."""
    info, segment_ids = [], np.zeros(SIZE, np.int32)
    for index, (kind, mask) in enumerate(segments, start=1):
        identifier = number(index, kind)
        segment_ids[mask] = identifier
        info.append({"id": identifier, "category_id": ids[kind], "iscrowd": 0, "area": int(mask.sum())})
    return info, segment_ids


def write_lvis(root: Path, split: str, made: list[Scene]) -> None:
    """Writes a file with all 1,203 categories that refers to COCO's images."""
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    ids = {item["name"]: item["id"] for item in LVIS_CATEGORIES}
    ids = {"person": ids["person"], "car": ids["car_(automobile)"]}
    categories = [{key: item[key] for key in ("id", "name", "synonyms", "frequency")} for item in LVIS_CATEGORIES]
    images = [
        {"id": scene.number, "height": SIZE[0], "width": SIZE[1],
         "neg_category_ids": [], "not_exhaustive_category_ids": [],
         "coco_url": f"http://images.test/{split}2017/{scene.number:012d}.jpg"}
        for scene in made
    ]  # fmt: skip
    content = {"images": images, "categories": categories, "annotations": _annotations(made, ids)}
    _write_json(root / f"lvis/lvis_v1_{split}.json", content)


def write_voc(root: Path, split: str, made: list[Scene]) -> None:
    """Writes an XML file per image, with pixels counted from 1."""
    names = []
    for scene in made:
        name = f"{split}{scene.number:06d}"
        names.append(name)
        _save(root / f"JPEGImages/{name}.jpg", scene.pixels())
        objects = "".join(
            f"<object><name>{kind}</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
            f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for kind, x, y, w, h in scene.objects
        )
        (root / "Annotations").mkdir(exist_ok=True)
        size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")


def write_cityscapes(root: Path, split: str, made: list[Scene]) -> None:
    """Writes images, polygons, label and instance images, and panoptic files."""
    from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

    known = {item["name"]: item for item in CITYSCAPES_CATEGORIES}
    ids = {kind: item["id"] for kind, item in known.items()}

    def number(index: int, kind: str) -> int:
        return ids[kind] * 1000 + index if known[kind]["isthing"] else ids[kind]

    images, annotated = [], []
    for scene in made:
        stem = f"town_{scene.number:06d}_000019"
        truth = root / f"gtFine/{split}/town/{stem}_gtFine"
        _save(root / f"leftImg8bit/{split}/town/{stem}_leftImg8bit.png", scene.pixels())
        segments = scene.segments()
        labels, train_ids, instances = (np.zeros(SIZE, kind) for kind in (np.uint8, np.uint8, np.uint16))
        for index, (kind, mask) in enumerate(segments):
            item = known[kind]
            labels[mask], train_ids[mask] = item["id"], item["trainId"]
            instances[mask] = item["id"] * 1000 + index if item["isthing"] else item["id"]
        for name, pixels in (("labelIds", labels), ("labelTrainIds", train_ids), ("instanceIds", instances)):
            _save(truth.with_name(f"{truth.name}_{name}.png"), pixels)
        half = SIZE[0] // 2
        outlines = [("sky", (0, 0, SIZE[1] - 1, half - 1)), ("road", (0, half, SIZE[1] - 1, SIZE[0] - 1))]
        outlines += [(kind, (x, y, x + w - 1, y + h - 1)) for kind, x, y, w, h in scene.objects]  # inclusive pixels
        polygons = [
            {"label": kind, "polygon": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]} for kind, (x1, y1, x2, y2) in outlines
        ]
        content = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": polygons}
        _write_json(truth.with_name(f"{truth.name}_polygons.json"), content)

        info, segment_ids = _panoptic(segments, ids, number)
        png = root / f"gtFine/cityscapes_panoptic_{split}/{stem}_gtFine_panoptic.png"
        png.parent.mkdir(parents=True, exist_ok=True)
        png.write_bytes(encode_png(segment_ids))
        annotated.append({"image_id": stem, "file_name": png.name, "segments_info": info})
        images.append({"id": stem, "file_name": f"{stem}_gtFine_leftImg8bit.png", "height": SIZE[0], "width": SIZE[1]})
    classes = [{key: item[key] for key in ("id", "name", "isthing")} for item in CITYSCAPES_CATEGORIES]
    content = {"images": images, "categories": classes, "annotations": annotated}
    _write_json(root / f"gtFine/cityscapes_panoptic_{split}.json", content)
