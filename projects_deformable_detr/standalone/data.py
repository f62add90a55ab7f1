"""Images and ground truth as batches: torchvision's transforms v2, carrying out the shared augmentation policy."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as transforms
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from ..augmentation import AugmentationPolicy
from ..data import catalog, coco
from ..data.images import read_image
from ..errors import UserError
from ..modeling import Targets, batch_images
from .sampler import Draw, TrainingBatchSampler, evaluation_batches

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Batch:
    """Images and what is known of them, in few tensors: each costs a loader's worker a message, and a GPU a copy.

    Attributes:
        images: (N, 3, H, W) uint8 in the config's channel order, zero on padding.
        padding_mask: (N, H, W) bool, True on padding.
        labels: (T,) class ids of all images' objects.
        boxes: (T, 4) of them, as in ``Targets``.
        counts: N numbers of objects, whose sum is T.
        image_ids: N ids of the JSON file.
        original_sizes: N sizes (height, width) of the image files.
    """

    images: Tensor
    padding_mask: Tensor
    labels: Tensor
    boxes: Tensor
    counts: list[int]
    image_ids: list[int]
    original_sizes: list[tuple[int, int]]

    @property
    def targets(self) -> list[Targets]:
        """The objects of each image."""
        pairs = zip(self.labels.split(self.counts), self.boxes.split(self.counts), strict=True)
        return [Targets(labels, boxes) for labels, boxes in pairs]

    def _with(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            images=move(self.images),
            padding_mask=move(self.padding_mask),
            labels=move(self.labels),
            boxes=move(self.boxes),
        )

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``; Lightning calls it."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the data loader calls it."""
        return self._with(Tensor.pin_memory)


@dataclass(frozen=True)
class Item:
    """One image, transformed: ``pixels`` (3, h, w) uint8."""

    pixels: Tensor
    targets: Targets
    image_id: int
    original_size: tuple[int, int]


class DetectionDataset(Dataset[Item]):
    """The records of a data set, transformed by a policy.

    Args:
        records: from ``data.coco.load_records``.
        policy: the augmentation.
        seed: random decisions are a function of it and of the draw's position, and of nothing else.

    The records themselves are not kept: with their outlines they are many times as large as what is.
    """

    def __init__(self, records: Records, policy: AugmentationPolicy, seed: int = 0) -> None:
        self.policy = policy
        self.seed = seed
        self.files = [record["file_name"] for record in records]
        self.image_ids = [record["image_id"] for record in records]
        self.sizes = [(record["height"], record["width"]) for record in records]
        self.objects = [_objects(record) for record in records]

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
        for file, (_, labels) in zip(self.files, self.objects, strict=True):
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
        boxes, labels = self.objects[index]
        corners = BoundingBoxes(torch.from_numpy(boxes), format=BoundingBoxFormat.XYXY, canvas_size=size)
        image, corners = augment(image, corners, self.policy, np.random.default_rng((self.seed, position)))
        pixels = transforms.pil_to_tensor(image)
        if self.policy.image_format == "BGR":
            pixels = pixels.flip(0)
        targets = _targets(corners, torch.from_numpy(labels))
        return Item(pixels, targets, self.image_ids[index], size)


