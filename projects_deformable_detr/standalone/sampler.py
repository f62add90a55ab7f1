"""Batch samplers for training and evaluation, whose sequences do not depend on the number of ranks."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..errors import ArgumentError

Draw = tuple[int, int]  # position in the endless sequence, index of the image


class TrainingBatchSampler(Sampler[list[Draw]]):
    """Infinite sequence of batches that is a pure function of the arguments.

    Batches over all ranks are taken from a sequence of shuffled epochs, and each rank yields its part of every batch. A
    run that is resumed at iteration i thus continues with batch i, and batches do not depend on the number of ranks or
    workers.

    With ``factors``, the number of occurrences of an image in an epoch is its factor, stochastically rounded in each
    epoch (arXiv 1908.03195, appendix B.2).

    Args:
        groups: group of each image, such as 0 for portrait and 1 for landscape; a batch has images of one group.
        batch_size: images per batch over all ranks; a multiple of ``world_size``.
        seed: seed of the shuffling; the same on all ranks.
        start: index of the first batch.
        rank, world_size: index of this process, and number of processes.
        factors: (images,) mean number of occurrences of each image in an epoch, >= 0 and not all 0; None: 1.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        factors: Tensor | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ArgumentError(
                "batch_size", f"must be a positive multiple of the {world_size} processes, got {batch_size}"
            )
        if len(groups) == 0:
            raise ArgumentError("groups", "must have at least one image")
        if factors is not None and (factors.shape != (len(groups),) or not factors.min() >= 0 or not factors.max() > 0):
            raise ArgumentError("factors", f"must be {len(groups)} numbers of at least 0, and not all 0")
        self.groups = groups
        self.factors = factors
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yields batches of (position, index); the augmentation depends on the position."""
        pending: dict[int, list[Draw]] = defaultdict(list)
        number = 0
        for draw in self._draws():
            batch = pending[self.groups[draw[1]]]
            batch.append(draw)
            if len(batch) == self.batch_size:
                if number >= self.start:
                    yield batch[self.rank :: self.world_size]
                number += 1
                batch.clear()

    def _draws(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed)
        position = 0
        while True:
            for index in self._epoch(generator):
                yield position, index
                position += 1

    def _epoch(self, generator: torch.Generator) -> list[int]:
        """Returns the shuffled indices of one epoch."""
        if self.factors is None:
            return torch.randperm(len(self.groups), generator=generator).tolist()
        whole = self.factors.floor()
        times = whole + (torch.rand(len(whole), generator=generator) < self.factors - whole)
        indices = torch.repeat_interleave(times.long())
        return indices[torch.randperm(len(indices), generator=generator)].tolist()


def evaluation_batches(
    sizes: Sequence[tuple[int, int]], batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[Draw]]:
    """Returns the batches of this rank; the batches of all ranks contain every image once.

    If there are fewer batches than ranks, the remaining ranks repeat the first batch, because all ranks must run the
    model. All images of a batch have the same size, because padding changes results slightly.

    Args:
        sizes: (height, width) of every image after resizing.
        batch_size: maximum number of images in a batch.
        rank, world_size: index of this process, and number of processes.
    """
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, size in enumerate(sizes):
        by_size[size].append(index)
    batches = [
        [(index, index) for index in indices[begin : begin + batch_size]]
        for indices in by_size.values()
        for begin in range(0, len(indices), batch_size)
    ]
    return batches[rank::world_size] or batches[:1]
