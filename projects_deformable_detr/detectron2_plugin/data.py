"""Registers data sets in Detectron2's catalogs, loads them with the project's reader and returns their classes."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import print_instances_class_histogram
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic
from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch.utils.data import ConcatDataset

from ..config import data as config_data
from ..data import catalog, lvis
from ..data.catalog import DatasetSpec
from ..data.config import DataConfig
from ..data.load import load_dataset, read_classes
from ..data.problems import DatasetError
from ..data.records import Records
from ..data.sampling import select_training_images
from ..shapes.scene import CATEGORIES
from .panoptic_classes import PanopticClasses, is_separated, is_standard, panoptic_classes

# Functions that Detectron2 registers for a JSON file; the project's reader returns the same records.
_READS_FILE = ("register_coco_instances.<locals>.<lambda>", "register_lvis_instances.<locals>.<lambda>")


def register_builtin() -> None:
    """Registers the built-in data sets that Detectron2 does not have."""
    for name in catalog.names():
        if name not in DatasetCatalog:
            _register(catalog.get(name))


def register(name: str, json_file: str, image_root: str) -> None:
    """Registers a data set in COCO's instances format or LVIS's. Idempotent.

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
    # line, as Detectron2 registers COCO's panoptic data sets.
    names = [str(item["name"]) for item in CATEGORIES]
    things, stuff = (
        {item["id"]: index for index, item in enumerate(CATEGORIES) if item["isthing"] == kind} for kind in (1, 0)
    )
    metadata = {
        "thing_classes": names,
        "stuff_classes": names,
        "thing_dataset_id_to_contiguous_id": things,
        "stuff_dataset_id_to_contiguous_id": stuff,
    }
    files = [str(path) for path in (spec.image_root, spec.panoptic_root, spec.json_file, spec.instances_json)]
    register_coco_panoptic(spec.name, metadata, *files)


def _load_lvis(spec: DatasetSpec) -> list[dict[str, Any]]:
    records = load_dataset(spec, "drop", masks=True)
    _set_classes(spec.name, records.summary.class_names, records.summary.category_ids)
    return list(records)


def _set_classes(name: str, names: tuple[str, ...], category_ids: tuple[int, ...]) -> None:
    """Sets the classes of a file in the metadata, as Detectron2's reader does."""
    metadata = MetadataCatalog.get(name)
    known = metadata.get("thing_classes")
    if known is not None and tuple(known) != names:
        raise DatasetError(
            f"data set {name} has the {len(known)} classes {', '.join(known[:5])}, … in Detectron2's metadata, but "
            f"{metadata.json_file} has {len(names)}: {', '.join(names[:5])}, …; register it under another name"
        )
    ids = {category_id: index for index, category_id in enumerate(category_ids)}
    metadata.set(thing_classes=list(names), thing_dataset_id_to_contiguous_id=ids)


def panoptic_spec(name: str) -> DatasetSpec:
    """Returns the location of a panoptic data set in Detectron2's catalog."""
    metadata = MetadataCatalog.get(name)
    return DatasetSpec(
        name, metadata.panoptic_json, metadata.image_root, metadata.panoptic_root, metadata.get("json_file")
    )


def find_spec(name: str) -> DatasetSpec | None:
    """Returns the location of a data set in COCO's formats or LVIS's; None for data sets in other formats.

    Cityscapes' panoptic files are in another format, as their image ids are strings.
    """
    metadata = MetadataCatalog.get(name)
    kind = metadata.get("evaluator_type")
    if name not in DatasetCatalog or metadata.get("image_root") is None or kind == "cityscapes_panoptic_seg":
        return None
    if is_standard(name):
        return panoptic_spec(name)
    if not metadata.get("json_file") or not (kind in ("coco", "lvis") or is_separated(name)):
        return None
    return DatasetSpec(name, metadata.json_file, metadata.image_root)


def load(name: str, config: DataConfig) -> Records | None:
    """Loads and checks a data set with the project's reader; returns None for data sets in other formats.

    Raises:
        DatasetError: naming file, record and remedy.
    """
    spec = find_spec(name)
    if spec is None:
        return None
    records = config_data.load(spec, config)
    if spec.panoptic_root is None and not is_separated(name):
        _set_classes(name, records.summary.class_names, records.summary.category_ids)
    return records


def _is_read_from_file(name: str) -> bool:
    """Returns whether the records of a data set are those of its instances file.

    They are not if a function of the user returns them, or in panoptic formats, where Detectron2's class ids differ.
    """
    function = DatasetCatalog.data.get(name)
    if function is None or is_standard(name) or is_separated(name):
        return False
    return getattr(function, "func", None) is _load_lvis or getattr(function, "__qualname__", None) in _READS_FILE


def training_data(cfg: CfgNode) -> dict[str, Any]:
    """Returns ``dataset`` and ``sampler`` for Detectron2's training loader; {} if Detectron2 must read a data set.

    The loader's workers create records on demand. Detectron2 would create all of them at the start.
    """
    config = config_data.data_config(cfg)
    if not all(map(_is_read_from_file, config.train)):
        return {}
    datasets = {name: load(name, config) for name in config.train}
    parts, factors = select_training_images(config, datasets, crowds=True)  # type: ignore[arg-type]
    print_instances_class_histogram(_label_chunks(parts), parts[0].summary.class_names)
    found: dict[str, Any] = {"dataset": ConcatDataset(parts)}  # type: ignore[arg-type]
    if factors is not None:
        found["sampler"] = RepeatFactorTrainingSampler(factors, seed=cfg.SEED if config.sampler.by_class else None)
    return found


def _label_chunks(parts: list[Records], size: int = 10_000) -> Iterator[dict[str, Any]]:
    """Yields labels as records of ``size`` objects each, which makes Detectron2's histogram faster."""
    for part in parts:
        labels = np.concatenate(part.object_labels())
        for start in range(0, len(labels), size):
            yield {"annotations": [{"category_id": label} for label in labels[start : start + size].tolist()]}


def test_data(cfg: CfgNode, name: str) -> Records | None:
    """Returns the images of a data set for Detectron2's test loader; None if Detectron2 must read it."""
    if not _is_read_from_file(name):
        return None
    records = load(name, config_data.data_config(cfg, eval_only=True))
    return None if records is None else records.without_annotations()


def resolve_num_classes(cfg: CfgNode) -> int:
    """Returns the number of classes of the data sets, which ``MODEL.DETR.NUM_CLASSES`` must equal if it is set.

    The classes of a data set are the ``thing_classes`` in its metadata; for a panoptic model and a panoptic data set,
    things and stuff.

    Raises:
        DatasetError: if two data sets, or a data set and the config, disagree; the message has both numbers.
    """
    return config_data.resolve_num_classes(cfg, lambda name: _class_names(cfg, name))


def resolve_thing_classes(cfg: CfgNode) -> tuple[int, ...]:
    """Returns the classes that are things (`config.data.resolve_thing_classes`); (): all of them.

    Without a panoptic data set or key there is no stuff, even if a model has more classes than the data set.
    """
    keys = cfg.MODEL.DETR.PANOPTIC
    is_panoptic = keys.ENABLED or keys.NUM_THING_CLASSES or keys.THING_CLASSES
    names = config_data.dataset_names(cfg)
    if not is_panoptic and not any(name in DatasetCatalog and is_standard(name) for name in names):
        return ()
    return config_data.resolve_thing_classes(cfg, lambda name: _known_classes(name, keys.ENABLED)[1] or None)


def separated_classes(cfg: CfgNode) -> PanopticClasses | None:
    """Returns the classes of a panoptic model whose data sets are in the separated format; None for other models."""
    found = (panoptic_classes(name, cfg.MODEL.DETR.PANOPTIC.ENABLED) for name in config_data.dataset_names(cfg))
    return next((classes for classes in found if classes is not None and classes.is_separated), None)


def known_class_names(cfg: CfgNode) -> tuple[str, ...] | None:
    """Returns the class names of the first data set with classes in its metadata, or None; no file is read."""
    panoptic = cfg.MODEL.DETR.PANOPTIC.ENABLED
    return next(filter(None, (class_names(name, panoptic=panoptic) for name in config_data.dataset_names(cfg))), None)


def class_names(dataset: str, *, panoptic: bool = False) -> tuple[str, ...] | None:
    """Returns the class names in the metadata of a data set, or None; no file is read.

    Args:
        dataset: name of the data set.
        panoptic: return the classes of a panoptic model.
    """
    return _known_classes(dataset, panoptic)[0] or None


def _known_classes(name: str, panoptic: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns names and things of the classes in the metadata of a data set; ((), ()) if there are none."""
    classes = panoptic_classes(name, panoptic)
    if classes is not None:
        return classes.names, classes.things
    names = tuple(MetadataCatalog.get(name).get("thing_classes") or ()) if name in DatasetCatalog else ()
    return names, tuple(range(len(names)))


def _class_names(cfg: CfgNode, name: str) -> tuple[str, ...]:
    """Returns the class names in the metadata of a data set, which are read from its file if they are missing."""
    if name not in DatasetCatalog:
        raise DatasetError(f"data set {name} is not in Detectron2's catalog: use --register {name} JSON IMAGE_ROOT")
    panoptic = cfg.MODEL.DETR.PANOPTIC.ENABLED
    if names := class_names(name, panoptic=panoptic):
        return names
    spec = find_spec(name)
    if spec is not None and _is_read_from_file(name):
        classes = read_classes(spec, drop_root_category=cfg.DATASETS.DROP_ROOT_CATEGORY)
        _set_classes(name, classes.names, classes.category_ids)
    else:
        DatasetCatalog.get(name)  # the function may set the metadata
    if names := class_names(name, panoptic=panoptic):
        return names
    raise DatasetError(
        f"data set {name} has no thing_classes in its metadata, so its number of classes is unknown: set "
        f'MetadataCatalog.get("{name}").thing_classes'
    )
