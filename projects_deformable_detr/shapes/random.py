"""Random numbers that are reproducible across machines and NumPy versions."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Field = np.ndarray[Any, np.dtype[np.float32]]


class Random:
    """Stream of uniform, integer and categorical random numbers.

    Only ``Generator.random`` of PCG64 is used, because NumPy may change the algorithms of other distributions.

    Args:
        seeds: non-negative integers; different sequences give independent streams.
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
        """Returns an integer in [low, high]."""
        return low + int(self.uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """Returns True with the given probability."""
        return self.uniform() < probability

    def choice(self, items: Sequence[T]) -> T:
        """Returns a random item, with equal probabilities."""
        return items[self.integer(0, len(items) - 1)]

    def field(self, *shape: int) -> Field:
        """Returns independent float32 numbers in [0, 1) of the given shape."""
        return self._generator.random(shape).astype(np.float32)
