"""The one source of randomness of a simulated world: the same seed, the same run.

Each step of a world has numbers of its own, so that those of the others stay what they are when one is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")


class Dice:
    """See the module. Everything that could happen one way or another asks it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        source = Random(seed)
        self._reseed, self._random = source.seed, source.random

    def begin_step(self, number: int) -> None:
        self._reseed(self._seed << 16 | (number + 1))

    def below(self, count: int) -> int:
        """A number from 0 to `count` - 1."""
        return int(self._random() * count)

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def choose(self, options: Sequence[T]) -> T:
        return options[int(self._random() * len(options))]

    def draw(self, weights: Weights[T]) -> T:
        """One of the options, each as often as its weight says."""
        return weights.options[bisect_right(weights.bounds, self._random() * weights.total)]


class Weights(Generic[T]):
    """Options with weights, prepared for drawing many times."""

    def __init__(self, weights: Mapping[T, float]) -> None:
        self.options = [option for option, weight in weights.items() if weight]
        self.bounds = list(accumulate(weight for weight in weights.values() if weight))
        self.total = self.bounds[-1]
