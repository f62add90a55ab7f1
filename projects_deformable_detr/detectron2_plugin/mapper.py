"""Detectron2's dataset mapper with DETR's augmentations."""

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances

from ..config.data import image_reader
from ..config.training import augmentation_policy
from ..data import masks, panoptic
from ..data.images import ImageReader, channels_first
from ..training import AugmentationPolicy
from .classes import separated_classes

EMPTY_MASKS = "empty_masks"  # key of the number of objects that were dropped because their masks are empty
_MIN_SIDE = 1e-5  # as in detectron2.data.detection_utils.filter_empty_instances


def build_augmentations(policy: AugmentationPolicy) -> list[T.Augmentation]:
    """Converts a policy to Detectron2's augmentations: flip, resize and crop, resize.

    Flip and crop are omitted if their probability is 0, as in policies for evaluation.
    """
    augmentations: list[T.Augmentation] = []
    if policy.flip_prob > 0:
        augmentations.append(T.RandomFlip(policy.flip_prob))
    if policy.crop_prob > 0:
        crop = T.AugmentationList(
            [
                T.ResizeShortestEdge(policy.crop_resize, policy.crop_max_size, "choice"),
                T.RandomCrop("absolute_range", policy.crop_range),
            ]
        )
        augmentations.append(T.RandomApply(crop, policy.crop_prob))
    augmentations.append(T.ResizeShortestEdge(policy.min_sizes, policy.max_size, "choice"))
    return augmentations


class DetrDatasetMapper(DatasetMapper):
    """Detectron2's mapper with the augmentations of an ``AugmentationPolicy``, and errors that name the image.

    Images are read by the project's reader. Masks are converted to bitmaps before they are transformed, regardless of
    ``INPUT.MASK_FORMAT``, so that they are the same in both engines. The segments of a panoptic record, things and
    stuff, become its instances.

    Args:
        arguments, keywords: arguments of Detectron2's mapper.
        reader: reader of the images. Default: a reader for the mapper's ``image_format``.
        label_classes: for Detectron2's separated panoptic format, maps labels of stuff images to classes; None: stuff
            is ignored.
    """

    @configurable
    def __init__(
        self,
        *arguments: Any,
        reader: ImageReader | None = None,
        label_classes: dict[int, int] | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.reader = reader or ImageReader(self.image_format)
        self.label_classes = label_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Returns Detectron2's arguments, with the augmentations replaced."""
        policy = augmentation_policy(cfg, is_train)
        classes = separated_classes(cfg)
        return {
            **super().from_config(cfg, is_train),
            "augmentations": build_augmentations(policy),
            "instance_mask_format": "bitmask",
            "reader": image_reader(cfg),
            "label_classes": classes.label_classes if classes else None,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Returns the input of the model for one record.

        Raises:
            DatasetError: if the image is missing, cannot be decoded, or differs in size from its record.
        """
        record = copy.deepcopy(dataset_dict)
        expected = (record["height"], record["width"]) if "height" in record else None
        image = T.AugInput(self.reader.read(record["file_name"], expected))
        size = record["height"], record["width"] = image.image.shape[:2]
        transforms = self.augmentations(image)
        record["image"] = torch.from_numpy(channels_first(image.image))
        labels = record.pop("sem_seg_file_name", None)
        if not self.is_train:
            record.pop("annotations", None)
            return record
        if "annotations" not in record and "segments_info" in record:
            record["annotations"] = panoptic.as_annotations(record)
            del record["segments_info"]
        elif self.label_classes is not None and labels is not None:
            record["annotations"] += panoptic.stuff_annotations(labels, size, self.label_classes)
        if "annotations" in record:
            self._transform_annotations(record, transforms, image.image.shape[:2])
        return record

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: Any, image_shape: tuple[int, int]
    ) -> None:
        objects = [item for item in dataset_dict["annotations"] if not item.get("iscrowd", 0)]
        if self.use_instance_mask and not objects:  # Detectron2 would create instances without masks
            dataset_dict.pop("annotations")
            dataset_dict["instances"] = Instances(
                image_shape,
                gt_boxes=Boxes(torch.zeros(0, 4)),
                gt_classes=torch.zeros(0, dtype=torch.int64),
                gt_masks=BitMasks(torch.zeros(0, *image_shape, dtype=torch.bool)),
            )
            return
        if self.use_instance_mask:
            height, width, where = dataset_dict["height"], dataset_dict["width"], dataset_dict["file_name"]
            for item in objects:
                item["segmentation"] = masks.to_rle(item.get("segmentation"), height, width, f"an object of {where}")
        num_boxes = _count_boxes(objects, transforms, image_shape) if self.use_instance_mask else 0
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        if self.use_instance_mask:
            dataset_dict[EMPTY_MASKS] = num_boxes - len(dataset_dict["instances"])


def _count_boxes(objects: list[dict[str, Any]], transforms: Any, image_shape: tuple[int, int]) -> int:
    """Returns the number of objects whose boxes have an area inside the transformed image."""
    boxes = np.array([BoxMode.convert(list(item["bbox"]), item["bbox_mode"], BoxMode.XYXY_ABS) for item in objects])
    clipped = transforms.apply_box(boxes).clip(0, [*image_shape[::-1], *image_shape[::-1]])
    return int((clipped[:, 2:] - clipped[:, :2] > _MIN_SIDE).all(1).sum())
