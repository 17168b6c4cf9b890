"""Ring hash: which endpoint owns an id, and which come after it.

Every endpoint stands at many points of a circle of 64-bit numbers, and an id belongs to the endpoint whose point comes
next. What always holds: the order depends on the names alone, not on the process or on the order of the endpoints; when
one leaves, only its own ids move, and they spread over all others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from math import ceil


def hash_64(text: str) -> int:
    """64 bits of `text`, the same in every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class Ring:
    """The circle of one set of endpoints. To build one costs about 2 ms, so callers keep it while the set is the
    same."""

    def __init__(self, names: Sequence[str], minimum_size: int) -> None:
        self.names = tuple(names)
        each = ceil(minimum_size / max(1, len(names)))
        points = sorted((hash_64(f"{name}_{number}"), name) for name in names for number in range(each))
        self._points = [point for point, _ in points]
        self._owners = [name for _, name in points]

    def order(self, id: str) -> Iterator[str]:
        """Every endpoint once, the owner of `id` first, then those that would own it if the ones before were gone."""
        seen: set[str] = set()
        size = len(self._points)
        start = bisect_left(self._points, hash_64(id))
        for step in range(size):
            name = self._owners[(start + step) % size]
            if name not in seen:
                seen.add(name)
                yield name
                if len(seen) == len(self.names):
                    return
