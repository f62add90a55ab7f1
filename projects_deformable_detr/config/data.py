"""Reads the configuration of data sets, and resolves the classes of a model from its data sets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from ..data import catalog
from ..data.catalog import DatasetSpec, check_same_classes
from ..data.config import DataConfig, SamplerConfig
from ..data.image_check import ImageFiles, check_files, check_images
from ..data.images import ImageReader
from ..data.load import load_dataset, log_once, read_classes
from ..data.problems import DatasetError
from ..data.records import Array, Records
from ..errors import ArgumentError
from .keys import get_cfg, set_thing_classes, thing_classes
from .loading import merge_known
from .reading import get, name_keys, naming_keys, read

DATA_KEYS = {
    "train": "DATASETS.TRAIN",
    "test": "DATASETS.TEST",
    "invalid_boxes": "DATASETS.INVALID_BOXES",
    "check_images": "DATASETS.CHECK_IMAGES",
    "unreadable_images": "DATASETS.UNREADABLE_IMAGES",
    "drop_root_category": "DATASETS.DROP_ROOT_CATEGORY",
    "max_detections": "TEST.DETECTIONS_PER_IMAGE",
    "masks": "MODEL.MASK_ON",
    "panoptic": "MODEL.DETR.PANOPTIC.ENABLED",
    "filter_empty": "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
    "batch_size": "SOLVER.IMS_PER_BATCH",
    "num_workers": "DATALOADER.NUM_WORKERS",
    "group_by_aspect_ratio": "DATALOADER.ASPECT_RATIO_GROUPING",
}
SAMPLER_KEYS = {
    "name": "DATALOADER.SAMPLER_TRAIN",
    "repeat_threshold": "DATALOADER.REPEAT_THRESHOLD",
    "repeat_sqrt": "DATALOADER.REPEAT_SQRT",
    "dataset_weights": "DATASETS.TRAIN_REPEAT_FACTOR",
}
READER_KEYS = {
    "format": "INPUT.FORMAT",
    "intensity_window": "INPUT.INTENSITY_WINDOW",
    "exif_orientation": "INPUT.EXIF_ORIENTATION",
}
_LOADING_KEYS = {**DATA_KEYS, **READER_KEYS, "max_objects": "MODEL.DETR.NUM_OBJECT_QUERIES"}
_THINGS_KEY = "MODEL.DETR.PANOPTIC.NUM_THING_CLASSES"


def register_data_sets(cfg: CfgNode, others: Sequence[Sequence[str]] = ()) -> None:
    """Registers the data sets of ``DATASETS.REGISTER`` and others, (name, annotation file, image folder) each."""
    for item in [*cfg.DATASETS.REGISTER, *others]:
        catalog.register(*item)


def data_config(cfg: CfgNode, *, eval_only: bool = False) -> DataConfig:
    """Reads the configuration of data sets, loaders and sampler, without training sets if ``eval_only``."""
    return read(
        DataConfig,
        cfg,
        DATA_KEYS,
        **({"train": ()} if eval_only else {}),
        # Each query detects one object. A detector without a decoder has one query per token.
        max_objects=cfg.MODEL.DETR.NUM_OBJECT_QUERIES if cfg.MODEL.DETR.DEC_LAYERS else None,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
        sampler=SamplerConfig() if eval_only else sampler_config(cfg),
        reader=image_reader(cfg),
    )


def image_reader(cfg: CfgNode) -> ImageReader:
    """Reads the options of the image reader."""
    return read(ImageReader, cfg, READER_KEYS)


def sampler_config(cfg: CfgNode) -> SamplerConfig:
    """Reads the sampler of training images."""
    names = tuple(cfg.DATASETS.TRAIN)

    def build(dataset_weights: tuple[object, ...], **options: Any) -> SamplerConfig:
        weights = {}
        for item in dataset_weights:
            if not isinstance(item, list | tuple) or len(item) != 2 or item[0] not in names:
                raise ArgumentError(
                    "dataset_weights", f"has {item!r}: use pairs (name, weight) with names from {', '.join(names)}"
                )
            weights[item[0]] = item[1]
        return SamplerConfig(dataset_weights=weights, **options)

    return read(build, cfg, SAMPLER_KEYS)


def load(spec: DatasetSpec, config: DataConfig) -> Records:
    """Loads a data set and checks it and its image files for its use in training, evaluation or both.

    Raises:
        DatasetError: as in `load_dataset`, with config keys instead of arguments.
    """
    is_test = spec.name in config.test
    with naming_keys(_LOADING_KEYS):
        records = load_dataset(
            spec,
            config.invalid_boxes,
            config.max_objects if spec.name in config.train else None,
            for_evaluation=is_test,
            masks=config.masks,
            max_detections=config.max_detections if is_test else None,
            drop_root_category=config.drop_root_category,
            warn=_warn,
        )
        return check_images(records, config.reader, config.check_images, config.unreadable_images, warn=_warn)


def readable_images(files: ImageFiles, config: DataConfig) -> Array:
    """Checks the image files of data sets without `Records`; see `image_check.check_files`.

    Returns:
        Indices of the images, without unreadable ones if ``config.unreadable_images`` is ``"skip"``.
    """
    with naming_keys(_LOADING_KEYS):
        return check_files(files, config.reader, config.check_images, config.unreadable_images, warn=_warn)


def _warn(message: str) -> None:
    log_once(name_keys(message, _LOADING_KEYS))


def load_instances(records: Records, config: DataConfig) -> Records | None:
    """Loads the instances of a panoptic data set for the evaluation of its images.

    Args:
        records: data set; the result contains only its images.
        config: configuration of the data sets.

    Returns:
        The instances; None for data sets in other formats, or if there is no instances file.

    Raises:
        DatasetError: as in `load`, or if the file lacks an image of the data set.
    """
    spec = records.spec
    if spec.panoptic_root is None or spec.instances_json is None or not Path(spec.instances_json).is_file():
        return None
    # The image files have been checked with the panoptic data set.
    instances = load(spec.instances(), replace(config, train=(), check_images="none"))
    missing = np.setdiff1d(records.image_ids, instances.image_ids)
    if missing.size:
        raise DatasetError(
            f"data set {spec.name}: {spec.instances_json} lacks {missing.size} images of {spec.json_file}, such as the "
            f"one with id {missing[0]}: use files with the same images"
        )
    return instances.select(np.flatnonzero(np.isin(instances.image_ids, records.image_ids)))


def with_classes(
    cfg: CfgNode,
    num_classes: Callable[[CfgNode], int] | None = None,
    things: Callable[[CfgNode], tuple[int, ...]] | None = None,
) -> CfgNode:
    """Returns a copy of a config with the number of classes and the thing classes of its data sets.

    Args:
        cfg: config of either engine.
        num_classes, things: `resolve_num_classes` and `resolve_thing_classes` of an engine with its own catalog.

    Raises:
        DatasetError: as raised by these functions.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.NUM_CLASSES = (num_classes or resolve_num_classes)(cfg)
    set_thing_classes(cfg, (things or resolve_thing_classes)(cfg))
    return cfg


