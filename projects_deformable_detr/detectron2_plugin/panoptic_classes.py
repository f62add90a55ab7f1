"""The classes of Detectron2's panoptic data sets, in each of its two formats.

A panoptic model has things and stuff as classes of one list (arXiv 2005.12872, section 4.4). Detectron2's catalog has

- the "standard" format (``coco_2017_train_panoptic``, ``cityscapes_fine_panoptic_train``): one list of contiguous ids,
  things not always the first of them;
- the "separated" one (``coco_2017_train_panoptic_separated``): things 0, 1, … with annotations of instances, and stuff
  1, 2, … in a picture of labels, where 0 stands for any thing. Here its stuff comes after its things.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.problems import DatasetError

_TYPES = ("coco_panoptic_seg", "cityscapes_panoptic_seg")
_ANY_THING = 0  # in the picture of labels, and among the stuff of the metadata


@dataclass(frozen=True)
class PanopticClasses:
    """Class 0, 1, … of a model, and what they are in a panoptic data set.

    Attributes:
        names: of the classes.
        things: the classes that are things.
        segment_ids: the ``category_id`` that Detectron2's segments of each class have.
        category_ids: the id of each class in the data set's files.
    """

    names: tuple[str, ...]
    things: tuple[int, ...]
    segment_ids: tuple[int, ...]
    category_ids: tuple[int, ...]

    @property
    def is_separated(self) -> bool:
        """Whether stuff is numbered apart from things."""
        return self.segment_ids != tuple(range(len(self.names)))

    @property
    def label_classes(self) -> dict[int, int]:
        """In the separated format, labels of the picture of stuff to classes."""
        return {label: index for index, label in enumerate(self.segment_ids) if index not in self.things}

    def class_of(self, segment: Mapping[str, Any]) -> int:
        """The class of one of Detectron2's segments, which has ``category_id`` and ``isthing``."""
        number = int(segment["category_id"])
        if segment["isthing"] or not self.is_separated:
            return number
        return self.segment_ids.index(number, len(self.things))


def is_standard(name: str) -> bool:
    """Whether a data set has segments of things and stuff in its records: the standard format."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("evaluator_type") in _TYPES and metadata.get("sem_seg_root") is None


def is_separated(name: str) -> bool:
    """Whether a data set is of the separated format."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("evaluator_type") in _TYPES and metadata.get("sem_seg_root") is not None


def panoptic_classes(name: str, panoptic: bool) -> PanopticClasses | None:
    """The classes of a model for a data set; None for one of instances.

    Args:
        name: of the data set.
        panoptic: whether the model gives a panoptic segmentation (``MODEL.DETR.PANOPTIC.ENABLED``). One that does not
            takes the separated format for its instances alone.

    Raises:
        DatasetError: if the metadata does not number its classes as its format says.
    """
    if name not in DatasetCatalog:
        return None
    if is_standard(name):
        return _standard(name)
    return _separated(name) if panoptic and is_separated(name) else None


def _standard(name: str) -> PanopticClasses:
    metadata = MetadataCatalog.get(name)
    things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    files = {index: identifier for identifier, index in [*things.items(), *stuff.items()]}
    numbers = range(len(metadata.thing_classes))
    if sorted(files) != list(numbers) or len(things) + len(stuff) != len(numbers):
        raise DatasetError(
            f"data set {name} has {len(numbers)} thing_classes in its metadata, but things and stuff of the contiguous "
            f"ids {sorted([*things.values(), *stuff.values()])}: in the standard panoptic format, thing_classes names "
            "things and stuff, and each has an id of its own from 0 on"
        )
    category_ids = tuple(files[index] for index in numbers)
    return PanopticClasses(tuple(metadata.thing_classes), tuple(sorted(things.values())), tuple(numbers), category_ids)


def _separated(name: str) -> PanopticClasses:
    metadata = MetadataCatalog.get(name)
    things = {index: identifier for identifier, index in metadata.thing_dataset_id_to_contiguous_id.items()}
    stuff = {index: identifier for identifier, index in metadata.stuff_dataset_id_to_contiguous_id.items()}
    stuff.pop(_ANY_THING, None)
    names = metadata.thing_classes, metadata.stuff_classes[1:]
    if sorted(things) != list(range(len(names[0]))) or sorted(stuff) != list(range(1, len(names[1]) + 1)):
        raise DatasetError(
            f"data set {name} has {len(names[0])} thing_classes and {len(names[1])} stuff_classes besides the first in "
            f"its metadata, but things of the contiguous ids {sorted(things)} and stuff of {sorted(stuff)}: in the "
            "separated panoptic format things are numbered from 0, and stuff from 1"
        )
    return PanopticClasses(
        (*names[0], *names[1]),
        tuple(range(len(things))),
        (*range(len(things)), *range(1, len(stuff) + 1)),
        (*(things[index] for index in sorted(things)), *(stuff[index] for index in sorted(stuff))),
    )
