"""Which images make which batch: endless for training, exact for evaluation, the same however the work is shared."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

Draw = tuple[int, int]  # (position in the endless sequence, index of the image)


class TrainingBatchSampler(Sampler[list[Draw]]):
    """An endless sequence of batches that is a pure function of its arguments.

    The images are shuffled, pass after pass, into one endless sequence, from which whole batches (those of all
    ranks together) are formed; each rank takes its share of every batch. So a run that resumes at iteration i
    goes on with batch i exactly, and the batches do not depend on the number of ranks or of loader workers.

    With ``factors`` a pass has each image a whole number of times: its factor, rounded up with a probability of its
    fraction, else down, anew in each pass (arXiv 1908.03195, appendix B.2).

    Args:
        groups: for every image the group within which batches are formed, such as 0 for landscape and 1 for
            portrait; all equal for no grouping.
        batch_size: images per batch of all ranks together; a multiple of ``world_size``.
        seed: of the shuffling; the same on all ranks.
        start: the batch to begin with.
        rank, world_size: this process among all.
        factors: (images,) >= 0, not all 0: how often a pass has each image on average; None: once.
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
            raise ValueError(f"batch size {batch_size} is not a positive multiple of the {world_size} processes")
        if len(groups) == 0:
            raise ValueError("there are no images to sample from")
        if factors is not None and (factors.shape != (len(groups),) or not factors.min() >= 0 or not factors.max() > 0):
            raise ValueError(f"factors must be {len(groups)} numbers of at least 0, and not all 0")
        self.groups = groups
        self.factors = factors
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[Draw]]:
        """Batches of (position, index); the position tells draws of one image apart, in augmentation."""
        waiting: dict[int, list[Draw]] = defaultdict(list)
        number = 0
        for draw in self._draws():
            batch = waiting[self.groups[draw[1]]]
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
            for index in self._pass(generator):
                yield position, index
                position += 1

    def _pass(self, generator: torch.Generator) -> list[int]:
        """Indices of one pass, shuffled."""
        if self.factors is None:
            return torch.randperm(len(self.groups), generator=generator).tolist()
        whole = self.factors.floor()
        times = whole + (torch.rand(len(whole), generator=generator) < self.factors - whole)
        indices = torch.repeat_interleave(times.long())
        return indices[torch.randperm(len(indices), generator=generator)].tolist()


def evaluation_batches(
    sizes: Sequence[tuple[int, int]], batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[Draw]]:
    """Every image once, over all ranks; images of one batch have one size, so that none is padded.

    Padding would change results slightly, and so make them depend on the batch size.

    Args:
        sizes: (H, W) of every image as the model sees it.
        batch_size: at most so many images at a time.
    """
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, size in enumerate(sizes):
        by_size[size].append(index)
    batches = [
        [(index, index) for index in indices[begin : begin + batch_size]]
        for indices in by_size.values()
        for begin in range(0, len(indices), batch_size)
    ]
    return batches[rank::world_size]
