"""The data sets of training and evaluation, and the loaders of their batches."""

import copy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as transforms
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from ..config.training import augmentation_policy
from ..data import catalog, coco, masks, panoptic
from ..data.images import read_image, resize_shortest_edge
from ..errors import UserError
from ..modeling import Targets
from ..training import AugmentationPolicy
from .augment import augment
from .batch import Item, collate
from .repeat import repeat_factors
from .sampler import Draw, TrainingBatchSampler, evaluation_batches

Records = list[dict[str, Any]]
_OF_IMAGE = ("file_name", "image_id", "height", "width")


class DetectionDataset(Dataset[Item]):
    """The records of a data set, transformed by a policy.

    Args:
        records: from ``data.coco.load_records``.
        policy: the augmentation.
        seed: random decisions are a function of it and of the draw's position, and of nothing else.
        with_masks: give masks, too.

    Attributes:
        factors: (images,), how often a pass of training has each image on average; None: once.

    The records themselves are not kept: with their outlines they are many times as large as what is.
    """

    def __init__(
        self, records: Records, policy: AugmentationPolicy, seed: int = 0, *, with_masks: bool = False
    ) -> None:
        self.factors: Tensor | None = None
        self.policy = policy
        self.seed = seed
        self.with_masks = with_masks
        self.files = [record["file_name"] for record in records]
        self.image_ids = [record["image_id"] for record in records]
        self.sizes = [(record["height"], record["width"]) for record in records]
        self.objects = [Objects.of(record, with_masks) for record in records]

    def with_seed(self, seed: int) -> "DetectionDataset":
        """The same images with other random decisions."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def check_classes(self, num_classes: int) -> None:
        """Looks at every object's class before any reaches a GPU, where a wrong one ends the process unexplained.

        Raises:
            UserError: naming the first image file with an id that is not in 0 … ``num_classes`` - 1.
        """
        for file, objects in zip(self.files, self.objects, strict=True):
            labels = objects.labels
            wrong = labels[(labels < 0) | (labels >= num_classes)]
            if wrong.size:
                raise UserError(
                    f"{file}: an object has class id {wrong[0]}, but the model has {num_classes} classes, 0 to "
                    f"{num_classes - 1}: set MODEL.DETR.NUM_CLASSES to the data set's number of categories"
                )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, draw: Draw) -> Item:
        position, index = draw
        size = self.sizes[index]
        image = Image.fromarray(read_image(self.files[index], expected_size=size))
        boxes, labels, shapes = self.objects[index].read(size, self.files[index], self.with_masks)
        corners = BoundingBoxes(torch.from_numpy(boxes), format=BoundingBoxFormat.XYXY, canvas_size=size)
        rng = np.random.default_rng((self.seed, position))
        image, corners, outlines = augment(image, corners, self.policy, rng, shapes)
        pixels = transforms.pil_to_tensor(image)
        if self.policy.image_format == "BGR":
            pixels = pixels.flip(0)
        # What a crop leaves of an object need not reach its cropped box: Detectron2 then takes the mask's, too.
        targets = _targets(corners, torch.from_numpy(labels), outlines, boxes_of_masks=self.policy.crop_prob > 0)
        return Item(pixels, targets, self.image_ids[index], self.files[index], size)


@dataclass(frozen=True)
class Objects:
    """The objects to train on in an image, compact: there can be millions.

    Attributes:
        labels: (T,) class ids.
        boxes: (T, 4) corners in pixels; None for those that are told by the PNG of a panoptic record.
        segmentations: of COCO's kinds, where masks are wanted.
        panoptic: of the record, what tells the PNG and its segments.
    """

    labels: np.ndarray
    boxes: np.ndarray | None
    segmentations: list[Any] | None = None
    panoptic: dict[str, Any] | None = None

    @classmethod
    def of(cls, record: dict[str, Any], with_masks: bool) -> "Objects":
        """From a record of either kind."""
        items = [item for item in coco.objects(record) if not item.get("iscrowd", 0)]
        labels = np.array([item["category_id"] for item in items], dtype=np.int64)
        if "segments_info" in record:
            part = {"pan_seg_file_name": record["pan_seg_file_name"], "segments_info": items}
            return cls(labels, None, panoptic=part)
        boxes = np.array([item["bbox"] for item in items], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return cls(labels, boxes, [masks.compact(item["segmentation"]) for item in items] if with_masks else None)

    def read(
        self, size: tuple[int, int], file: str, with_masks: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Boxes (T, 4), labels (T,), and masks (T, H, W) bool where they are wanted."""
        if self.boxes is None:
            assert self.panoptic is not None
            boxes, labels, found = panoptic.read_objects({**self.panoptic, "height": size[0], "width": size[1]})
            return boxes, labels, found if with_masks else None
        if self.segmentations is None:
            return self.boxes, self.labels, None
        where = f"an object of {file}"
        rles = [masks.to_rle(segmentation, *size, where) for segmentation in self.segmentations]
        return self.boxes, self.labels, masks.decode(rles, *size)


def _targets(corners: BoundingBoxes, labels: Tensor, outlines: Tensor | None, *, boxes_of_masks: bool) -> Targets:
    """Of the objects whose box still has an area, and whose mask, if they have one, a pixel."""
    height, width = corners.canvas_size
    boxes = corners.as_subclass(Tensor)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    if outlines is not None:
        kept &= outlines.flatten(1).any(1)
        outlines = outlines[kept]
    boxes = boxes[kept]
    if outlines is not None and boxes_of_masks:
        boxes = torch.from_numpy(panoptic.mask_boxes(outlines.numpy()))
    boxes = box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])
    return Targets(labels[kept], boxes, outlines)


def load_training_set(cfg: Any) -> DetectionDataset:
    """The images of all ``DATASETS.TRAIN``, one data set after another.

    Raises:
        UserError: if no image is left to train on, or an object's class is not one of the model's.
    """
    records: Records = []
    counts = []
    for name in cfg.DATASETS.TRAIN:
        found = coco.load_records(
            catalog.get(name),
            invalid_boxes=cfg.DATASETS.INVALID_BOXES,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            masks=cfg.MODEL.MASK_ON,
        )
        records += found
        counts.append((name, len(found)))
    if not records:
        raise UserError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no image with an object to train on")
    policy = augmentation_policy(cfg, is_train=True)
    dataset = DetectionDataset(records, policy, with_masks=cfg.MODEL.MASK_ON)
    dataset.check_classes(cfg.MODEL.DETR.NUM_CLASSES)
    labels = iter([objects.labels for objects in dataset.objects])
    dataset.factors = repeat_factors(cfg, [(name, list(islice(labels, count))) for name, count in counts])
    return dataset


def training_loader(
    cfg: Any, dataset: DetectionDataset, seed: int, *, start: int = 0, rank: int = 0, world_size: int = 1
) -> DataLoader[Item]:
    """Endless batches of this rank, beginning with iteration ``start``."""
    grouping = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    groups = [int(grouping and width > height) for height, width in dataset.sizes]
    ranks = {"rank": rank, "world_size": world_size}
    sampler = TrainingBatchSampler(
        groups, cfg.SOLVER.IMS_PER_BATCH, seed, start=start, **ranks, factors=dataset.factors
    )
    return _loader(cfg, dataset.with_seed(seed), sampler)


def evaluation_loader(
    cfg: Any, name: str, *, rank: int = 0, world_size: int = 1, original_size: bool = False
) -> DataLoader[Item]:
    """Every image of a data set once, over all ranks, in batches of equal sizes; or each alone in its original size."""
    records = coco.load_records(catalog.get(name), invalid_boxes=cfg.DATASETS.INVALID_BOXES, for_evaluation=True)
    # The evaluators read the truth themselves.
    records = [{key: record[key] for key in _OF_IMAGE} | {"annotations": []} for record in records]
    policy = augmentation_policy(cfg, is_train=False)
    if original_size:
        policy = replace(policy, min_sizes=(0,))
    dataset = DetectionDataset(records, policy)
    sizes = [resize_shortest_edge(*size, policy.min_sizes[0], policy.max_size) for size in dataset.sizes]
    # No gradients are kept here, so what fits in training fits.
    batch_size = 1 if original_size else max(1, cfg.SOLVER.IMS_PER_BATCH // world_size)
    return _loader(cfg, dataset, evaluation_batches(sizes, batch_size, rank, world_size))


def _loader(cfg: Any, dataset: DetectionDataset, batches: Any) -> DataLoader[Item]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=collate,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )
