"""Detectron2's dataset mapper with DETR's augmentations."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T

from ..augmentation import AugmentationPolicy
from ..data.images import read_image


def build_augmentations(policy: AugmentationPolicy) -> list[T.Augmentation]:
    """The policy as Detectron2 augmentations: flip, perhaps resize and crop, resize.

    The flip and the crop are left out where their probability is 0, so that a test policy is only the resize.
    """
    augmentations: list[T.Augmentation] = []
    if policy.flip_prob > 0:
        augmentations.append(T.RandomFlip(policy.flip_prob))
    if policy.crop_prob > 0:
        crop = T.AugmentationList(
            [
                T.ResizeShortestEdge(policy.crop_resize, sample_style="choice"),
                T.RandomCrop("absolute_range", policy.crop_range),
            ]
        )
        augmentations.append(T.RandomApply(crop, policy.crop_prob))
    augmentations.append(T.ResizeShortestEdge(policy.min_sizes, policy.max_size, "choice"))
    return augmentations


class DetrDatasetMapper(DatasetMapper):
    """Detectron2's mapper, with the augmentations of ``AugmentationPolicy`` and errors that name the image."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Detectron2's arguments with the augmentations replaced."""
        policy = AugmentationPolicy.from_cfg(cfg, is_train)
        return {**super().from_config(cfg, is_train), "augmentations": build_augmentations(policy)}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """One record of a data set, as an input of the model.

        Raises:
            DatasetError: if the image is missing, cannot be decoded or has another size than its record says.
        """
        try:
            return super().__call__(dataset_dict)
        except Exception:
            # Detectron2's reader does not name the file: ours does, if the file is what is wrong.
            size = (dataset_dict["height"], dataset_dict["width"]) if "height" in dataset_dict else None
            read_image(dataset_dict["file_name"], self.image_format, size)
            raise
