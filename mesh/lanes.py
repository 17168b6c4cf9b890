"""Which of the messages that a process holds may be delivered now.

    waiting behind others of its lane --> ready --> taken --> finished
                                            ^         |
                                            '- rests -'

What always holds: of one lane one message is taken at a time, and the next is ready when that is finished; a message
that rests holds its lane up, because what is behind it must not arrive first. A delayed message is a lane of its own:
no order was promised to it. Delivers nothing and knows no clock.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import TypeAlias

from penstock.mesh.store import Kept

_Lane: TypeAlias = tuple[object, ...]


class Lanes:
    """See the module."""

    def __init__(self) -> None:
        self._lanes: dict[_Lane, deque[Kept]] = {}
        self._ready: deque[_Lane] = deque()
        self._resting: list[tuple[float, int, _Lane]] = []
        """Until when, the number of the message, and its lane."""
        self._numbers: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def __len__(self) -> int:
        """How many messages are held, also those that are taken."""
        return len(self._numbers)

    def add(self, kept: Kept) -> None:
        """Hold one more message, behind those of its lane that are held."""
        lane = _lane(kept)
        self._numbers.add(kept.number)
        if lane in self._lanes:
            self._lanes[lane].append(kept)
        else:
            self._lanes[lane] = deque([kept])
            self._ready.append(lane)

    def take(self) -> Kept | None:
        """A message that is to be delivered now; None when there is none."""
        return self._lanes[self._ready.popleft()][0] if self._ready else None

    def finish(self, kept: Kept) -> None:
        """A message that was taken is delivered, or given up."""
        lane = _lane(kept)
        waiting = self._lanes[lane]
        assert waiting.popleft().number == kept.number, "the first of a lane is the one that was taken"
        self._numbers.discard(kept.number)
        if waiting:
            self._ready.append(lane)
        else:
            del self._lanes[lane]

    def rest(self, kept: Kept, until_s: float) -> None:
        """A message that was taken is to be tried again at that time. It stays as `kept` has it now."""
        lane = _lane(kept)
        self._lanes[lane][0] = kept
        heappush(self._resting, (until_s, kept.number, lane))

    def wake(self, now_s: float) -> None:
        """Make ready what has rested long enough."""
        while self._resting and self._resting[0][0] <= now_s:
            self._ready.append(heappop(self._resting)[2])

    @property
    def ready(self) -> bool:
        """Whether there is a message to be delivered now."""
        return bool(self._ready)

    @property
    def wakes_s(self) -> float | None:
        """When the next message has rested; None when none rests."""
        return self._resting[0][0] if self._resting else None


def _lane(kept: Kept) -> _Lane:
    outgoing = kept.outgoing
    return (kept.number,) if outgoing.due_ms else (kept.sender, outgoing.target, outgoing.id)
