"""Random draws that depend on the seed alone, whatever the machine and the version of NumPy."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Field = np.ndarray[Any, np.dtype[np.float32]]


class Draws:
    """Uniform, integer and categorical draws from one stream.

    Only ``Generator.random`` of PCG64 is used: NumPy may change the algorithms behind its other distributions
    between versions, and has done so.

    Args:
        seeds: whole numbers >= 0; another sequence is another, independent stream.
    """

    def __init__(self, *seeds: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(seeds))))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def log_uniform(self, low: float, high: float) -> float:
        """A number in [low, high) whose logarithm is uniform."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high], both included."""
        return low + int(self.uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, each as likely as another."""
        return items[self.integer(0, len(items) - 1)]

    def field(self, *shape: int) -> Field:
        """Independent numbers in [0, 1) of this shape, float32."""
        return self._generator.random(shape).astype(np.float32)
