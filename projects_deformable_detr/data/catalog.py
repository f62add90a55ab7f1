"""Data sets by name: the built-in ones, and those that a person registers."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import config
from .problems import DatasetError

_logger = logging.getLogger(__name__)

# Name: (folder, split) below $DETECTRON2_DATASETS. COCO's files are where Detectron2 looks for them.
_BUILTIN = {
    "shapes_train": ("shapes", "train"),
    "shapes_val": ("shapes", "val"),
    "coco_2017_train": ("coco", "train2017"),
    "coco_2017_val": ("coco", "val2017"),
}
_LVIS = ("lvis_v1_train", "lvis_v1_val")  # lvis/NAME.json, of the images in coco/
_PANOPTIC = "_panoptic"  # what Detectron2 puts behind the name for the panoptic annotations of the same images


@dataclass(frozen=True)
class DatasetSpec:
    """Where a data set in COCO's instances or panoptic format, or in LVIS's, lies.

    Attributes:
        name: of the data set.
        json_file: its annotations, in the instances format, or in the panoptic one if there is a ``panoptic_root``.
        image_root: the folder of its images.
        panoptic_root: the folder of its panoptic PNGs; None for instances.
        instances_json: the things of a panoptic data set in the instances format, to measure AP on; None for none.
    """

    name: str
    json_file: str | Path
    image_root: str | Path
    panoptic_root: str | Path | None = None
    instances_json: str | Path | None = None


_registered: dict[str, DatasetSpec] = {}


def datasets_root() -> Path:
    """The folder of the built-in data sets: ``$DETECTRON2_DATASETS``, or ``datasets``, as for Detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def names() -> list[str]:
    """All known names: built-in first, then in order of registration."""
    return [*_BUILTIN, *(name + _PANOPTIC for name in _BUILTIN), *_LVIS, *_registered]


