"""The project's data sets in Detectron2's catalogs, and what must be known of any data set before training."""

import logging
import os
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..config import most_objects
from ..data import catalog, coco
from ..data.catalog import DatasetSpec
from ..data.problems import DatasetError

_logger = logging.getLogger(__name__)


def register_builtin() -> None:
    """Registers those of the project's built-in data sets that Detectron2 does not have itself."""
    for name in catalog.names():
        if name not in DatasetCatalog:
            _register(catalog.get(name))


def register(name: str, json_file: str, image_root: str) -> None:
    """Registers a COCO-format data set under ``name``; the same call again is harmless.

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
    register_coco_instances(spec.name, {}, str(spec.json_file), str(spec.image_root))


def check(cfg: CfgNode, names: Iterable[str], *, for_evaluation: bool) -> None:
    """Checks every data set that is a COCO-format JSON file, in full, before anything is built.

    A data set registered as a function, whose metadata has no image folder, is that function's affair.

    A set to train on must not have more objects in an image than there are queries; one to evaluate on must have
    the fields that COCO's evaluation reads.

    Boxes that ``DATASETS.INVALID_BOXES: drop`` leaves out are counted here in a warning; Detectron2's mapper, which
    drops boxes without area from every training image, is what leaves them out.

    Raises:
        DatasetError: naming file, record and remedy.
    """
    for name in names:
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") != "coco" or not metadata.get("json_file"):
            continue
        if metadata.get("image_root") is None:
            continue
        spec = DatasetSpec(name, metadata.json_file, metadata.image_root)
        summary = coco.inspect(
            spec,
            cfg.DATASETS.INVALID_BOXES,
            max_objects=None if for_evaluation else most_objects(cfg),
            for_evaluation=for_evaluation,
        )
        _logger.info(
            "%s: %d images, %d objects, %d classes",
            name,
            summary.num_images,
            summary.num_annotations,
            len(summary.class_names),
        )


def resolve_num_classes(cfg: CfgNode) -> int:
    """The number of classes of ``cfg``'s data sets, which ``MODEL.DETR.NUM_CLASSES`` must equal where it is set.

    Any data set in Detectron2's catalogs counts, whoever registered it: its metadata's ``thing_classes``.

    Raises:
        DatasetError: if the data sets, or one of them and the config, disagree; the message has both numbers.
    """
    return catalog.resolve_num_classes(cfg, _class_names)


def known_class_names(cfg: CfgNode) -> tuple[str, ...] | None:
    """Of the first of ``cfg``'s data sets whose metadata has them already; no file is read for it."""
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        classes = MetadataCatalog.get(name).get("thing_classes") if name in DatasetCatalog else None
        if classes:
            return tuple(classes)
    return None


def _class_names(name: str) -> tuple[str, ...]:
    if name not in DatasetCatalog:
        raise DatasetError(f"data set {name} is not in Detectron2's catalog: --register {name} JSON IMAGE_ROOT")
    metadata = MetadataCatalog.get(name)
    if not metadata.get("thing_classes"):
        DatasetCatalog.get(name)  # a COCO file's loader fills the metadata in
    if not metadata.get("thing_classes"):
        raise DatasetError(
            f"data set {name} has no thing_classes in its metadata, so its number of classes is not known: set "
            f'MetadataCatalog.get("{name}").thing_classes'
        )
    return tuple(metadata.thing_classes)
