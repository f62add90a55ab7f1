"""COCO's panoptic format: its checks, Detectron2's records, and each segment as an object to train on.

DETR's panoptic model has things and stuff as classes of one list (arXiv 2005.12872, section 4.4): contiguous class ids
are those of the things in the order of their category ids, then those of the stuff.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle_format

from .catalog import DatasetSpec
from .coco import CocoSummary, paused_gc
from .coco_files import read_categories, read_images, read_json
from .images import read_image
from .panoptic_format import MAX_ID, read_segment_ids, segment_masks
from .problems import DatasetError, Problems

Record = dict[str, Any]
_XYXY_ABS = 0  # detectron2.structures.BoxMode.XYXY_ABS
_REMEDY_SEGMENT = (
    "Give each a whole number 'id' from 1 to 16777215, of its own in its image, a 'category_id', and iscrowd 0 or 1."
)


@dataclass(frozen=True)
class PanopticClass:
    """One category of a panoptic file: the file's id, its name, and whether it is a thing."""

    category_id: int
    name: str
    is_thing: bool


def read_classes(entries: list[dict[str, Any]], spec: DatasetSpec) -> tuple[PanopticClass, ...]:
    """Sound categories of a panoptic file as class 0, 1, …: things, then stuff, each in the order of their ids.

    Raises:
        DatasetError: for a category without ``isthing``.
    """
    wrong = [entry for entry in entries if entry.get("isthing") not in (0, 1)]
    if wrong:
        raise DatasetError(
            f"data set {spec.name} ({spec.json_file}): category {wrong[0]['name']!r} has isthing "
            f"{wrong[0].get('isthing')!r}: a panoptic file gives each category isthing 0 or 1"
        )
    ordered = sorted(entries, key=lambda entry: (not entry["isthing"], entry["id"]))
    return tuple(PanopticClass(entry["id"], entry["name"], bool(entry["isthing"])) for entry in ordered)


@paused_gc()
def load(spec: DatasetSpec, max_objects: int | None = None) -> tuple[CocoSummary, list[Record]]:
    """The summary and the records of a panoptic data set, all that can be checked without reading its PNGs.

    Each record has ``file_name``, ``height``, ``width``, ``image_id``, ``pan_seg_file_name``, and ``segments_info``:
    dicts with ``id``, contiguous ``category_id``, ``isthing`` and ``iscrowd``.

    Args:
        spec: with a ``panoptic_root``.
        max_objects: the number of queries, for a set to train on; None: any number.

    Raises:
        DatasetError: for everything that is wrong, at once.
    """
    content = read_json(spec, ("images", "categories", "annotations"))
    problems = Problems()
    for folder in (spec.image_root, spec.panoptic_root):
        if not os.path.isdir(str(folder)):
            problems.add("missing folders", str(folder), "Correct the path, or put the files there.")
    read_categories(content["categories"], problems)
    images = read_images(content["images"], spec, problems)
    problems.raise_if_any(spec.name, spec.json_file)

    classes = read_classes(content["categories"], spec)
    reader = _Reader(images, classes, spec, problems)
    for annotation in content["annotations"]:
        reader.read(annotation)
    for image_id in images.keys() - reader.records.keys():
        what, remedy = images[image_id]["file_name"], "Annotate them, or remove them from 'images'."
        problems.add("images without an annotation", what, remedy)
    records = [reader.records[image_id] for image_id in sorted(reader.records)]
    counts = [sum(not segment["iscrowd"] for segment in record["segments_info"]) for record in records]
    most = max(counts, default=0)
    for record, count in zip(records, counts, strict=True):
        if max_objects is not None and count > max_objects:
            remedy = f"A query finds one segment: set MODEL.DETR.NUM_OBJECT_QUERIES to at least {most}."
            where = f"{record['file_name']} has {count}"
            problems.add(f"images with more segments than the {max_objects} queries", where, remedy)
    problems.raise_if_any(spec.name, spec.json_file)
    total = sum(len(record["segments_info"]) for record in records)
    summary = CocoSummary(
        spec.name,
        class_names=tuple(item.name for item in classes),
        category_ids=tuple(item.category_id for item in classes),
        num_images=len(records),
        num_annotations=total,
        num_crowd=total - sum(counts),
        dropped=0,
        clipped=0,
        most_objects=most,
        num_things=sum(item.is_thing for item in classes),
    )
    return summary, records