def get(name: str) -> DatasetSpec:
    """The data set called ``name``. Its files need not exist.

    Raises:
        DatasetError: for an unknown name; the message lists the known ones.
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
            f"unknown data set {name!r}: known are {', '.join(names())}; "
            "name another with --register NAME JSON IMAGE_ROOT"
        )
    return _registered[name]


def register(name: str, json_file: str | Path, image_root: str | Path) -> DatasetSpec:
    """Names a data set in COCO's instances format, or in LVIS's, as its content tells; the same again is harmless.

    Raises:
        DatasetError: if the name is empty, or stands for other files already.
    """
    if not name:
        raise DatasetError(f"a data set needs a name: --register NAME JSON IMAGE_ROOT (JSON is {json_file})")
    spec = DatasetSpec(name, json_file, image_root)
    if name in names():
        known = get(name)
        if _locations(known) != _locations(spec):
            raise DatasetError(
                f"data set {name!r} already stands for {known.json_file} with images in {known.image_root}, "
                f"not {json_file} with images in {image_root}: choose another name"
            )
        return known
    _registered[name] = spec
    return spec


def _locations(spec: DatasetSpec) -> tuple[str, str]:
    return os.path.abspath(spec.json_file), os.path.abspath(spec.image_root)


def resolve_num_classes(cfg: Any, class_names: Callable[[str], tuple[str, ...]] | None = None) -> int:
    """The number of classes of the model that ``cfg`` describes.

    It is the number of categories of ``DATASETS.TRAIN`` and ``DATASETS.TEST``, which must agree with each other
    and with ``MODEL.DETR.NUM_CLASSES`` where that is set. With ``NUM_CLASSES`` set, data sets whose JSON file is
    not on this machine are not compared, so that a trained model can be built without its data.

    Args:
        cfg: a config of either engine.
        class_names: data set name → its class names in contiguous order; by default from the JSON file.

    Raises:
        DatasetError: if numbers or class names disagree (both are named), if a data set cannot be read, or if
            there is nothing to take the number from.
    """
    wanted = int(cfg.MODEL.DETR.NUM_CLASSES)
    if wanted < 0:
        raise DatasetError(f"MODEL.DETR.NUM_CLASSES is {wanted}: set a number of classes, or 0 for the data set's")
    first: tuple[str, tuple[str, ...]] | None = None
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        if class_names is not None:
            found = class_names(name)
        elif wanted and not Path(get(name).json_file).is_file():
            _logger.info("data set %s is not on this machine: its classes are not compared with the model's", name)
            continue
        else:
            from .coco import read_class_names  # late: coco imports DatasetSpec from here

            found = read_class_names(get(name))
        if wanted and len(found) != wanted:
            raise DatasetError(
                f"MODEL.DETR.NUM_CLASSES is {wanted}, but data set {name} has {len(found)} categories: set it to "
                f"{len(found)}, or to 0, which takes the number from the data set"
            )
        if first is None:
            first = (name, found)
        else:
            check_same_classes(*first, name, found)
    if first is None and not wanted:
        raise DatasetError(
            "MODEL.DETR.NUM_CLASSES is 0 and DATASETS.TRAIN and DATASETS.TEST are empty: there is nothing to take "
            "the number of classes from; set one of them"
        )
    return wanted or len(first[1] if first else ())


def resolve_things(cfg: Any, things: Callable[[str], tuple[int, ...] | None] | None = None) -> tuple[int, ...]:
    """Which of the model's classes are things; () where it is not known.

    They are the things of the panoptic ones of ``DATASETS.TRAIN`` and ``DATASETS.TEST``, and all classes of the others,
    which must agree with each other and with ``MODEL.DETR.PANOPTIC.NUM_THING_CLASSES`` and ``THING_CLASSES`` where
    these are set.

    Args:
        cfg: a config of either engine with the number of classes resolved.
        things: data set name → its classes of things, or None if they are not known; by default from the JSON file,
            whose things are its first classes.

    Raises:
        DatasetError: if they disagree, or a panoptic segmentation is asked for and there is nothing to take them from,
            or nothing but things.
    """
    key = "MODEL.DETR.PANOPTIC.NUM_THING_CLASSES"
    _check_things(cfg.MODEL.DETR)
    known, source = config.things(cfg), key
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        found = (things or _things)(name)
        if found is None:
            continue
        if known and len(found) != len(known):
            raise DatasetError(
                f"{source} has {len(known)} classes of things, but data set {name} has {len(found)}: use data sets of "
                f"the same classes, and leave {key} at 0, which takes the number from them"
            )
        if known and found != known:
            raise DatasetError(
                f"{source} has the things {list(known)}, but data set {name} {list(found)}: use data sets of the same "
                f"classes, and leave MODEL.DETR.PANOPTIC.THING_CLASSES and NUM_THING_CLASSES to them ([] and 0)"
            )
        known, source = found, f"data set {name}"
    if cfg.MODEL.DETR.PANOPTIC.ENABLED and not known:
        raise DatasetError(f"{key} is 0 and no data set tells the number: set it")
    if cfg.MODEL.DETR.PANOPTIC.ENABLED and len(known) >= cfg.MODEL.DETR.NUM_CLASSES > 0:
        raise DatasetError(
            f"MODEL.DETR.PANOPTIC.ENABLED is True, but all {cfg.MODEL.DETR.NUM_CLASSES} classes of {source} are "
            "things: name panoptic data sets, such as shapes_train_panoptic, or set it to False"
        )
    return known


def _check_things(keys: Any) -> None:
    listed, number, classes = list(keys.PANOPTIC.THING_CLASSES), keys.PANOPTIC.NUM_THING_CLASSES, keys.NUM_CLASSES
    where = f"MODEL.DETR.PANOPTIC.THING_CLASSES {listed}"
    if listed != sorted({index for index in listed if 0 <= index < (classes or index + 1)}):
        raise DatasetError(
            f"{where}: give each class once, in rising order, from 0 to {classes - 1 if classes else '…'}"
        )
    if listed and number not in (0, len(listed)):
        raise DatasetError(f"{where} are {len(listed)}, but NUM_THING_CLASSES is {number}: leave it at 0")


def _things(name: str) -> tuple[int, ...] | None:
    from .coco import read_num_things

    spec = get(name)
    return tuple(range(read_num_things(spec))) if Path(spec.json_file).is_file() else None


def check_same_classes(name_a: str, a: tuple[str, ...], name_b: str, b: tuple[str, ...]) -> None:
    """Raises a DatasetError unless two data sets, named for the message, have the same classes in the same order."""
    if len(a) != len(b):
        raise DatasetError(
            f"data set {name_a} has {len(a)} categories, but {name_b} has {len(b)}: data sets of one run need the "
            "same categories"
        )
    for index, pair in enumerate(zip(a, b, strict=True)):
        if pair[0] != pair[1]:
            raise DatasetError(
                f"class {index} is {pair[0]!r} in data set {name_a}, but {pair[1]!r} in {name_b}: data sets of one "
                "run need the same categories in the same order of their ids"
            )
