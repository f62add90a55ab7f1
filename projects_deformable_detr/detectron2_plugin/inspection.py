"""Checks of data sets in Detectron2's catalog before a model is built."""

import logging
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config.data import data_config
from ..data.problems import DatasetError
from ..engine import is_installed
from ..errors import UserError
from .data import load
from .panoptic_classes import is_separated

_logger = logging.getLogger(__name__)

# Keys of the metadata that are files or folders.
_PATHS = (
    "json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root", "image_dir", "gt_dir", "dirname",
)  # fmt: skip
# Packages that Detectron2 needs for a format, and arguments of pip install. lvis requires opencv-python, which would
# replace the headless cv2 and needs the libraries of a display; its other requirements are installed already.
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


def check(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Checks the data sets of a run: all of those in COCO's formats, files and packages of the others.

    Data sets without files in their metadata, such as functions, are not checked.

    Raises:
        DatasetError: naming file, record and remedy.
        UserError: if a package for the format of a data set is not installed.
    """
    config = data_config(cfg, eval_only=eval_only)
    for name in dict.fromkeys([*config.train, *config.test]):
        metadata = MetadataCatalog.get(name)
        kind = metadata.get("evaluator_type")
        _check_kind(name, kind, config.masks)
        if kind in _LOADED_BY_DETECTRON2 or (cfg.MODEL.DETR.PANOPTIC.ENABLED and is_separated(name)):
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
    """Checks that files exist, as the errors of Detectron2's loaders do not name the data set."""
    missing = [
        f"{key} {metadata.get(key)}"
        for key in _PATHS
        if metadata.get(key) and "://" not in str(metadata.get(key)) and not os.path.exists(str(metadata.get(key)))
    ]
    if missing:
        raise DatasetError(
            f"data set {name} is not where Detectron2's metadata expects it: there is no {', no '.join(missing)}. "
            "Place it there as Detectron2's datasets/README.md describes, or set DETECTRON2_DATASETS to its folder"
        )
