"""One transformed image, and a batch of them, padded, in few tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..modeling import Targets, batch_images


@dataclass(frozen=True)
class Batch:
    """Images and what is known of them, in few tensors: each costs a loader's worker a message, and a GPU a copy.

    Attributes:
        images: (N, 3, H, W) uint8 in the config's channel order, zero on padding.
        padding_mask: (N, H, W) bool, True on padding.
        labels: (T,) class ids of all images' objects.
        boxes: (T, 4) of them, as in ``Targets``.
        masks: (T, H, W) bool of them, False on padding, or None without masks.
        counts: N numbers of objects, whose sum is T.
        image_sizes: N sizes (height, width) without padding.
        image_ids: N ids of the JSON file.
        file_names: N image files.
        original_sizes: N sizes (height, width) of the image files.
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

    @property
    def targets(self) -> list[Targets]:
        """The objects of each image."""
        labels, boxes = self.labels.split(self.counts), self.boxes.split(self.counts)
        shapes: list[Tensor | None] = [None] * len(self.counts)
        if self.masks is not None:
            parts = zip(self.masks.split(self.counts), self.image_sizes, strict=True)
            shapes = [part[:, :height, :width] for part, (height, width) in parts]
        return [Targets(*parts) for parts in zip(labels, boxes, shapes, strict=True)]

    def _with(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            images=move(self.images),
            padding_mask=move(self.padding_mask),
            labels=move(self.labels),
            boxes=move(self.boxes),
            masks=None if self.masks is None else move(self.masks),
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
    file_name: str
    original_size: tuple[int, int]


def collate(items: Sequence[Item]) -> Batch:
    """Pads to the largest height and width."""
    images, padding_mask = batch_images([item.pixels for item in items])
    sizes = [(item.pixels.shape[1], item.pixels.shape[2]) for item in items]
    return Batch(
        images,
        padding_mask,
        torch.cat([item.targets.labels for item in items]),
        torch.cat([item.targets.boxes for item in items]),
        _join_masks([item.targets.masks for item in items], images.shape[-2:]),
        [len(item.targets) for item in items],
        sizes,
        [item.image_id for item in items],
        [item.file_name for item in items],
        [item.original_size for item in items],
    )


def _join_masks(parts: list[Tensor | None], size: torch.Size) -> Tensor | None:
    """Masks of all images (T, *size), padded."""
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    height, width = size
    return torch.cat([nn.functional.pad(m, (0, width - m.shape[2], 0, height - m.shape[1])) for m in found])
