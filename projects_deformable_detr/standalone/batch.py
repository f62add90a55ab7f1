"""Collates transformed images into batches, padded to one size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..modeling import Targets, batch_images


@dataclass(frozen=True)
class Item:
    """Transformed image. ``pixels`` is (3, h, w) uint8; ``empty_masks`` is the number of objects whose mask is empty
    although their box is not, and which are not among the targets.
    """

    pixels: Tensor
    targets: Targets
    image_id: int
    file_name: str
    original_size: tuple[int, int]
    empty_masks: int = 0


@dataclass(frozen=True)
class Batch:
    """Images and targets of a batch in a small number of tensors, because each requires a message from a worker and a
    copy to the GPU.

    Attributes:
        images: (N, 3, H, W) uint8 in the config's channel order, zero on padding.
        padding_mask: (N, H, W) bool, True on padding.
        labels: (T,) class ids of the objects in all images.
        boxes: (T, 4) boxes of these objects, as in ``Targets``.
        masks: (T, H, W) bool masks of these objects, False on padding; None without masks.
        counts: number of objects of each image; their sum is T.
        image_sizes: (height, width) of each image without padding.
        image_ids: ids of the images in the annotation file.
        file_names: paths of the images.
        original_sizes: (height, width) of the image files.
        empty_masks: number of objects that were dropped because their masks are empty.
    """

    images: Tensor
    padding_mask: Tensor
    labels: Tensor
    boxes: Tensor
    masks: Tensor | None
    counts: list[int]
    image_sizes: list[tuple[int, int]]
    image_ids: list[int]
    file_names: list[str]
    original_sizes: list[tuple[int, int]]
    empty_masks: int = 0

    @property
    def targets(self) -> list[Targets]:
        """Targets of each image, as views."""
        labels, boxes = self.labels.split(self.counts), self.boxes.split(self.counts)
        masks: list[Tensor | None] = [None] * len(self.counts)
        if self.masks is not None:
            parts = zip(self.masks.split(self.counts), self.image_sizes, strict=True)
            masks = [part[:, :height, :width] for part, (height, width) in parts]
        names = [f"{name} (image id {id})" for name, id in zip(self.file_names, self.image_ids, strict=True)]
        return [Targets(*parts) for parts in zip(labels, boxes, masks, self.image_sizes, names, strict=True)]

    def micro_batches(self, count: int) -> list["Batch"]:
        """Splits the batch into ``count`` batches of equal size, each padded to its own largest height and width.

        Raises:
            ArgumentError: if ``count`` does not divide the number of images.
        """
        if count == 1:
            return [self]
        length, rest = divmod(len(self.counts), count)
        if rest or not length:
            message = f"must divide the number of images in the batch of each process, {len(self.counts)}, got {count}"
            raise ArgumentError("accumulation_steps", message)
        batches, first = [], 0
        for start in range(0, len(self.counts), length):
            rows = slice(start, start + length)
            objects = slice(first, first := first + sum(self.counts[rows]))
            height, width = map(max, zip(*self.image_sizes[rows], strict=True))
            batches.append(
                Batch(
                    self.images[rows, :, :height, :width],
                    self.padding_mask[rows, :height, :width],
                    labels=self.labels[objects],
                    boxes=self.boxes[objects],
                    masks=None if self.masks is None else self.masks[objects, :height, :width],
                    counts=self.counts[rows],
                    image_sizes=self.image_sizes[rows],
                    image_ids=self.image_ids[rows],
                    file_names=self.file_names[rows],
                    original_sizes=self.original_sizes[rows],
                )
            )
        return batches

    def samples(self) -> tuple[list[Tensor], list[Targets]]:
        """Returns the images without padding, and their targets."""
        pairs = zip(self.images, self.image_sizes, strict=True)
        return [image[:, :height, :width] for image, (height, width) in pairs], self.targets

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            images=function(self.images),
            padding_mask=function(self.padding_mask),
            labels=function(self.labels),
            boxes=function(self.boxes),
            masks=None if self.masks is None else function(self.masks),
        )

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on ``device``; called by Lightning."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Returns the batch in page-locked memory; called by the data loader."""
        return self._map(Tensor.pin_memory)


def collate(items: Sequence[Item]) -> Batch:
    """Collates items into a batch, with images padded to the largest height and width."""
    images, padding_mask = batch_images([item.pixels for item in items])
    return Batch(
        images,
        padding_mask,
        labels=torch.cat([item.targets.labels for item in items]),
        boxes=torch.cat([item.targets.boxes for item in items]),
        masks=_pad_masks([item.targets.masks for item in items], images.shape[-2:]),
        counts=[len(item.targets) for item in items],
        image_sizes=[(item.pixels.shape[1], item.pixels.shape[2]) for item in items],
        image_ids=[item.image_id for item in items],
        file_names=[item.file_name for item in items],
        original_sizes=[item.original_size for item in items],
        empty_masks=sum(item.empty_masks for item in items),
    )


def _pad_masks(masks: list[Tensor | None], size: torch.Size) -> Tensor | None:
    """Returns the masks of all images, (T, *size); None if an image has none."""
    found = [part for part in masks if part is not None]
    if len(found) < len(masks):
        return None
    height, width = size
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[2], 0, height - part.shape[1])) for part in found])
