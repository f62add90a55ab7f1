"""The project's data sets in Detectron2's catalogs, and what must be known of any data set before training."""

import logging
import os
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic

from ..config import most_objects
from ..data import catalog, coco
from ..data.catalog import DatasetSpec
from ..data.problems import DatasetError
from ..data.scene import CATEGORIES

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


def is_panoptic(name: str) -> bool:
    """Whether a data set has segments of things and stuff in its records: Detectron2's "standard" panoptic format.

    Its "separated" format has annotations of things beside, and is a data set of instances here.
    """
    metadata = MetadataCatalog.get(name)
    return metadata.get("evaluator_type") == "coco_panoptic_seg" and metadata.get("sem_seg_root") is None


def panoptic_spec(name: str) -> DatasetSpec:
    """Where a panoptic data set of Detectron2's catalog lies."""
    metadata = MetadataCatalog.get(name)
    return DatasetSpec(
        name, metadata.panoptic_json, metadata.image_root, metadata.panoptic_root, metadata.get("json_file")
    )


def things_of(name: str) -> str:
    """The name of a data set's things alone in the metadata catalog, for evaluators of instances.

    Detectron2's "standard" panoptic metadata has stuff among its thing_classes, which its own evaluator refuses.
    """
    if not is_panoptic(name):
        return name
    whole, things = MetadataCatalog.get(name), MetadataCatalog.get(f"{name}_things")
    ids = whole.thing_dataset_id_to_contiguous_id
    things.set(
        json_file=whole.json_file,
        image_root=whole.image_root,
        evaluator_type="coco",
        thing_classes=list(whole.thing_classes[: len(ids)]),
        thing_dataset_id_to_contiguous_id=ids,
    )
    return f"{name}_things"


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
        if metadata.get("image_root") is None:
            continue
        if is_panoptic(name):
            spec = panoptic_spec(name)
        elif metadata.get("evaluator_type") == "coco" and metadata.get("json_file"):
            spec = DatasetSpec(name, metadata.json_file, metadata.image_root)
        else:
            continue
        summary = coco.inspect(
            spec,
            cfg.DATASETS.INVALID_BOXES,
            max_objects=None if for_evaluation else most_objects(cfg),
            for_evaluation=for_evaluation,
            masks=cfg.MODEL.MASK_ON,
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


def resolve_num_things(cfg: CfgNode) -> int:
    """How many of the classes, the first ones, are things, as ``catalog.resolve_num_things`` says; 0: all of them.

    Without a panoptic data set or key nothing is stuff, also where a model has more classes than the data set.
    """
    keys, names = cfg.MODEL.DETR.PANOPTIC, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    is_asked_for = keys.ENABLED or keys.NUM_THING_CLASSES
    if not is_asked_for and not any(name in DatasetCatalog and is_panoptic(name) for name in names):
        return 0
    return catalog.resolve_num_things(cfg, _num_things)


def _num_things(name: str) -> int | None:
    if name not in DatasetCatalog:
        return None
    if not is_panoptic(name):
        return len(MetadataCatalog.get(name).get("thing_classes", ())) or None
    things = sorted(MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id.values())
    if things != list(range(len(things))):
        raise DatasetError(
            f"data set {name} has things of the contiguous ids {things}: number its things first, then its stuff"
        )
    return len(things)


def known_class_names(cfg: CfgNode) -> tuple[str, ...] | None:
    """Of the first of ``cfg``'s data sets whose metadata has them already; no file is read for it."""
    return next(filter(None, map(class_names, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])), None)


def class_names(dataset: str) -> tuple[str, ...] | None:
    """A data set's, where its metadata has them already; no file is read for it."""
    classes = MetadataCatalog.get(dataset).get("thing_classes") if dataset in DatasetCatalog else None
    return tuple(classes) if classes else None


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
