"""Data sets in Detectron2's catalogs: registration, loading with the project's reader, classes and things."""

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

# Functions of Detectron2 that register a JSON file, so that the project's reader returns the same records.
_READS_FILE = ("register_coco_instances.<locals>.<lambda>", "register_lvis_instances.<locals>.<lambda>")


def register_builtin() -> None:
    """Registers the project's built-in data sets that Detectron2 does not have."""
    for name in catalog.names():
        if name not in DatasetCatalog:
            _register(catalog.get(name))


def register(name: str, json_file: str, image_root: str) -> None:
    """Registers a data set in COCO's format or LVIS's. Idempotent.

    Raises:
        DatasetError: if the name is the name of other files, here or in Detectron2.
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
        # Detectron2's function is limited to the categories of its own LVIS data sets.
        DatasetCatalog.register(spec.name, partial(_load_lvis, spec))
        metadata = MetadataCatalog.get(spec.name)
        metadata.set(evaluator_type="lvis", json_file=str(spec.json_file), image_root=str(spec.image_root))
        return
    if spec.panoptic_root is None:
        register_coco_instances(spec.name, {}, str(spec.json_file), str(spec.image_root))
        return
    # Things and stuff in one list of classes, Detectron2's "standard" panoptic format. Detectron2 has COCO's data sets,
    # so that only the shapes are registered here.
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
    """Writes the classes of a file to the metadata, as Detectron2's reader does."""
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

    Cityscapes' panoptic files are in another format: their image ids are texts.
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
    """Loads and checks a data set with the project's reader, which decodes a file once per process.

    Returns:
        the records; None for data sets in other formats.

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
    """Whether the records of a data set are those of its instances file.

    They are not if a user's function returns them, nor in panoptic formats, which Detectron2 numbers in its own way.
    """
    function = DatasetCatalog.data.get(name)
    if function is None or is_standard(name) or is_separated(name):
        return False
    return getattr(function, "func", None) is _load_lvis or getattr(function, "__qualname__", None) in _READS_FILE


def training_data(cfg: CfgNode) -> dict[str, Any]:
    """Returns ``dataset`` and ``sampler`` for Detectron2's training loader; {} if Detectron2 has to read a data set.

    Records are created by the loader's workers when they are needed. Detectron2 would create all of them at the start.
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
    """Yields the labels of many objects at a time in the form of records, of which Detectron2's histogram needs few."""
    for part in parts:
        labels = np.concatenate(part.object_labels())
        for start in range(0, len(labels), size):
            yield {"annotations": [{"category_id": label} for label in labels[start : start + size].tolist()]}


def test_data(cfg: CfgNode, name: str) -> Records | None:
    """Returns the images of a data set for Detectron2's test loader; None if Detectron2 has to read it."""
    if not _is_read_from_file(name):
        return None
    records = load(name, config_data.data_config(cfg, eval_only=True))
    return None if records is None else records.without_annotations()


def resolve_num_classes(cfg: CfgNode) -> int:
    """Returns the number of classes of the data sets, which ``MODEL.DETR.NUM_CLASSES`` must equal if it is set.

    The classes of any data set in Detectron2's catalogs are the ``thing_classes`` of its metadata; for a panoptic
    model, those of its panoptic data sets.

    Raises:
        DatasetError: if two data sets, or a data set and the config, disagree; the message has both numbers.
    """
    return config_data.resolve_num_classes(cfg, lambda name: _class_names(cfg, name))


def resolve_things(cfg: CfgNode) -> tuple[int, ...]:
    """Returns the classes that are things (`config.data.resolve_things`); (): all of them.

    Without a panoptic data set or key there is no stuff, also if a model has more classes than the data set.
    """
    keys, names = cfg.MODEL.DETR.PANOPTIC, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    is_panoptic = keys.ENABLED or keys.NUM_THING_CLASSES or keys.THING_CLASSES
    if not is_panoptic and not any(name in DatasetCatalog and is_standard(name) for name in names):
        return ()
    return config_data.resolve_things(cfg, lambda name: _things(cfg, name))


def _things(cfg: CfgNode, name: str) -> tuple[int, ...] | None:
    classes = panoptic_classes(name, cfg.MODEL.DETR.PANOPTIC.ENABLED)
    if classes is not None:
        return classes.things
    names = MetadataCatalog.get(name).get("thing_classes") if name in DatasetCatalog else None
    return tuple(range(len(names))) if names else None


def separated_classes(cfg: CfgNode) -> PanopticClasses | None:
    """Returns the classes of a panoptic model whose data sets are in the separated format; None for other models."""
    names = dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    found = (panoptic_classes(name, cfg.MODEL.DETR.PANOPTIC.ENABLED) for name in names)
    return next((classes for classes in found if classes is not None and classes.is_separated), None)


def known_class_names(cfg: CfgNode) -> tuple[str, ...] | None:
    """Returns the class names of the first data set whose metadata has them; no file is read."""
    panoptic = cfg.MODEL.DETR.PANOPTIC.ENABLED
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    return next(filter(None, (class_names(name, panoptic=panoptic) for name in names)), None)


def class_names(dataset: str, *, panoptic: bool = False) -> tuple[str, ...] | None:
    """Returns the class names in the metadata of a data set; None if there are none. No file is read.

    Args:
        dataset: name of the data set.
        panoptic: return the classes of a panoptic model.
    """
    classes = panoptic_classes(dataset, panoptic)
    if classes is not None:
        return classes.names
    names = MetadataCatalog.get(dataset).get("thing_classes") if dataset in DatasetCatalog else None
    return tuple(names) if names else None


def _class_names(cfg: CfgNode, name: str) -> tuple[str, ...]:
    if name not in DatasetCatalog:
        raise DatasetError(f"data set {name} is not in Detectron2's catalog: --register {name} JSON IMAGE_ROOT")
    panoptic = cfg.MODEL.DETR.PANOPTIC.ENABLED
    if not class_names(name, panoptic=panoptic):
        spec = find_spec(name)
        if spec is not None and _is_read_from_file(name):
            classes = read_classes(spec)
            _set_classes(name, classes.names, classes.category_ids)
        else:
            DatasetCatalog.get(name)  # the function may set the metadata
    found = class_names(name, panoptic=panoptic)
    if not found:
        raise DatasetError(
            f"data set {name} has no thing_classes in its metadata, so its number of classes is not known: set "
            f'MetadataCatalog.get("{name}").thing_classes'
        )
    return found
