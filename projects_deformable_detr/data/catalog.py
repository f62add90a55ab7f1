"""Catalog of built-in and registered data sets."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from .problems import DatasetError

# Maps names to (folder, split) below $DETECTRON2_DATASETS. The paths of COCO are those of Detectron2.
_BUILTIN = {
    "shapes_train": ("shapes", "train"),
    "shapes_val": ("shapes", "val"),
    "coco_2017_train": ("coco", "train2017"),
    "coco_2017_val": ("coco", "val2017"),
}
_LVIS = ("lvis_v1_train", "lvis_v1_val")  # lvis/NAME.json, with the images in coco/
_PANOPTIC = "_panoptic"  # Detectron2's suffix for panoptic annotations of the same images


@dataclass(frozen=True)
class DatasetSpec:
    """Location of a data set in COCO instances, COCO panoptic or LVIS format.

    Attributes:
        name: name of the data set.
        json_file: annotation file, in the panoptic format if ``panoptic_root`` is set.
        image_root: folder of the images.
        panoptic_root: folder of the panoptic PNGs; None for instances.
        instances_json: annotation file in the instances format for the things of a panoptic data set, or None.
    """

    name: str
    json_file: str | Path
    image_root: str | Path
    panoptic_root: str | Path | None = None
    instances_json: str | Path | None = None

    def __str__(self) -> str:
        return f"data set {self.name} ({self.json_file})"

    def instances(self) -> "DatasetSpec":
        """Returns the instances of a panoptic data set if they have a file, otherwise the data set itself."""
        if self.panoptic_root is None or self.instances_json is None:
            return self
        return replace(self, json_file=self.instances_json, panoptic_root=None, instances_json=None)


_registered: dict[str, DatasetSpec] = {}


def datasets_root() -> Path:
    """Returns the folder of the built-in data sets: ``$DETECTRON2_DATASETS`` or, as in Detectron2, ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def names() -> list[str]:
    """Returns the names of all data sets, built-in ones first."""
    return [*_BUILTIN, *(name + _PANOPTIC for name in _BUILTIN), *_LVIS, *_registered]


def get(name: str) -> DatasetSpec:
    """Returns the data set with the given name. Its files need not exist.

    Raises:
        DatasetError: for an unknown name; the message lists the available names.
    """
    if name in _LVIS:
        return DatasetSpec(name, datasets_root() / f"lvis/{name}.json", datasets_root() / "coco")
    plain = name.removesuffix(_PANOPTIC)
    if plain in _BUILTIN:
        folder, split = datasets_root() / _BUILTIN[plain][0], _BUILTIN[plain][1]
        instances = folder / f"annotations/instances_{split}.json"
        if plain == name:
            return DatasetSpec(name, instances, folder / split)
        annotations, segments = folder / f"annotations/panoptic_{split}.json", folder / f"panoptic_{split}"
        return DatasetSpec(name, annotations, folder / split, segments, instances)
    if name not in _registered:
        raise DatasetError(
            f"unknown data set {name!r}: choose one of {', '.join(names())}; or register it with "
            "--register NAME JSON IMAGE_ROOT"
        )
    return _registered[name]


def register(name: str, json_file: str | Path, image_root: str | Path) -> DatasetSpec:
    """Registers a data set in COCO instances or LVIS format, detected from the content. Idempotent.

    Raises:
        DatasetError: if the name is empty or already registered with other files.
    """
    if not name:
        raise DatasetError(f"the name of data set {json_file} is empty: use --register NAME JSON IMAGE_ROOT")
    spec = DatasetSpec(name, json_file, image_root)
    if name in names():
        known = get(name)
        if _locations(known) != _locations(spec):
            raise DatasetError(
                f"data set {name!r} is already registered with {known.json_file} and images in {known.image_root}, "
                f"not {json_file} with images in {image_root}: choose another name"
            )
        return known
    _registered[name] = spec
    return spec


def _locations(spec: DatasetSpec) -> tuple[str, str]:
    return os.path.abspath(spec.json_file), os.path.abspath(spec.image_root)


def check_same_classes(name_a: str, a: tuple[str, ...], name_b: str, b: tuple[str, ...]) -> None:
    """Checks that two data sets have the same classes in the same order.

    Args:
        name_a, name_b: names of the data sets, for errors.
        a, b: class names.

    Raises:
        DatasetError: if they differ; the message names both data sets.
    """
    if len(a) != len(b):
        raise DatasetError(
            f"data set {name_a} has {len(a)} categories, but {name_b} has {len(b)}: all data sets of a run must have "
            "the same categories"
        )
    for index, pair in enumerate(zip(a, b, strict=True)):
        if pair[0] != pair[1]:
            raise DatasetError(
                f"class {index} is {pair[0]!r} in data set {name_a}, but {pair[1]!r} in {name_b}: all data sets of a "
                "run must have the same categories in the same order of ids"
            )