def resolve_num_classes(cfg: CfgNode, class_names: Callable[[str], tuple[str, ...] | None] | None = None) -> int:
    """Returns the number of classes of the model.

    It is the number of categories of ``DATASETS.TRAIN`` and ``DATASETS.TEST``, which must agree with each other and,
    unless it is 0, with ``MODEL.DETR.NUM_CLASSES``. If ``NUM_CLASSES`` is set, data sets without an annotation file are
    skipped, so that a trained model can be built without its data.

    Args:
        cfg: config of either engine.
        class_names: returns the class names of a data set, or None if they are unknown. Default: reads them from the
            annotation file.

    Raises:
        DatasetError: if numbers or names of classes differ, a data set cannot be read, or there is no data set.
    """
    num_classes = get(cfg, "MODEL.DETR.NUM_CLASSES")
    if not isinstance(num_classes, int) or num_classes < 0:
        raise DatasetError(
            f"MODEL.DETR.NUM_CLASSES is {num_classes}: set it to the number of classes, or to 0 to use the data set's"
        )
    first: tuple[str, tuple[str, ...]] | None = None
    for name in dataset_names(cfg):
        if class_names is not None:
            found = class_names(name)
            if found is None:
                continue
        elif num_classes and not Path(catalog.get(name).json_file).is_file():
            continue
        else:
            found = read_classes(catalog.get(name), drop_root_category=cfg.DATASETS.DROP_ROOT_CATEGORY).names
        if num_classes and len(found) != num_classes:
            raise DatasetError(
                f"MODEL.DETR.NUM_CLASSES is {num_classes}, but data set {name} has {len(found)} categories: set it to "
                f"{len(found)}, or to 0 to use the data set's"
            )
        if first is None:
            first = (name, found)
        else:
            check_same_classes(*first, name, found)
    if first is None and not num_classes:
        raise DatasetError(
            "MODEL.DETR.NUM_CLASSES is 0, and DATASETS.TRAIN and DATASETS.TEST are empty, so the number of classes is "
            "unknown: set one of them"
        )
    return num_classes or len(first[1] if first else ())


