"""Random numbers that are the same on every machine and with every version of NumPy."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Field = np.ndarray[Any, np.dtype[np.float32]]


class Random:
    """Uniform, integer and categorical random numbers of one stream.

    Only ``Generator.random`` of PCG64 is used, as NumPy changes the algorithms of other distributions between versions.

    Args:
        seeds: integers >= 0; every sequence gives an independent stream.
    """

    def __init__(self, *seeds: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(seeds))))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Returns a number in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def log_uniform(self, low: float, high: float) -> float:
        """Returns a number in [low, high) whose logarithm is uniform."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        """Returns an integer in [low, high], both included."""
        return low + int(self.uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """Returns True with this probability."""
        return self.uniform() < probability

    def choice(self, items: Sequence[T]) -> T:
        """Returns one of the items, all with the same probability."""
        return items[self.integer(0, len(items) - 1)]

    def field(self, *shape: int) -> Field:
        """Returns independent numbers in [0, 1) of this shape, float32."""
        return self._generator.random(shape).astype(np.float32)
