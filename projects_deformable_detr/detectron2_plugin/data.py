"""The project's data sets in Detectron2's catalogs, and the classes of any data set there."""

import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic

from ..data import catalog, coco, lvis
from ..data.catalog import DatasetSpec
from ..data.problems import DatasetError
from ..shapes.scene import CATEGORIES
from .panoptic_classes import PanopticClasses, is_standard, panoptic_classes


def register_builtin() -> None:
    """Registers those of the project's built-in data sets that Detectron2 does not have itself."""
    for name in catalog.names():
        if name not in DatasetCatalog:
            _register(catalog.get(name))


def register(name: str, json_file: str, image_root: str) -> None:
    """Registers a data set in COCO's format, or in LVIS's, under ``name``; the same call again is harmless.

    Raises:
        DatasetError: if the name stands for other files already, here or in Detectron2.
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
        # Detectron2's own function knows the categories of its own LVIS data sets only.
        DatasetCatalog.register(spec.name, lambda: _load_lvis(spec))
        metadata = MetadataCatalog.get(spec.name)
        metadata.set(evaluator_type="lvis", json_file=str(spec.json_file), image_root=str(spec.image_root))
        return
    if spec.panoptic_root is None:
        register_coco_instances(spec.name, {}, str(spec.json_file), str(spec.image_root))
        return
    # Things and stuff in one list of classes, Detectron2's "standard" panoptic format. Of the built-in ones, only
    # the shapes get here: Detectron2 has COCO itself.
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
    summary, records = coco.load(spec, "drop")
    ids = {identifier: index for index, identifier in enumerate(summary.category_ids)}
    classes = list(summary.class_names)
    MetadataCatalog.get(spec.name).set(thing_classes=classes, thing_dataset_id_to_contiguous_id=ids)
    return records


def panoptic_spec(name: str) -> DatasetSpec:
    """Where a panoptic data set of Detectron2's catalog lies."""
    metadata = MetadataCatalog.get(name)
    return DatasetSpec(
        name, metadata.panoptic_json, metadata.image_root, metadata.panoptic_root, metadata.get("json_file")
    )


def resolve_num_classes(cfg: CfgNode) -> int:
    """The number of classes of ``cfg``'s data sets, which ``MODEL.DETR.NUM_CLASSES`` must equal where it is set.

    Any data set in Detectron2's catalogs counts, whoever registered it: its metadata's ``thing_classes``, for a
    panoptic model those of its panoptic data sets.

    Raises:
        DatasetError: if the data sets, or one of them and the config, disagree; the message has both numbers.
    """
    return catalog.resolve_num_classes(cfg, lambda name: _class_names(cfg, name))


def resolve_things(cfg: CfgNode) -> tuple[int, ...]:
    """Which of the classes are things, as ``catalog.resolve_things`` says; (): all of them.

    Without a panoptic data set or key nothing is stuff, also where a model has more classes than the data set.
    """
    keys, names = cfg.MODEL.DETR.PANOPTIC, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    is_asked_for = keys.ENABLED or keys.NUM_THING_CLASSES or keys.THING_CLASSES
    if not is_asked_for and not any(name in DatasetCatalog and is_standard(name) for name in names):
        return ()
    return catalog.resolve_things(cfg, lambda name: _things(cfg, name))


def _things(cfg: CfgNode, name: str) -> tuple[int, ...] | None:
    classes = panoptic_classes(name, cfg.MODEL.DETR.PANOPTIC.ENABLED)
    if classes is not None:
        return classes.things
    names = MetadataCatalog.get(name).get("thing_classes") if name in DatasetCatalog else None
    return tuple(range(len(names))) if names else None


def separated_classes(cfg: CfgNode) -> PanopticClasses | None:
    """The classes of a panoptic model whose data sets are of the separated format; None for any other model."""
    names = dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    found = (panoptic_classes(name, cfg.MODEL.DETR.PANOPTIC.ENABLED) for name in names)
    return next((classes for classes in found if classes is not None and classes.is_separated), None)


def known_class_names(cfg: CfgNode) -> tuple[str, ...] | None:
    """Of the first of ``cfg``'s data sets whose metadata has them already; no file is read for it."""
    panoptic = cfg.MODEL.DETR.PANOPTIC.ENABLED
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    return next(filter(None, (class_names(name, panoptic=panoptic) for name in names)), None)


def class_names(dataset: str, *, panoptic: bool = False) -> tuple[str, ...] | None:
    """A data set's, where its metadata has them already; no file is read for it. ``panoptic``: of a panoptic model."""
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
        DatasetCatalog.get(name)  # a COCO file's loader fills the metadata in
    found = class_names(name, panoptic=panoptic)
    if not found:
        raise DatasetError(
            f"data set {name} has no thing_classes in its metadata, so its number of classes is not known: set "
            f'MetadataCatalog.get("{name}").thing_classes'
        )
    return found
