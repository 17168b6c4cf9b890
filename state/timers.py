"""Delayed messages of one task, fired in the order of their due times.

Each timer is a row whose key sorts by (due, number); the row is the truth, inside every snapshot. This index only says
which rows are due next, and keeps in memory the near ones alone: everything due before `_horizon`, in a heap, and the
keys of later timers set since the last fold, because the store does not have those yet. Invariants: a timer fires at
most once; timers fire in key order; one that was removed counts for nothing, so that a restored index gives the same as
the one that was restored from; a due scan never looks behind the last fired key (PROTOCOL 24), where the store is full
of deletions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import islice

from penstock.state import keys

NEAR_TIMERS_MAX = 10_000
"""Timers loaded at a time. It bounds the memory of a million pending ones, and costs about 10 ms to load."""

Scan = Callable[[bytes, bytes], Iterator[tuple[bytes, bytes]]]


class TimerIndex:
    """Which timer rows are due. `scan` reads rows of the overlay in key order, unsettled ones included."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._near: list[bytes] = []
        self._removed: set[bytes] = set()
        """Those in `_near` whose rows are gone."""
        self._cursor, self._end = keys.task_kind_range(keys.TIMER)
        self._horizon = self._cursor
        """Every existing timer whose key is below it is in `_near`."""
        self._exhausted = False

    def add(self, key: bytes) -> None:
        """A timer row was written."""
        if self._is_near(key):
            heappush(self._near, key)
            if len(self._near) > 4 * NEAR_TIMERS_MAX:
                self._shrink()

    def remove(self, key: bytes) -> None:
        """A timer row was deleted that had not fired."""
        if self._is_near(key):
            self._removed.add(key)

    def next_due_ms(self) -> int | None:
        """When the earliest timer is due, in milliseconds since 1970; None when there is none."""
        self._drop_removed()
        if not self._near:
            self._load_near()
        return keys.decode_timer_key(self._near[0]).due_ms if self._near else None

    def pop_due(self, now_ms: int, count_max: int) -> list[bytes]:
        """Keys of up to `count_max` timers due at `now_ms`, earliest first."""
        due: list[bytes] = []
        while len(due) < count_max:
            first = self.next_due_ms()
            if first is None or first > now_ms:
                break
            key = heappop(self._near)
            self._cursor = key
            due.append(key)
        return due

    def _is_near(self, key: bytes) -> bool:
        return key < self._horizon or self._exhausted

    def _drop_removed(self) -> None:
        near, removed = self._near, self._removed
        while removed and near and near[0] in removed:
            removed.discard(heappop(near))

    def _load_near(self) -> None:
        """Fill the heap with the next timers in key order, or learn that there are none."""
        if self._exhausted:
            return
        found = [key for key, _ in islice(self._scan(max(self._cursor, self._horizon), self._end), NEAR_TIMERS_MAX)]
        self._near = found  # Sorted, hence a heap.
        self._exhausted = len(found) < NEAR_TIMERS_MAX
        self._horizon = self._end if self._exhausted else found[-1] + b"\x00"

    def _shrink(self) -> None:
        """Forget the far half: its rows are found again when their time comes."""
        self._near.sort()
        del self._near[NEAR_TIMERS_MAX:]
        heapify(self._near)
        self._horizon = self._near[-1] + b"\x00"
        self._removed.intersection_update(self._near)
        self._exhausted = False
