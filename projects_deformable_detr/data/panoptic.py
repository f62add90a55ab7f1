"""COCO panoptic format: segment ids as colors of one PNG per image, and a JSON file that lists the segments.

Contiguous class ids are assigned to things first and then to stuff, each in the order of their category ids.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from .catalog import DatasetSpec
from .entries import check_categories, check_images, convert_images, find_files
from .files import ImageEntry, Int64, convert, paused_gc, read_content, with_integers
from .masks import Bitmaps, encode
from .problems import DatasetError, Problems
from .records import Array, Classes, Record, Records, Summary, check_classes, check_counts, positions
from .segment_ids import MAX_ID, read_labels, read_segment_ids

_XYXY_ABS = 0  # detectron2.structures.BoxMode.XYXY_ABS


def read_classes(entries: list[dict[str, Any]], spec: DatasetSpec) -> Classes:
    """Returns the classes of a panoptic file from its checked categories.

    Raises:
        DatasetError: for a category without ``isthing``.
    """
    wrong = [entry for entry in entries if entry.get("isthing") not in (0, 1)]
    if wrong:
        raise DatasetError(
            f"data set {spec.name} ({spec.json_file}): category {wrong[0]['name']!r} has isthing "
            f"{wrong[0].get('isthing')!r}: set isthing to 0 or 1 in every category of a panoptic file"
        )
    ordered = sorted(entries, key=lambda entry: (not entry["isthing"], entry["id"]))
    names, ids = (tuple(entry[key] for entry in ordered) for key in ("name", "id"))
    return Classes(names, ids, sum(bool(entry["isthing"]) for entry in ordered))


class _Segment(msgspec.Struct, gc=False):
    id: Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)]
    category_id: Int64
    iscrowd: Literal[0, 1] = 0


class _Annotation(msgspec.Struct, gc=False):
    image_id: Int64
    file_name: str
    segments_info: list[_Segment]


class PanopticRecords(Records):
    """Records with ``pan_seg_file_name`` and ``segments_info``.

    ``segments_info`` is a list of dicts with ``id``, contiguous ``category_id``, ``isthing`` and ``iscrowd``.

    Args:
        arguments: arguments of `Records`.
        png_paths: paths of the panoptic PNGs.
        segment_ids: (segments,) ids of the segments.
    """

    def __init__(self, *arguments: Any, png_paths: list[str], segment_ids: Array) -> None:
        super().__init__(*arguments)
        self.png_paths = png_paths
        self.segment_ids = segment_ids

    def _annotations(self, index: int) -> Record:
        start, stop = self.spans[index].tolist()
        columns = (column[start:stop].tolist() for column in (self.segment_ids, self.labels, self.is_crowd))
        segments = [
            {
                "id": segment_id,
                "category_id": label,
                "isthing": label < self.summary.num_things,
                "iscrowd": int(is_crowd),
            }
            for segment_id, label, is_crowd in zip(*columns, strict=True)
        ]
        return {"pan_seg_file_name": self.png_paths[index], "segments_info": segments}

    def ground_truth(self) -> dict[str, Any]:
        """Returns the images of the records as the content of a panoptic file."""
        ids, names = self.summary.category_ids, self.summary.class_names
        sizes: list[list[int]] = self.sizes.tolist()
        image_ids: list[int] = self.image_ids.tolist()
        annotations = []
        for index, image_id in enumerate(image_ids):
            segments = self._annotations(index)["segments_info"]
            name = os.path.relpath(self.png_paths[index], str(self.spec.panoptic_root))
            listed = [{**segment, "category_id": ids[segment["category_id"]]} for segment in segments]
            annotations.append({"image_id": image_id, "file_name": name, "segments_info": listed})
        images = zip(image_ids, self.file_names, sizes, strict=True)
        return {
            "images": [
                {"id": image_id, "file_name": os.path.relpath(path, self.spec.image_root), "height": h, "width": w}
                for image_id, path, (h, w) in images
            ],
            "annotations": annotations,
            "categories": [
                {"id": category_id, "name": name, "isthing": int(index < self.summary.num_things)}
                for index, (category_id, name) in enumerate(zip(ids, names, strict=True))
            ],
        }

    def select(self, indices: Array) -> "PanopticRecords":
        """Returns the images at the given positions."""
        selected = super().select(indices)
        selected.png_paths = [self.png_paths[index] for index in indices.tolist()]
        return selected


def load(spec: DatasetSpec, max_objects: int | None) -> PanopticRecords:
    """Loads a panoptic data set; its PNGs are not read. See `load_dataset` for the arguments."""
    problems = Problems(str(spec))
    if not os.path.isdir(str(spec.panoptic_root)):
        problems.add("missing folder of PNGs", str(spec.panoptic_root), "Correct the path, or create the folder.")
    with paused_gc():
        content = read_content(spec, _Annotation)
        check_categories(content.categories, problems)
        images = check_images(convert_images(content.images, problems), spec, problems)
        problems.raise_if_any()
        annotations = _check_annotations(content.annotations or [], images, spec, problems)
        segments = [segment for annotation in annotations for segment in annotation.segments_info]
        segment_ids = np.fromiter((segment.id for segment in segments), np.int32, len(segments))
        category_ids = np.fromiter((segment.category_id for segment in segments), np.int64, len(segments))
        is_crowd = np.fromiter((segment.iscrowd for segment in segments), bool, len(segments))
        del segments
    classes = read_classes(content.categories, spec)
    png_names = [annotation.file_name for annotation in annotations]
    lengths = np.array([len(annotation.segments_info) for annotation in annotations], np.int64)
    owners = np.repeat(np.arange(len(annotations)), lengths)
    known = np.array(classes.category_ids, np.int64)
    order = np.argsort(known)
    labels = positions(known[order], category_ids)
    for row in np.flatnonzero(labels < 0).tolist():
        what = f"segment {segment_ids[row]} of {png_names[owners[row]]} has category_id {category_ids[row]}"
        remedy = "Add the category, or correct the id."
        problems.add("segments whose category_id is not in 'categories'", what, remedy)
    pairs, counts = np.unique(np.stack([owners, segment_ids], axis=1), axis=0, return_counts=True)
    for owner in pairs[counts > 1][:, 0].tolist():
        problems.add("duplicate segment ids in an image", png_names[owner], "Give each segment a unique id.")
    max_objects_per_image = check_counts(images, owners[~is_crowd], max_objects, None, problems, "segments")
    problems.raise_if_any()
    check_classes(order[labels], classes.names, None, problems)
    summary = Summary(
        spec.name,
        class_names=classes.names,
        category_ids=classes.category_ids,
        num_things=classes.num_things,
        num_images=len(images),
        num_annotations=len(labels),
        num_crowd=int(is_crowd.sum()),
        max_objects_per_image=max_objects_per_image,
        warnings=problems.warnings(),
    )
    stops = np.cumsum(lengths)
    spans = np.stack([stops - lengths, stops], axis=1)
    paths = [os.path.join(str(spec.panoptic_root), name) for name in png_names]
    return PanopticRecords(
        spec, summary, images, spans, order[labels], is_crowd, png_paths=paths, segment_ids=segment_ids
    )


def _check_annotations(
    entries: list[Any], images: list[ImageEntry], spec: DatasetSpec, problems: Problems
) -> list[_Annotation]:
    """Returns one annotation per image, in the order of the images."""

    def report(_: int, entry: Any, message: str) -> None:
        if "segments_info[" in message:
            what = "invalid segments"
            remedy = f"Each segment requires an integer 'id' from 1 to {MAX_ID}, a 'category_id', and iscrowd 0 or 1."
        else:
            what = "invalid annotations"
            remedy = "Each annotation requires an image_id, the file_name of its PNG and a list segments_info."
        problems.add(what, f"{entry!r:.80} ({message})", remedy)

    def prepare(entry: dict[str, Any]) -> dict[str, Any]:
        entry = with_integers(entry, ("image_id",), problems)
        segments = entry.get("segments_info")
        if isinstance(segments, list):
            keys = ("id", "category_id", "iscrowd")
            entry["segments_info"] = [
                with_integers(item, keys, problems) if isinstance(item, dict) else item for item in segments
            ]
        return entry

    known = {image.id for image in images}
    found: dict[int, _Annotation] = {}
    for annotation in convert(entries, _Annotation, report, prepare):
        image_id = annotation.image_id
        if image_id not in known:
            what, remedy = f"image_id {image_id}", "Add the image, or remove them."
            problems.add("annotations of images that are not in 'images'", what, remedy)
        elif image_id in found:
            what, remedy = f"image_id {image_id}", "Keep one annotation per image."
            problems.add("images with several annotations", what, remedy)
        found[image_id] = annotation
    if not problems:
        remedy = "Add the files, or correct the folder."
        find_files(list(found.values()), str(spec.panoptic_root), "panoptic PNGs", remedy, problems)
    missing = [str(image.file_name) for image in images if image.id not in found]
    if missing and not problems:
        remedy = "Annotate them, or remove them from 'images'."
        problems.add("images without an annotation", missing, remedy, len(missing))
    problems.raise_if_any()
    return [found[image.id] for image in images]


def read_objects(record: Record, *, crowds: bool = False) -> tuple[Array, Array, Bitmaps]:
    """Reads the segments of a panoptic record, by default without crowds, as objects with boxes and masks.

    Returns:
        boxes (T, 4) float32 corners in pixels, labels (T,) int64, masks (T, H, W) bool.

    Raises:
        DatasetError: if the PNG is missing, its size differs from the record, or it lacks a segment.
    """
    path = record["pan_seg_file_name"]
    size = (record["height"], record["width"]) if "height" in record else None
    segments = _segments(record, crowds)
    wanted, labels = (np.array([item[key] for item in segments], np.int64) for key in ("id", "category_id"))
    masks = np.asarray(read_segment_ids(path, size)[None] == wanted[:, None, None], bool)
    empty = wanted[~masks.any((1, 2))]
    if empty.size:
        raise DatasetError(
            f"{path} has no pixels of segment {empty[0]}, although segments_info lists it: remove the segment from the "
            "JSON file, or replace the PNG"
        )
    return mask_boxes(masks), labels, masks


def _segments(record: Record, crowds: bool) -> list[dict[str, Any]]:
    return [item for item in record["segments_info"] if crowds or not item.get("iscrowd", 0)]


def mask_boxes(masks: Bitmaps) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns boxes (T, 4) of non-empty masks (T, H, W), as corners in pixels; a pixel has width and height 1."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def as_annotations(record: Record, *, crowds: bool = False) -> list[dict[str, Any]]:
    """Reads the segments of a panoptic record as annotations in Detectron2's format, with RLE masks.

    Args:
        record: panoptic record.
        crowds: whether to include crowds, with ``iscrowd`` 1.
    """
    found, segments = _annotations(*read_objects(record, crowds=crowds)), _segments(record, crowds)
    return [{**item, "iscrowd": int(segment.get("iscrowd", 0))} for item, segment in zip(found, segments, strict=True)]


def stuff_annotations(path: str, size: tuple[int, int], classes: Mapping[int, int]) -> list[dict[str, Any]]:
    """Reads the stuff segments of a label image as annotations like those of `as_annotations`, one for each label.

    Args:
        path: image with one channel.
        size: height and width in pixels.
        classes: maps labels to classes; other labels, such as those of things, are ignored.

    Raises:
        DatasetError: if the file is missing, is not an image, or has a different size.
    """
    labels = read_labels(path, size)
    found = [label for label in np.unique(labels).tolist() if label in classes]
    masks = labels[None] == np.array(found, labels.dtype).reshape(-1, 1, 1)
    return _annotations(mask_boxes(masks), np.array([classes[label] for label in found], np.int64), masks)


def _annotations(boxes: Array, labels: Array, masks: Bitmaps) -> list[dict[str, Any]]:
    return [
        {
            "bbox": box.tolist(),
            "bbox_mode": _XYXY_ABS,
            "category_id": int(label),
            "iscrowd": 0,
            "segmentation": encode(mask),
        }
        for box, label, mask in zip(boxes, labels, masks, strict=True)
    ]
