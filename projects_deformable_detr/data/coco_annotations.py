"""One pass over a COCO file's annotations: checks, clipping, contiguous ids."""

from math import isfinite
from typing import Any

from .problems import Problems

_XYWH_ABS = 1  # detectron2.structures.BoxMode.XYWH_ABS
_REQUIRED = frozenset(("id", "image_id", "category_id", "bbox"))
_TRIANGLE = 6  # numbers
_FOR_EVALUATION = frozenset(("area", "iscrowd"))


class AnnotationReader:
    """Appends annotations to their images' records, and gathers what is wrong with them.

    Args:
        records: image id → record with ``file_name``, ``height``, ``width`` and a list ``annotations``.
        categories: category id → name, in the order of the contiguous ids.
        problems: where faults go.
        drop: leave out boxes without area; otherwise they are faults.
        for_evaluation: an annotation without ``area`` or ``iscrowd`` is a fault.
        masks: an annotation without a usable ``segmentation`` is a fault.

    Attributes:
        kept: number of annotations appended, of which ``crowds`` are crowds.
        dropped: annotation ids that were left out, for their box or segmentation.
        clipped: number of boxes that reached out of their image.
        objects: image id → number of objects to train on, where there are any.
    """

    def __init__(
        self,
        records: dict[int, dict[str, Any]],
        categories: dict[int, str],
        problems: Problems,
        drop: bool,
        for_evaluation: bool,
        masks: bool = False,
    ) -> None:
        self.kept = self.crowds = self.clipped = 0
        self.dropped: list[Any] = []
        self.objects: dict[int, int] = {}
        self._records = records
        self._classes = {category: index for index, category in enumerate(categories)}
        self._problems = problems
        self._drop = drop
        self._required = _REQUIRED | _FOR_EVALUATION if for_evaluation else _REQUIRED
        self._masks = masks
        self._seen: set[int] = set()

    def read(self, item: Any) -> None:
        """Checks one entry of ``annotations`` and appends it, unless something is wrong with it."""
        if not self._is_well_formed(item):
            return
        record = self._records.get(item["image_id"])
        if record is None:
            what = f"annotation {item['id']} has image_id {item['image_id']!r}"
            self._problems.add("annotations of images that are not in 'images'", what, "Add the image, or remove them.")
            return
        label = self._classes.get(item["category_id"])
        if label is None:
            what = f"{_name(item, record)} has category_id {item['category_id']!r}"
            remedy = f"Known ids are {_listed(self._classes)}: add the category, or correct the id."
            self._problems.add("annotations whose category_id is not in 'categories'", what, remedy)
            return
        box = self._clipped_box(item, record)
        if box is None:
            return
        if self._masks and not item.get("segmentation"):
            remedy = "Add polygons or run lengths, or set MODEL.MASK_ON to False."
            self._problems.add("annotations without a segmentation", _name(item, record), remedy)
            return
        segmentation = self._segmentation(item, record) if self._masks else item.get("segmentation")
        if self._masks and segmentation is None:
            return
        crowd = item.get("iscrowd", 0)
        kept = {"bbox": box, "bbox_mode": _XYWH_ABS, "category_id": label, "iscrowd": crowd}
        if segmentation:
            kept["segmentation"] = segmentation
        record["annotations"].append(kept)
        self.kept += 1
        if crowd:
            self.crowds += 1
        else:
            self.objects[item["image_id"]] = self.objects.get(item["image_id"], 0) + 1

    def _is_well_formed(self, item: Any) -> bool:
        """Whether its keys are there, its ids are whole numbers, and its own id is new."""
        if not isinstance(item, dict):
            self._problems.add("annotations that are not objects", f"{item!r:.80}", "Make each a JSON object.")
            return False
        if not self._required <= item.keys():
            missing = ", ".join(sorted(self._required - item.keys()))
            remedy = "Add them; pycocotools needs area (width x height will do) and iscrowd (0) to evaluate."
            self._problems.add("annotations that lack keys", f"annotation {item.get('id')!r} lacks {missing}", remedy)
            return False
        identifier = item["id"]
        if not (type(identifier) is type(item["image_id"]) is type(item["category_id"]) is int):
            ids = f"id {identifier!r}, image_id {item['image_id']!r}, category_id {item['category_id']!r}"
            self._problems.add("annotations with ids that are not whole numbers", ids, "Number them.")
            return False
        if identifier in self._seen:
            self._problems.add("annotation ids that are used twice", f"{identifier}", "Give each its own id.")
            return False
        self._seen.add(identifier)
        if item.get("iscrowd", 0) not in (0, 1) or item.get("ignore", 0) != 0:
            what = f"annotation {identifier} has iscrowd {item.get('iscrowd')!r}, ignore {item.get('ignore')!r}"
            remedy = "Set iscrowd to 0 or 1 and remove ignore, which is not COCO's: regions to ignore are crowds."
            self._problems.add("annotations with an unusable iscrowd or ignore", what, remedy)
            return False
        return True

    def _clipped_box(self, item: dict[str, Any], record: dict[str, Any]) -> list[float] | None:
        """The box inside its image, or None where it is a fault or left out."""
        try:
            x, y, width, height = item["bbox"]
            finite = isfinite(x) and isfinite(y) and isfinite(width) and isfinite(height)
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            remedy = "Write bbox as [x, y, width, height] in pixels."
            self._problems.add("boxes that are not four finite numbers", _name(item, record, "bbox"), remedy)
            return None
        if width < 0 or height < 0:
            remedy = "Write bbox as [x, y, width, height] in pixels, not as two corners in the wrong order."
            self._problems.add("boxes of negative width or height", _name(item, record, "bbox"), remedy)
            return None
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + width, record["width"]), min(y + height, record["height"])
        if right > left and bottom > top:
            if x < 0 or y < 0 or x + width > record["width"] or y + height > record["height"]:
                self.clipped += 1
                return [float(left), float(top), float(right - left), float(bottom - top)]
            return [float(x), float(y), float(width), float(height)]
        if self._drop:
            self.dropped.append(item["id"])
        else:
            remedy = "Correct or remove them, or set DATASETS.INVALID_BOXES to drop, which leaves them out."
            size = f" in an image of {record['width']} x {record['height']}"
            self._problems.add("boxes without area inside their image", _name(item, record, "bbox") + size, remedy)
        return None

    def _segmentation(self, item: dict[str, Any], record: dict[str, Any]) -> Any:
        """The segmentation, or None where it is a fault or left out.

        Where boxes without area are left out, polygons of fewer than three points are too, as by Detectron2's loader.
        """
        found, remedy = item["segmentation"], "Correct or remove the annotation."
        fault = _fault(found, record["height"], record["width"])
        if fault is not None:
            self._problems.add("unusable segmentations", f"{_name(item, record)} has {fault}", remedy)
            return None
        if isinstance(found, dict) or all(len(polygon) >= _TRIANGLE for polygon in found):
            return found
        if not self._drop:
            remedy += " Or set DATASETS.INVALID_BOXES to drop, which leaves such polygons out."
            self._problems.add("polygons of fewer than three points", _name(item, record), remedy)
            return None
        found = [polygon for polygon in found if len(polygon) >= _TRIANGLE]
        if not found:
            self.dropped.append(item["id"])
        return found or None


def _fault(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong with a segmentation of an image of that size, apart from polygons that are too short."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            size = segmentation.get("size")
            return f"run lengths of size {size!r}, but its image is {height} x {width} (height x width)"
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            return None
        if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
            return "run lengths whose counts are neither a text nor whole numbers"
        return None if sum(counts) == height * width else f"run lengths of {sum(counts)} pixels, not {height * width}"
    if not isinstance(segmentation, list):
        return f"a {type(segmentation).__name__}, neither polygons nor run lengths"
    for polygon in segmentation:
        try:
            if isinstance(polygon, list) and len(polygon) % 2 == 0 and all(map(isfinite, polygon)):
                continue
        except (TypeError, OverflowError):
            pass
        return f"the polygon {polygon!r:.60}, not a list of x and y in turn, all finite numbers"
    return None


def _name(item: dict[str, Any], record: dict[str, Any], key: str | None = None) -> str:
    text = f"annotation {item['id']} of {record['file_name']}"
    return text if key is None else f"{text} has {key} {item[key]!r:.80}"


def _listed(ids: dict[int, int]) -> str:
    shown = ", ".join(str(identifier) for identifier in list(ids)[:20])
    return shown if len(ids) <= 20 else f"{shown} and {len(ids) - 20} more"
