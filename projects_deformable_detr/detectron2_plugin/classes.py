"""Classes of the data sets in Detectron2's catalogs, including its two panoptic formats.

The classes of a panoptic model are things and stuff in one list (arXiv 2005.12872, section 4.4). Detectron2 has

- a "standard" format (``coco_2017_train_panoptic``, ``cityscapes_fine_panoptic_train``): one list of contiguous ids, in
  which things are not always first;
- a "separated" format (``coco_2017_train_panoptic_separated``): instances of things 0, 1, …, and label images of stuff
  1, 2, …, in which 0 is any thing. In the model's list, stuff follows the things.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import data as config_data
from ..config import thing_classes
from ..config.data import dataset_names, is_panoptic
from ..data.problems import DatasetError

_TYPES = ("coco_panoptic_seg", "cityscapes_panoptic_seg")
_ANY_THING = 0  # in label images and in the stuff classes of the metadata


@dataclass(frozen=True)
class PanopticClasses:
    """Classes 0, 1, … of a model, and their ids in a panoptic data set.

    Attributes:
        names: names of the classes.
        things: indices of the thing classes.
        segment_ids: ``category_id`` of each class in Detectron2's segments.
        category_ids: id of each class in the files of the data set.
    """

    names: tuple[str, ...]
    things: tuple[int, ...]
    segment_ids: tuple[int, ...]
    category_ids: tuple[int, ...]

    @property
    def is_separated(self) -> bool:
        """Whether stuff is numbered separately from things."""
        return self.segment_ids != tuple(range(len(self.names)))

    @property
    def label_classes(self) -> dict[int, int]:
        """Maps labels of stuff images to classes, in the separated format."""
        return {label: index for index, label in enumerate(self.segment_ids) if index not in self.things}

    def class_of(self, segment: Mapping[str, Any]) -> int:
        """Returns the class of a segment of Detectron2, which has ``category_id`` and ``isthing``."""
        number = int(segment["category_id"])
        if segment["isthing"] or not self.is_separated:
            return number
        return self.segment_ids.index(number, len(self.things))


def is_standard(name: str) -> bool:
    """Returns whether a data set is in the standard format: its records have segments of things and stuff."""
    return _is_panoptic(name) and MetadataCatalog.get(name).get("sem_seg_root") is None


def is_separated(name: str) -> bool:
    """Returns whether a data set is in the separated format."""
    return _is_panoptic(name) and MetadataCatalog.get(name).get("sem_seg_root") is not None


def _is_panoptic(name: str) -> bool:
    return name in DatasetCatalog and MetadataCatalog.get(name).get("evaluator_type") in _TYPES


def panoptic_classes(name: str, panoptic: bool) -> PanopticClasses | None:
    """Returns the classes of a model for a panoptic data set; None for other data sets.

    Args:
        name: name of the data set.
        panoptic: whether the model predicts a panoptic segmentation (``MODEL.DETR.PANOPTIC.ENABLED``). Other models use
            the instances of the separated format only.

    Raises:
        DatasetError: if the numbering of classes in the metadata does not follow the format.
    """
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
            f"data set {name} has {len(numbers)} thing_classes in its metadata, but things and stuff with contiguous "
            f"ids {sorted([*things.values(), *stuff.values()])}: in the standard panoptic format, thing_classes must "
            "name things and stuff, with unique ids from 0"
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
            f"its metadata, but things with contiguous ids {sorted(things)} and stuff with {sorted(stuff)}: in the "
            "separated panoptic format, things must be numbered from 0 and stuff from 1"
        )
    return PanopticClasses(
        (*names[0], *names[1]),
        tuple(range(len(things))),
        (*range(len(things)), *range(1, len(stuff) + 1)),
        (*(things[index] for index in sorted(things)), *(stuff[index] for index in sorted(stuff))),
    )


def set_classes(name: str, names: tuple[str, ...], category_ids: tuple[int, ...]) -> None:
    """Sets the classes of a file in the metadata, as Detectron2's reader does.

    Raises:
        DatasetError: if the metadata has other classes.
    """
    metadata = MetadataCatalog.get(name)
    known = metadata.get("thing_classes")
    if known is not None and tuple(known) != names:
        raise DatasetError(
            f"data set {name} has the {len(known)} classes {', '.join(known[:5])}, … in Detectron2's metadata, but "
            f"{metadata.json_file} has {len(names)}: {', '.join(names[:5])}, …; register it under another name"
        )
    ids = {category_id: index for index, category_id in enumerate(category_ids)}
    metadata.set(thing_classes=list(names), thing_dataset_id_to_contiguous_id=ids)


def class_names(dataset: str, *, panoptic: bool = False) -> tuple[str, ...] | None:
    """Returns the class names in the metadata of a data set, or None; no file is read.

    Args:
        dataset: name of the data set.
        panoptic: whether to return the classes of a panoptic model.
    """
    if classes := panoptic_classes(dataset, panoptic):
        return classes.names
    return tuple(MetadataCatalog.get(dataset).get("thing_classes") or ()) or None if dataset in DatasetCatalog else None


def known_class_names(cfg: CfgNode) -> tuple[str, ...] | None:
    """Returns the class names of the first data set with classes in its metadata, or None; no file is read."""
    return next(filter(None, (class_names(name, panoptic=is_panoptic(cfg)) for name in dataset_names(cfg))), None)


def separated_classes(cfg: CfgNode) -> PanopticClasses | None:
    """Returns the classes of a panoptic model whose data sets are in the separated format; None for other models."""
    found = (panoptic_classes(name, is_panoptic(cfg)) for name in dataset_names(cfg))
    return next((classes for classes in found if classes is not None and classes.is_separated), None)


def resolve_thing_classes(cfg: CfgNode) -> tuple[int, ...]:
    """Returns the thing classes (`config.data.resolve_thing_classes`); empty if all classes are things.

    Without a panoptic data set or key, all classes are things, even if a model has more classes than the data set.
    """
    names = dataset_names(cfg)
    if not (is_panoptic(cfg) or thing_classes(cfg) or any(map(is_standard, names))):
        return ()
    return config_data.resolve_thing_classes(cfg, lambda name: _things(name, is_panoptic(cfg)))


def _things(name: str, panoptic: bool) -> tuple[int, ...] | None:
    """Returns the things among the classes in the metadata of a data set, or None if it has no classes."""
    classes = panoptic_classes(name, panoptic)
    return classes.things if classes else tuple(range(len(class_names(name) or ()))) or None
