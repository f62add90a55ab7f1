"""Data sets of transformed images with targets, and their loaders for training and evaluation."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.ops import box_convert
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from ..data import masks, panoptic
from ..data.config import DataConfig
from ..data.images import ImageReader, channels_first, resize_shortest_edge
from ..data.records import Array, Record, Records
from ..data.sampling import select_training_images
from ..modeling import Targets
from ..training import AugmentationPolicy
from ..training.interruption import shield_workers
from .augment import augment
from .batch import Item, collate
from .sampler import Draw, TrainingBatchSampler, evaluation_batches


class DetectionDataset(Dataset[Item]):
    """Images and targets of a data set, transformed by a policy.

    Args:
        records: records in Detectron2's format, with instances or panoptic segments.
        policy: augmentation.
        seed: seed of random transforms, which depend only on the seed and the position of a draw.
        with_masks: whether to create masks.
        reader: reader of the images.

    Attributes:
        groups: (images,) group of each image; a batch has images of one group.
        factors: (images,) mean number of occurrences of each image in an epoch; None: 1.
    """

    def __init__(
        self,
        records: Sequence[Record],
        policy: AugmentationPolicy,
        seed: int = 0,
        *,
        with_masks: bool = False,
        reader: ImageReader = ImageReader(),  # noqa: B008, immutable
    ) -> None:
        self.records = records
        self.policy = policy
        self.seed = seed
        self.with_masks = with_masks
        self.reader = reader
        self.groups: list[int] = [0] * len(records)
        self.factors: Tensor | None = None

    def with_seed(self, seed: int) -> "DetectionDataset":
        """Returns the same images with other random transforms."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Item:
        position, index = draw
        record = self.records[index]
        size, file_name = (record["height"], record["width"]), record["file_name"]
        image = Image.fromarray(self.reader.read(file_name, size))
        boxes, labels, bitmaps = _read_objects(record, self.with_masks)
        corners = BoundingBoxes(torch.from_numpy(boxes), format=BoundingBoxFormat.XYXY, canvas_size=size)
        rng = np.random.default_rng((self.seed, position))
        image, corners, outlines = augment(image, corners, self.policy, rng, bitmaps)
        # After a crop, the box of a mask can be smaller than the cropped box. Detectron2 uses the former.
        targets = _make_targets(corners, torch.from_numpy(labels), outlines, boxes_of_masks=self.policy.crop_prob > 0)
        num_boxes = int((corners[:, 2:] > corners[:, :2]).all(1).sum())
        empty_masks = 0 if outlines is None else num_boxes - len(targets)
        pixels = torch.from_numpy(channels_first(np.asarray(image)))
        return Item(pixels, targets, record["image_id"], file_name, size, empty_masks)


def _read_objects(record: Record, with_masks: bool) -> tuple[Array, Array, masks.Bitmaps | None]:
    """Returns corners (T, 4) in pixels, labels (T,) and masks (T, H, W) of all objects that are not crowds."""
    if "segments_info" in record:
        boxes, labels, bitmaps = panoptic.read_objects(record)
        return boxes, labels, bitmaps if with_masks else None
    items = [item for item in record["annotations"] if not item.get("iscrowd", 0)]
    labels = np.array([item["category_id"] for item in items], dtype=np.int64)
    boxes = np.array([item["bbox"] for item in items], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    if not with_masks:
        return boxes, labels, None
    size, where = (record["height"], record["width"]), f"an object of {record['file_name']}"
    return boxes, labels, masks.decode([masks.to_rle(item["segmentation"], *size, where) for item in items], *size)


def _make_targets(corners: BoundingBoxes, labels: Tensor, outlines: Tensor | None, *, boxes_of_masks: bool) -> Targets:
    """Returns the objects whose box has an area and whose mask, if any, is not empty."""
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


def build_training_set(
    config: DataConfig, datasets: Mapping[str, Records], policy: AugmentationPolicy
) -> DetectionDataset:
    """Concatenates all training sets.

    Args:
        config: training sets and sampler.
        datasets: records by data set name.
        policy: augmentation.

    Raises:
        DatasetError: if there are no training images.
    """
    parts, factors = select_training_images(config, datasets)
    dataset = DetectionDataset(ConcatDataset(parts), policy, with_masks=config.masks, reader=config.reader)  # type: ignore[arg-type]
    dataset.factors = factors
    if config.group_by_aspect_ratio:
        dataset.groups = [int(width > height) for part in parts for height, width in part.sizes.tolist()]
    return dataset


def training_loader(
    config: DataConfig, dataset: DetectionDataset, seed: int, *, start: int = 0, rank: int = 0, world_size: int = 1
) -> DataLoader[Item]:
    """Returns an infinite loader of this rank's batches, starting with iteration ``start``."""
    sampler = TrainingBatchSampler(
        dataset.groups,
        config.batch_size,
        seed,
        start=start,
        rank=rank,
        world_size=world_size,
        factors=dataset.factors,
    )
    return _loader(config, dataset.with_seed(seed), sampler)


def evaluation_loader(
    config: DataConfig,
    records: Records,
    policy: AugmentationPolicy,
    *,
    rank: int = 0,
    world_size: int = 1,
    original_size: bool = False,
) -> DataLoader[Item]:
    """Returns a loader that yields every image once over all ranks, without targets.

    Args:
        config: batch size and workers.
        records: data set.
        policy: augmentation of an evaluation.
        rank, world_size: index of this process, and number of processes.
        original_size: whether to keep the size of the images; every batch then has one image.
    """
    if original_size:
        policy = replace(policy, min_sizes=(0,))
    limits = policy.min_sizes[0], policy.max_size
    sizes = [resize_shortest_edge(height, width, *limits) for height, width in records.sizes.tolist()]
    # A batch of the training size fits into memory, because evaluation needs no gradients.
    batch_size = 1 if original_size else max(1, config.batch_size // world_size)
    batches = evaluation_batches(sizes, batch_size, rank, world_size)
    return _loader(config, DetectionDataset(records.without_annotations(), policy, reader=config.reader), batches)


def _loader(config: DataConfig, dataset: DetectionDataset, batches: Iterable[list[Draw]]) -> DataLoader[Any]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=config.num_workers,
        collate_fn=collate,
        pin_memory=config.pin_memory,
    )
    shield_workers(loader)
    return loader