def _objects(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(T, 4) corners and (T,) class ids of the objects to train on, compact: there can be millions."""
    annotations = [item for item in record.get("annotations", []) if not item.get("iscrowd", 0)]
    boxes = np.array([item["bbox"] for item in annotations], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.array([item["category_id"] for item in annotations], dtype=np.int64)


def augment(
    image: Image.Image, boxes: BoundingBoxes, policy: AugmentationPolicy, rng: np.random.Generator
) -> tuple[Image.Image, BoundingBoxes]:
    """Carries out the policy with decisions drawn from ``rng``; boxes are clipped and may lose their area."""

    def both(operation: Callable[..., Any], *arguments: Any) -> None:
        nonlocal image, boxes
        image, boxes = operation(image, *arguments), operation(boxes, *arguments)

    if policy.flip_prob and rng.random() < policy.flip_prob:
        both(transforms.horizontal_flip)
    if policy.crop_prob and rng.random() < policy.crop_prob:
        shorter = int(rng.choice(policy.crop_resize))
        both(transforms.resize, list(resized(image.height, image.width, shorter)))
        low, high = policy.crop_range
        height, width = (int(rng.integers(min(low, side), min(high, side) + 1)) for side in (image.height, image.width))
        top = int(rng.integers(image.height - height + 1))
        left = int(rng.integers(image.width - width + 1))
        both(transforms.crop, top, left, height, width)
    shorter = policy.min_sizes[0] if len(policy.min_sizes) == 1 else int(rng.choice(policy.min_sizes))
    size = resized(image.height, image.width, shorter, policy.max_size)
    if size != (image.height, image.width):
        both(transforms.resize, list(size))
    return image, boxes


def resized(height: int, width: int, shorter: int, longest: int | None = None) -> tuple[int, int]:
    """(H, W) with the shorter side ``shorter``, or less if the longer would exceed ``longest``; 0 keeps the size.

    Rounded as Detectron2 rounds, so that both engines see the same images.
    """
    if shorter == 0:
        return height, width
    scale = shorter / min(height, width)
    new_height, new_width = height * scale, width * scale
    if longest is not None and max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def _targets(corners: BoundingBoxes, labels: Tensor) -> Targets:
    """Normalised (cx, cy, w, h) of the boxes that still have an area."""
    height, width = corners.canvas_size
    boxes = box_convert(corners.as_subclass(Tensor), "xyxy", "cxcywh")
    kept = (boxes[:, 2:] > 0).all(1)
    return Targets(labels[kept], boxes[kept] / boxes.new_tensor([width, height, width, height]))


def collate(items: Sequence[Item]) -> Batch:
    """Pads to the largest height and width."""
    images, padding_mask = batch_images([item.pixels for item in items])
    return Batch(
        images,
        padding_mask,
        torch.cat([item.targets.labels for item in items]),
        torch.cat([item.targets.boxes for item in items]),
        [len(item.targets) for item in items],
        [item.image_id for item in items],
        [item.original_size for item in items],
    )


def load_training_set(cfg: Any) -> DetectionDataset:
    """The images of all ``DATASETS.TRAIN``, one data set after another.

    Raises:
        UserError: if no image is left to train on, or an object's class is not one of the model's.
    """
    records: Records = []
    for name in cfg.DATASETS.TRAIN:
        records += coco.load_records(
            catalog.get(name),
            invalid_boxes=cfg.DATASETS.INVALID_BOXES,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        )
    if not records:
        raise UserError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no image with an object to train on")
    dataset = DetectionDataset(records, AugmentationPolicy.from_cfg(cfg, is_train=True))
    dataset.check_classes(cfg.MODEL.DETR.NUM_CLASSES)
    return dataset


def training_loader(
    cfg: Any, dataset: DetectionDataset, seed: int, *, start: int = 0, rank: int = 0, world_size: int = 1
) -> DataLoader[Item]:
    """Endless batches of this rank, beginning with iteration ``start``."""
    grouping = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    groups = [int(grouping and width > height) for height, width in dataset.sizes]
    sampler = TrainingBatchSampler(
        groups, cfg.SOLVER.IMS_PER_BATCH, seed, start=start, rank=rank, world_size=world_size
    )
    return _loader(cfg, dataset.with_seed(seed), sampler)


def evaluation_loader(cfg: Any, name: str, *, rank: int = 0, world_size: int = 1) -> DataLoader[Item]:
    """Every image of a data set once, over all ranks, in batches of equal sizes."""
    records = coco.load_records(catalog.get(name), invalid_boxes=cfg.DATASETS.INVALID_BOXES, for_evaluation=True)
    policy = AugmentationPolicy.from_cfg(cfg, is_train=False)
    dataset = DetectionDataset(records, policy)
    sizes = [resized(*size, policy.min_sizes[0], policy.max_size) for size in dataset.sizes]
    # No gradients are kept here, so what fits in training fits.
    batch_size = max(1, cfg.SOLVER.IMS_PER_BATCH // world_size)
    return _loader(cfg, dataset, evaluation_batches(sizes, batch_size, rank, world_size))


def _loader(cfg: Any, dataset: DetectionDataset, batches: Any) -> DataLoader[Item]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=collate,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )
