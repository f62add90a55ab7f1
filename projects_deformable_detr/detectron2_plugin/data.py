"""Registers and checks data sets in Detectron2's catalogs, and provides records for Detectron2's loaders."""

import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import get_detection_dataset_dicts, print_instances_class_histogram
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic
from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch.utils.data import ConcatDataset

from ..config import data as config_data
from ..config.data import data_config, dataset_names
from ..data import catalog, lvis
from ..data.catalog import DatasetSpec
from ..data.config import DataConfig
from ..data.load import load_dataset, read_classes
from ..data.problems import DatasetError
from ..data.records import Records
from ..data.sampling import select_training_images, training_images
from ..engine import is_installed
from ..errors import UserError
from ..shapes.scene import CATEGORIES
from .classes import class_names, is_separated, is_standard, panoptic_classes, set_classes

_logger = logging.getLogger(__name__)

# Functions that Detectron2 registers for a JSON file; the project's reader returns the same records.
_READS_FILE = tuple(
    f"register_{kind}.<locals>.<lambda>" for kind in ("coco_instances", "lvis_instances", "coco_panoptic")
)
# Metadata keys whose values are files or folders.
_PATHS = (
    "json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root", "image_dir", "gt_dir", "dirname",
)  # fmt: skip
# Packages that a format requires: import names, and names for pip install.
_PACKAGES = {
    "lvis": {"faster_coco_eval": "faster-coco-eval"},
    "cityscapes_instance": {"cityscapesscripts": "cityscapesscripts", "shapely": "shapely"},
    "cityscapes_panoptic_seg": {"cityscapesscripts": "cityscapesscripts"},
}
_LOADED_BY_DETECTRON2 = ("lvis", "pascal_voc", "cityscapes_instance", "cityscapes_panoptic_seg")
_WITHOUT_OBJECTS = {
    "sem_seg": "Detectron2's panoptic data sets, such as coco_2017_train_panoptic",
    "cityscapes_sem_seg": "cityscapes_fine_instance_seg_train or cityscapes_fine_panoptic_train",
}


def register_builtin() -> None:
    """Registers the built-in data sets that Detectron2 does not have."""
    for name in catalog.names():
        if name not in DatasetCatalog:
            _register(catalog.get(name))


def register(name: str, json_file: str, image_root: str) -> None:
    """Registers a data set in COCO instances or LVIS format. Idempotent.

    Raises:
        DatasetError: if the name is registered with other files, here or in Detectron2.
    """
    if name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        known = metadata.get("json_file"), metadata.get("image_root")
        if [os.path.abspath(path or "") for path in known] != [os.path.abspath(json_file), os.path.abspath(image_root)]:
            raise DatasetError(
                f"data set {name!r} is in Detectron2's catalog with json_file {known[0]} and image_root {known[1]}, "
                f"not {json_file} with images in {image_root}: choose another name"
            )
    catalog.register(name, json_file, image_root)
    if name not in DatasetCatalog:
        _register(catalog.get(name))


def _register(spec: DatasetSpec) -> None:
    if spec.panoptic_root is None and lvis.is_lvis_file(spec.json_file):
        # Detectron2's function only supports the categories of the original LVIS files.
        DatasetCatalog.register(spec.name, partial(_load_lvis, spec))
        metadata = MetadataCatalog.get(spec.name)
        metadata.set(evaluator_type="lvis", json_file=str(spec.json_file), image_root=str(spec.image_root))
        return
    if spec.panoptic_root is None:
        register_coco_instances(spec.name, {}, str(spec.json_file), str(spec.image_root))
        return
    # Detectron2's "standard" panoptic format, with things and stuff in one list of classes. Only the shapes reach this
    # line, because Detectron2 registers COCO's panoptic data sets.
    names = [str(item["name"]) for item in CATEGORIES]
    things, stuff = (
        {item["id"]: index for index, item in enumerate(CATEGORIES) if item["isthing"] == kind} for kind in (1, 0)
    )
    ids = {"thing_dataset_id_to_contiguous_id": things, "stuff_dataset_id_to_contiguous_id": stuff}
    files = [str(path) for path in (spec.image_root, spec.panoptic_root, spec.json_file, spec.instances_json)]
    register_coco_panoptic(spec.name, {"thing_classes": names, "stuff_classes": names, **ids}, *files)


def _load_lvis(spec: DatasetSpec) -> list[dict[str, Any]]:
    records = load_dataset(spec, "drop", masks=True)
    set_classes(spec.name, records.summary.class_names, records.summary.category_ids)
    return list(records)


def find_spec(name: str, *, panoptic: bool = False) -> DatasetSpec | None:
    """Returns the location of a data set in a COCO format or LVIS format; None for data sets in other formats.

    Panoptic files of Cityscapes have another format, because their image ids are strings. For a data set in the
    separated format, the location is that of its instances file unless ``panoptic``.
    """
    metadata = MetadataCatalog.get(name)
    kind = metadata.get("evaluator_type")
    if name not in DatasetCatalog or metadata.get("image_root") is None or kind == "cityscapes_panoptic_seg":
        return None
    if is_standard(name) or (panoptic and is_separated(name)):
        return panoptic_spec(name)
    if not metadata.get("json_file") or not (kind in ("coco", "lvis") or is_separated(name)):
        return None
    return DatasetSpec(name, metadata.json_file, metadata.image_root)


def panoptic_spec(name: str) -> DatasetSpec:
    """Returns the location of the panoptic files of a data set."""
    metadata = MetadataCatalog.get(name)
    return DatasetSpec(
        name, metadata.panoptic_json, metadata.image_root, metadata.panoptic_root, metadata.get("json_file")
    )


def load(name: str, config: DataConfig) -> Records | None:
    """Loads and checks a data set with the project's reader; returns None for data sets in other formats.

    Raises:
        DatasetError: for an invalid data set; the message names the file, the record and a remedy.
    """
    spec = find_spec(name)
    if spec is None:
        return None
    records = config_data.load(spec, config)
    if spec.panoptic_root is None and not is_separated(name):
        set_classes(name, records.summary.class_names, records.summary.category_ids)
    return records


def is_read_from_file(name: str) -> bool:
    """Returns whether the records of a data set are those of its annotation file.

    They are not if a user-defined function returns them, if the data set is in the separated panoptic format, or if the
    order of the class ids in the metadata of a panoptic data set differs from that of the project's reader.
    """
    function, spec = DatasetCatalog.data.get(name), find_spec(name)
    if function is None or spec is None or is_separated(name):
        return False
    if getattr(function, "func", None) is not _load_lvis and getattr(function, "__qualname__", None) not in _READS_FILE:
        return False
    classes = panoptic_classes(name, True)
    return classes is None or read_classes(spec).category_ids == classes.category_ids


def training_data(config: DataConfig, seed: int) -> dict[str, Any]:
    """Returns ``dataset`` and ``sampler`` for Detectron2's training loader; {} if Detectron2 must read a data set.

    The loader's workers create records on demand. Detectron2 would create all of them at the start.
    """
    if not all(map(is_read_from_file, config.train)):
        return {}
    datasets = {name: load(name, config) for name in config.train}
    parts, factors = select_training_images(config, datasets, crowds=True)  # type: ignore[arg-type]
    print_instances_class_histogram(_label_chunks(parts), parts[0].summary.class_names)
    found: dict[str, Any] = {"dataset": ConcatDataset(parts)}  # type: ignore[arg-type]
    if factors is not None:
        found["sampler"] = RepeatFactorTrainingSampler(factors, seed=seed if config.sampler.by_class else None)
    return found


def count_training_images(config: DataConfig) -> int:
    """Returns the number of images of the training sets, excluding those without objects if ``filter_empty``."""
    if all(map(is_read_from_file, config.train)):
        datasets = {name: load(name, config) for name in config.train}
        return sum(map(len, training_images(config, datasets)))  # type: ignore[arg-type]
    return len(get_detection_dataset_dicts(config.train, filter_empty=config.filter_empty, check_consistency=False))


def _label_chunks(parts: list[Records], size: int = 10_000) -> Iterator[dict[str, Any]]:
    """Yields labels as records of ``size`` objects each, which makes Detectron2's histogram faster."""
    for part in parts:
        labels = np.concatenate(part.object_labels())
        for start in range(0, len(labels), size):
            yield {"annotations": [{"category_id": label} for label in labels[start : start + size].tolist()]}


def test_data(name: str, config: DataConfig) -> Records | None:
    """Returns the images of a data set for Detectron2's test loader; None if Detectron2 must read it."""
    records = load(name, config) if is_read_from_file(name) else None
    return None if records is None else records.without_annotations()