def resolve_thing_classes(
    cfg: CfgNode, things: Callable[[str], tuple[int, ...] | None] | None = None
) -> tuple[int, ...]:
    """Returns the thing classes of the model, or () if unknown.

    They are the thing classes of panoptic data sets and all classes of other data sets, which must agree with each
    other and with ``MODEL.DETR.PANOPTIC.NUM_THING_CLASSES`` and ``THING_CLASSES``, if these are set.

    Args:
        cfg: config of either engine, with the number of classes resolved.
        things: returns the thing classes of a data set, or None if they are unknown. Default: reads them from the
            annotation file.

    Raises:
        DatasetError: if thing classes differ, or a panoptic model has no thing or no stuff classes.
    """
    panoptic, num_classes = cfg.MODEL.DETR.PANOPTIC, cfg.MODEL.DETR.NUM_CLASSES
    _check_things(panoptic.THING_CLASSES, panoptic.NUM_THING_CLASSES, num_classes)
    known, source = thing_classes(cfg), _THINGS_KEY
    for name in dataset_names(cfg):
        found = things(name) if things else _read_things(cfg, name)
        if found is None:
            continue
        if known and len(found) != len(known):
            raise DatasetError(
                f"{source} has {len(known)} thing classes, but data set {name} has {len(found)}: use data sets with "
                f"the same classes, and set {_THINGS_KEY} to 0 to use their number"
            )
        if known and found != known:
            raise DatasetError(
                f"{source} has the thing classes {list(known)}, but data set {name} has {list(found)}: use data sets "
                "with the same classes, and set MODEL.DETR.PANOPTIC.THING_CLASSES to [] and NUM_THING_CLASSES to 0"
            )
        known, source = found, f"data set {name}"
    if panoptic.ENABLED and not known:
        raise DatasetError(
            f"{_THINGS_KEY} is 0, and no data set contains the number of thing classes: set it to this number"
        )
    if panoptic.ENABLED and len(known) >= num_classes > 0:
        raise DatasetError(
            f"MODEL.DETR.PANOPTIC.ENABLED is True, but all {num_classes} classes of {source} are things: use panoptic "
            "data sets, such as shapes_train_panoptic, or set it to False"
        )
    return known


def is_panoptic(cfg: CfgNode) -> bool:
    """Returns whether the model predicts panoptic segmentations."""
    return bool(cfg.MODEL.DETR.PANOPTIC.ENABLED)


def dataset_names(cfg: CfgNode) -> list[str]:
    """Returns the names of all data sets, training sets first."""
    return list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))


def _check_things(listed: Sequence[int], number: int, num_classes: int) -> None:
    where = f"MODEL.DETR.PANOPTIC.THING_CLASSES is {list(listed)}"
    if list(listed) != sorted({index for index in listed if 0 <= index < (num_classes or index + 1)}):
        raise DatasetError(
            f"{where}: list each class once, in ascending order, from 0 to {num_classes - 1 if num_classes else '…'}"
        )
    if listed and number not in (0, len(listed)):
        raise DatasetError(f"{where}, but NUM_THING_CLASSES is {number}: set it to 0")


def _read_things(cfg: CfgNode, name: str) -> tuple[int, ...] | None:
    spec = catalog.get(name)
    if not Path(spec.json_file).is_file():
        return None
    return tuple(range(read_classes(spec, drop_root_category=cfg.DATASETS.DROP_ROOT_CATEGORY).num_things))


def run_data_config(content: Mapping[str, Any]) -> tuple[DataConfig, dict[str, DatasetSpec]]:
    """Reads the data sets in the config of a run of any Detectron2 model, without registering them.

    Returns:
        Config and locations by name; without those of names that are neither in ``DATASETS.REGISTER`` nor registered.

    Raises:
        UserError: for a value of a wrong type or out of range.
    """
    cfg = get_cfg("standalone")
    merge_known(cfg, content)
    specs = {name: catalog.get(name) for name in dataset_names(cfg) if name in catalog.names()}
    return data_config(cfg), specs | {item[0]: DatasetSpec(*item) for item in cfg.DATASETS.REGISTER}
