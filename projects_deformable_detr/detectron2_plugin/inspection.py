"""What is checked of a data set of Detectron2's catalog before anything is built."""

import logging
import os
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import most_objects
from ..data import coco
from ..data.catalog import DatasetSpec
from ..data.problems import DatasetError
from ..engine import is_installed
from ..errors import UserError
from .data import panoptic_spec
from .panoptic_classes import is_separated, is_standard

_logger = logging.getLogger(__name__)

# Entries of the metadata that name a file or folder of a data set.
_PLACES = (
    "json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root", "image_dir", "gt_dir", "dirname",
)  # fmt: skip
# Packages that Detectron2 reads or evaluates a format with, and what to give pip. lvis asks for opencv-python, which
# would replace the headless cv2 and need a display's libraries; all else that it needs is here.
_PACKAGES = {
    "lvis": {"lvis": "--no-deps lvis"},
    "cityscapes_instance": {"cityscapesscripts": "cityscapesscripts", "shapely": "shapely"},
    "cityscapes_panoptic_seg": {"cityscapesscripts": "cityscapesscripts"},
}
_LOADED_BY_DETECTRON2 = ("lvis", "pascal_voc", "cityscapes_instance", "cityscapes_panoptic_seg")
_WITHOUT_OBJECTS = {
    "sem_seg": "Detectron2's panoptic data sets, such as coco_2017_train_panoptic",
    "cityscapes_sem_seg": "cityscapes_fine_instance_seg_train or cityscapes_fine_panoptic_train",
}
_WITHOUT_MASKS = ("pascal_voc",)


def check(cfg: CfgNode, names: Iterable[str], *, for_evaluation: bool) -> None:
    """Checks data sets before anything is built: those in COCO's formats in full, the files and tools of the others.

    A data set registered as a function, whose metadata names no files, is that function's affair.

    A set to train on must not have more objects in an image than there are queries; one to evaluate on must have
    the fields that COCO's evaluation reads.

    Boxes that ``DATASETS.INVALID_BOXES: drop`` leaves out are counted here in a warning; Detectron2's mapper, which
    drops boxes without area from every training image, is what leaves them out.

    Raises:
        DatasetError: naming file, record and remedy.
        UserError: if a package is missing that the data set's format needs.
    """
    for name in names:
        metadata = MetadataCatalog.get(name)
        kind = metadata.get("evaluator_type")
        _check_kind(cfg, name, kind)
        if kind in _LOADED_BY_DETECTRON2 or (cfg.MODEL.DETR.PANOPTIC.ENABLED and is_separated(name)):
            _check_places(name, metadata)
        spec = _spec(name, metadata)
        if spec is None:
            continue
        summary = coco.inspect(
            spec,
            cfg.DATASETS.INVALID_BOXES,
            max_objects=None if for_evaluation else most_objects(cfg),
            for_evaluation=for_evaluation,
            masks=cfg.MODEL.MASK_ON,
        )
        counts = summary.num_images, summary.num_annotations, len(summary.class_names)
        _logger.info("%s: %d images, %d objects, %d classes", name, *counts)


def _spec(name: str, metadata: Any) -> DatasetSpec | None:
    """Of a data set in COCO's formats or LVIS's; Cityscapes' panoptic files name images by text, and elsewhere."""
    if metadata.get("image_root") is None or metadata.get("evaluator_type") == "cityscapes_panoptic_seg":
        return None
    if is_standard(name):
        return panoptic_spec(name)
    if not metadata.get("json_file") or not (metadata.get("evaluator_type") in ("coco", "lvis") or is_separated(name)):
        return None
    return DatasetSpec(name, metadata.json_file, metadata.image_root)


def _check_kind(cfg: CfgNode, name: str, kind: str | None) -> None:
    if kind in _WITHOUT_OBJECTS:
        raise DatasetError(
            f"data set {name} has labels of pixels, but no objects, and a set-prediction model finds objects: take "
            f"{_WITHOUT_OBJECTS[kind]}"
        )
    if kind in _WITHOUT_MASKS and cfg.MODEL.MASK_ON:
        raise DatasetError(f"MODEL.MASK_ON is True, but data set {name} has boxes only: set it to False")
    missing = [pip for package, pip in _PACKAGES.get(kind or "", {}).items() if not is_installed(package)]
    if missing:
        raise UserError(f"data set {name} needs what is not installed here: pip install {' '.join(missing)}")


def _check_places(name: str, metadata: Any) -> None:
    """Detectron2's own loaders would stop at the first of these with an error that does not name the data set."""
    missing = [
        f"{key} {metadata.get(key)}"
        for key in _PLACES
        if metadata.get(key) and "://" not in str(metadata.get(key)) and not os.path.exists(str(metadata.get(key)))
    ]
    if missing:
        raise DatasetError(
            f"data set {name} is not where Detectron2's metadata says: there is no {', no '.join(missing)}. Put it "
            "there as Detectron2's datasets/README.md says, or set DETECTRON2_DATASETS to the folder that has it"
        )