class _Reader:
    """Reads the entries of ``annotations``, one an image."""

    def __init__(
        self, images: dict[int, Record], classes: Sequence[PanopticClass], spec: DatasetSpec, problems: Problems
    ) -> None:
        self.records: dict[int, Record] = {}
        self._images = images
        self._classes = {item.category_id: (index, item.is_thing) for index, item in enumerate(classes)}
        self._folder = str(spec.panoptic_root)
        self._problems = problems
        self._files = {entry.name for entry in os.scandir(self._folder)}

    def read(self, item: Any) -> None:
        """Checks an entry and makes a record of it."""
        if not isinstance(item, dict) or not isinstance(item.get("segments_info"), list):
            remedy = "Give each image_id, file_name (of its PNG) and a list segments_info."
            self._problems.add("annotations that are incomplete", f"{item!r:.80}", remedy)
            return
        image_id, name = item.get("image_id"), item.get("file_name")
        if image_id not in self._images:
            what = f"image_id {image_id!r}"
            self._problems.add("annotations of images that are not in 'images'", what, "Add the image, or remove them.")
            return
        if image_id in self.records:
            self._problems.add("images that are annotated twice", f"image_id {image_id}", "Keep one annotation each.")
        if name not in self._files:
            path = os.path.join(self._folder, str(name))
            self._problems.add("panoptic PNGs that are missing", path, "Put them there, or correct the folder.")
        segments = [self._segment(segment, str(name)) for segment in item["segments_info"]]
        identifiers = [segment["id"] for segment in segments if segment]
        if len(set(identifiers)) < len(identifiers):
            self._problems.add("images that use a segment id twice", str(name), _REMEDY_SEGMENT)
        record = {key: value for key, value in self._images[image_id].items() if key != "annotations"}
        kept = [segment for segment in segments if segment]
        record |= {"pan_seg_file_name": os.path.join(self._folder, str(name)), "segments_info": kept}
        self.records[image_id] = record

    def _segment(self, item: Any, name: str) -> dict[str, Any] | None:
        sound = isinstance(item, dict) and type(item.get("id")) is int and 0 < item["id"] <= MAX_ID
        if not sound or item.get("iscrowd", 0) not in (0, 1):
            self._problems.add("segments that are incomplete", f"{item!r:.80} of {name}", _REMEDY_SEGMENT)
            return None
        if item.get("category_id") not in self._classes:
            what = f"segment {item['id']} of {name} has category_id {item.get('category_id')!r}"
            remedy = "Add the category, or correct the id."
            self._problems.add("segments whose category_id is not in 'categories'", what, remedy)
            return None
        label, is_thing = self._classes[item["category_id"]]
        return {"id": item["id"], "category_id": label, "isthing": is_thing, "iscrowd": item.get("iscrowd", 0)}


def read_objects(record: Record) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The segments of a panoptic record that are no crowds, as objects with the boxes of their masks.

    Returns:
        boxes (T, 4) float32 corners in pixels, labels (T,) int64, masks (T, H, W) bool.

    Raises:
        DatasetError: if the PNG is missing, of another size than the record, or lacks a segment.
    """
    path, size = record["pan_seg_file_name"], None
    if "height" in record:
        size = (record["height"], record["width"])
    segments = [segment for segment in record["segments_info"] if not segment.get("iscrowd", 0)]
    masks = segment_masks(read_segment_ids(path, size), segments, path)
    labels = np.array([segment["category_id"] for segment in segments], np.int64)
    return mask_boxes(masks), labels, masks


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """The corners (T, 4) float32 of masks (T, H, W), none of which is empty; a pixel has width and height 1."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def as_annotations(record: Record, *, crowds: bool = False) -> list[dict[str, Any]]:
    """`read_objects` as Detectron2's annotations: ``bbox``, ``bbox_mode``, ``category_id``, ``iscrowd``, RLE.

    ``crowds``: give these, too, marked ``iscrowd``.
    """
    segments = [item for item in record["segments_info"] if crowds or not item.get("iscrowd", 0)]
    found = _annotations(*read_objects({**record, "segments_info": [{**item, "iscrowd": 0} for item in segments]}))
    return [{**item, "iscrowd": int(segment.get("iscrowd", 0))} for item, segment in zip(found, segments, strict=True)]


def stuff_annotations(path: str, size: tuple[int, int], classes: Mapping[int, int]) -> list[dict[str, Any]]:
    """The stuff of a picture of labels, all pixels of one label as one object, as `as_annotations` gives objects.

    Args:
        path: of the picture, of one channel.
        size: its height and width in pixels.
        classes: label to class; other labels, such as those of things and of what is ignored, are left out.

    Raises:
        DatasetError: if the picture is missing, is not an image, or is of another size.
    """
    labels = read_image(path, expected_size=size)[:, :, 0]
    found = [label for label in np.unique(labels).tolist() if label in classes]
    masks = labels[None] == np.array(found, labels.dtype).reshape(-1, 1, 1)
    return _annotations(mask_boxes(masks), np.array([classes[label] for label in found], np.int64), masks)


def _annotations(boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "bbox": box.tolist(),
            "bbox_mode": _XYXY_ABS,
            "category_id": int(label),
            "iscrowd": 0,
            "segmentation": rle_format.encode(np.asfortranarray(mask.astype(np.uint8))),
        }
        for box, label, mask in zip(boxes, labels, masks, strict=True)
    ]