def resolve_num_classes(cfg: CfgNode, *, allow_uncatalogued: bool = False) -> int:
    """Returns the number of classes of the data sets, which ``MODEL.DETR.NUM_CLASSES`` must equal if it is set.

    The classes of a data set are the ``thing_classes`` in its metadata; for a panoptic model and a panoptic data set,
    things and stuff. They are read from the file of the data set if the metadata has none.

    Args:
        cfg: config.
        allow_uncatalogued: whether to skip data sets that are not in Detectron2's catalog if
            ``MODEL.DETR.NUM_CLASSES`` is set.

    Raises:
        DatasetError: if two data sets, or a data set and the config, disagree; the message contains both numbers.
    """
    config = data_config(cfg, eval_only=True)
    skips = allow_uncatalogued and bool(cfg.MODEL.DETR.NUM_CLASSES)
    found = {
        name: None if skips and name not in DatasetCatalog else _read_class_names(name, config)
        for name in dataset_names(cfg)
    }
    unknown = [name for name, names in found.items() if names is None]
    if unknown and not cfg.MODEL.DETR.NUM_CLASSES:
        raise DatasetError(
            f"data set {unknown[0]} has no thing_classes in its metadata, so its number of classes is unknown: set "
            f'MetadataCatalog.get("{unknown[0]}").thing_classes, or MODEL.DETR.NUM_CLASSES'
        )
    return config_data.resolve_num_classes(cfg, found.__getitem__)


def _read_class_names(name: str, config: DataConfig) -> tuple[str, ...] | None:
    if name not in DatasetCatalog:
        raise DatasetError(f"data set {name} is not in Detectron2's catalog: use --register {name} JSON IMAGE_ROOT")
    if names := class_names(name, panoptic=config.panoptic):
        return names
    spec = find_spec(name)
    if spec is not None and is_read_from_file(name):
        classes = read_classes(spec, drop_root_category=config.drop_root_category)
        set_classes(name, classes.names, classes.category_ids)
    else:
        DatasetCatalog.get(name)  # the function may set the metadata
    return class_names(name, panoptic=config.panoptic)


def check(config: DataConfig) -> None:
    """Checks the data sets of a run: all content for COCO formats; only files and packages for other formats.

    The records of other formats are checked by `functions.check`.

    Raises:
        DatasetError: for an invalid data set; the message names the file, the record and a remedy.
        UserError: if a package for the format of a data set is not installed.
    """
    for name in dict.fromkeys([*config.train, *config.test]):
        metadata = MetadataCatalog.get(name)
        kind = metadata.get("evaluator_type")
        _check_kind(name, kind, config.masks)
        if kind in _LOADED_BY_DETECTRON2 or (config.panoptic and is_separated(name)):
            _check_paths(name, metadata)
        records = load(name, config)
        if records is not None:
            summary = records.summary
            counts = summary.num_images, summary.num_annotations, len(summary.class_names)
            _logger.info("%s: %d images, %d objects, %d classes", name, *counts)


def _check_kind(name: str, kind: str | None, with_masks: bool) -> None:
    if kind in _WITHOUT_OBJECTS:
        raise DatasetError(
            f"data set {name} has labels of pixels, but no objects to detect: use {_WITHOUT_OBJECTS[kind]}"
        )
    if kind == "pascal_voc" and with_masks:
        raise DatasetError(f"MODEL.MASK_ON is True, but data set {name} has boxes only: set it to False")
    missing = [pip for package, pip in _PACKAGES.get(kind or "", {}).items() if not is_installed(package)]
    if missing:
        raise UserError(f"data set {name} requires packages that are not installed: pip install {' '.join(missing)}")


def _check_paths(name: str, metadata: Any) -> None:
    """Checks that files exist, because the errors of Detectron2's loaders do not name the data set."""
    paths = {key: str(metadata.get(key)) for key in _PATHS if metadata.get(key)}
    missing = [f"{key} {path}" for key, path in paths.items() if "://" not in path and not os.path.exists(path)]
    if missing:
        raise DatasetError(
            f"data set {name} is not where Detectron2's metadata expects it: there is no {', no '.join(missing)}. "
            "Place it there as Detectron2's datasets/README.md describes, or set DETECTRON2_DATASETS to its folder"
        )
