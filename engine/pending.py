"""Messages that were admitted and can't be finished yet: those of a suspended or failing address, and those behind
them.

An address is *held* from the moment its handler suspends, or fails and waits to be tried again, until that message is
done; everything else for the address waits behind it, in arrival order. Each such message is a row, so that a snapshot
contains it with its attempt count (PROTOCOL 7); in memory there is only its number, so that a backlog of any length
behind one address costs little. Invariants: rows are numbered in arrival order; an address that isn't held has no rows;
at most one message of an address is current.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import msgspec

from penstock.records import Envelope, Meta, QueuedRow
from penstock.state import keys
from penstock.state.overlay import Overlay


class PendingMessage(NamedTuple):
    """One row: the message, how often it was tried, and when it may be tried again (0 = as soon as it is its turn)."""

    typename: str
    id: str
    payload: bytes
    cause: int
    caller: tuple[str, str] | None
    meta: Meta | None
    attempt: int
    due_ms: int

    @property
    def queued(self) -> QueuedRow:
        return (self.id, self.payload, self.cause, self.caller, self.meta)

    @property
    def envelope(self) -> Envelope:
        return Envelope(self.typename, *self.queued)


class Hold:
    """A held address: the number of its current message, and those behind it."""

    __slots__ = ("current", "waiting")

    def __init__(self, current: int) -> None:
        self.current = current
        self.waiting: deque[int] | tuple[()] = ()

    def append(self, number: int) -> None:
        """Put a message in line. Nearly always it is the only one, and a queue takes 600 bytes."""
        if isinstance(self.waiting, tuple):
            self.waiting = deque()
        self.waiting.append(number)

    def pop(self) -> int | None:
        """The number of the next one, which is current now; None when there is none."""
        if not self.waiting:
            return None
        self.current = self.waiting.popleft()
        return self.current


Held = dict[str, Hold]
"""The held addresses of one function, by id."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PendingMessage).decode


def message_of_pending(data: bytes) -> PendingMessage:
    """What a row holds."""
    return _decode(data)


def read_pending(overlay: Overlay, number: int) -> PendingMessage:
    """The message of a row that is there."""
    data = overlay.get(keys.encode_pending_key(number))
    assert data is not None, f"pending message {number} has no row"
    return _decode(data)


def held_by_rows(overlay: Overlay) -> dict[str, Held]:
    """The held addresses of every function, as the rows of a task tell that nobody runs."""
    found: dict[str, Held] = {}
    for key, data in overlay.scan(*keys.task_kind_range(keys.PENDING)):
        number, message = keys.decode_pending_key(key), _decode(data)
        held = found.setdefault(message.typename, {})
        if message.id in held:
            held[message.id].append(number)
        else:
            held[message.id] = Hold(number)
    return found


def add_to_pending(envelope: Envelope) -> bytes:
    """The row of a message that has not been tried."""
    return _encode(PendingMessage(*envelope, 1, 0))


class Pending:
    """See the module. Owns the rows of kind PENDING of one task."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._retries: list[tuple[int, int]] = []
        self.next_number = 0
        self.count = 0

    def hold(self, held: Held, typename: str, message: QueuedRow, *, attempt: int, due_ms: int = 0) -> int:
        """Hold the address of `message`, which is current there from now on. Returns the number of its row."""
        assert message[0] not in held
        number = self._add(PendingMessage(typename, *message, attempt, due_ms))
        held[message[0]] = Hold(number)
        if due_ms:
            heappush(self._retries, (due_ms, number))
        return number

    def wait(self, held: Held, typename: str, message: QueuedRow) -> None:
        """Put `message` behind what its held address is busy with."""
        held[message[0]].append(self._add(PendingMessage(typename, *message, 1, 0)))

    def retry_at(self, number: int, due_ms: int) -> None:
        """The current message of an address failed and shall be tried again at `due_ms`."""
        message = self.get(number)
        self._overlay.put(
            keys.encode_pending_key(number), _encode(message._replace(attempt=message.attempt + 1, due_ms=due_ms))
        )
        heappush(self._retries, (due_ms, number))

    def done(self, held: Held, id: str) -> int | None:
        """The current message of `id` is finished. Returns the number of the next one, which is current now; None, and
        the address is free, when there is none."""
        hold = held[id]
        self._overlay.put(keys.encode_pending_key(hold.current), None)
        self.count -= 1
        following = hold.pop()
        if following is None:
            del held[id]
        return following

    def take_out(self, held: Held, id: str, number: int) -> None:
        """A message that stands in line is processed before its turn."""
        waiting = held[id].waiting
        assert isinstance(waiting, deque)
        waiting.remove(number)
        self._overlay.put(keys.encode_pending_key(number), None)
        self.count -= 1

    def rewrite(self, number: int, meta: Meta) -> None:
        """Change what is said of a message besides its value."""
        message = self.get(number)
        self._overlay.put(keys.encode_pending_key(number), _encode(message._replace(meta=meta)))

    def get(self, number: int) -> PendingMessage:
        return read_pending(self._overlay, number)

    def next_retry_ms(self) -> int | None:
        return self._retries[0][0] if self._retries else None

    def hasten(self, number: int) -> bool:
        """Do not wait any longer until a failed message is tried again. False when none waits that has this number."""
        left = [each for each in self._retries if each[1] != number]
        if len(left) == len(self._retries):
            return False
        heapify(left)
        self._retries = left
        self._overlay.put(keys.encode_pending_key(number), _encode(self.get(number)._replace(due_ms=0)))
        return True

    def pop_retries(self, now_ms: int) -> list[int]:
        """Numbers of the messages whose back-off has passed."""
        due = []
        while self._retries and self._retries[0][0] <= now_ms:
            due.append(heappop(self._retries)[1])
        return due

    def restore(self) -> Iterator[tuple[int, PendingMessage]]:
        """Read the rows of a restored task, in arrival order; the caller decides what becomes of each by `readmit`."""
        for key, data in self._overlay.scan(*keys.task_kind_range(keys.PENDING)):
            yield keys.decode_pending_key(key), _decode(data)

    def readmit(self, held: Held, number: int, message: PendingMessage, *, ready: bool = False) -> bool:
        """Take a restored row back into its address. True when it is current there and may run at once; `ready`: it was
        about to, so its back-off has passed."""
        self.count += 1
        hold = held.get(message.id)
        if hold is not None:
            hold.append(number)
            return False
        held[message.id] = Hold(number)
        if message.due_ms and not ready:
            heappush(self._retries, (message.due_ms, number))
            return False
        return True

    def discard(self, number: int) -> None:
        """Delete a restored row that is not readmitted."""
        self._overlay.put(keys.encode_pending_key(number), None)

    def _add(self, message: PendingMessage) -> int:
        number = self.next_number
        self.next_number += 1
        self.count += 1
        self._overlay.put(keys.encode_pending_key(number), _encode(message))
        return number
