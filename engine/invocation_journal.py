"""The journal of an invocation that is awaiting: what it began with, what it asked for, and what came of it.

    start       the message's cause, the time, and the state it began with
    progress    how many segments are committed, how many lines there are, whether it waits for messages alone
    line i      what it asked for as its i-th wish, and the result once it has arrived
    undo i      what a row of a table or a log was before the invocation changed it
    joined i    what the i-th call that came back has left of the state, and of rows of tables and logs

What always holds: a line is added in the turn in which the segment that asked for it is committed, so what is there was
done; results are numbered in the order in which they arrived; `flush` writes what has changed since the last one, so an
invocation that begins and ends within one turn writes nothing. All rows belong to the address and move with it.

Runs nothing: `penstock.engine.invocation` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

import msgspec

from penstock.functions.durable import CALL, Wish
from penstock.ids import Address, key_group
from penstock.state import keys
from penstock.state.overlay import Overlay

CANCELLATION: Final = -1
"""Among the arrivals: somebody wants the invocation to end."""
JOINED: Final = -2
"""Among the arrivals: the first call that came back has run. The others follow downwards."""

_START, _PROGRESS, _LINE, _UNDO, _JOINED = 1, 2, 3, 4, 5

_encode = msgspec.msgpack.Encoder().encode


class Line(msgspec.Struct, array_like=True, omit_defaults=True):
    """One wish, and its result."""

    kind: str
    name: str
    digest: int
    since_ms: int
    arrived: int = 0
    """Its number among the results, from 1; 0 while there is none."""
    clock_ms: int = 0
    """What the handler sees as now when it gets the result."""
    value: bytes = b""
    error: tuple[str, str] | None = None
    """Code and text of why there is no value."""
    timed: bool = False
    """Whether a timer ends the waiting."""


class _Start(msgspec.Struct, array_like=True):
    cause: int
    clock_ms: int
    state: bytes


class Joined(msgspec.Struct, array_like=True):
    """What a call that came back has left."""

    arrived: int
    clock_ms: int
    state: bytes
    rows: list[tuple[bytes, bytes | None]]


class _Progress(msgspec.Struct, array_like=True):
    segments: int
    lines: int
    undone: int
    passive: bool
    """Whether all it waits for comes by messages and timers: nothing need be begun anew after a restore."""
    cancelled: tuple[int, int] | None = None
    """The number of the cancellation among the arrivals, and its time."""
    parked: str = ""
    """Why it can't go on with the code there is."""
    joined: int = 0


_decode_start = msgspec.msgpack.Decoder(_Start).decode
_decode_progress = msgspec.msgpack.Decoder(_Progress).decode
_decode_line = msgspec.msgpack.Decoder(Line).decode
_decode_joined = msgspec.msgpack.Decoder(Joined).decode
_decode_undo = msgspec.msgpack.Decoder(tuple[bytes, bytes | None]).decode


class InvocationJournal:
    """See the module."""

    def __init__(self, overlay: Overlay, address: tuple[str, str], cause: int, clock_ms: int, state: bytes) -> None:
        self._overlay = overlay
        self._typename, self._id = address
        self._group = key_group(self._id)
        self.cause = cause
        self.clock_ms = clock_ms
        """When it began."""
        self.state = state
        """What it began with."""
        self.segments = 0
        self.lines: list[Line] = []
        self.arrivals: list[int] = []
        """Numbers of lines, `CANCELLATION`, `JOINED` and below, in the order in which they arrived."""
        self.parked = ""
        self.undo: dict[bytes, bytes | None] = {}
        self._cancelled: tuple[int, int] | None = None
        self._joined: list[Joined] = []
        self._changed: set[int] = set()
        self._undo_stored = 0
        self._lines_stored = self._joined_stored = 0
        self._stored = False

    @classmethod
    def load(cls, overlay: Overlay, address: tuple[str, str]) -> InvocationJournal | None:
        """The one at rest; None when the address has none."""
        journal = cls(overlay, address, 0, 0, b"")
        data = overlay.get(journal._key(_START))
        if data is None:
            return None
        start = _decode_start(data)
        journal.cause, journal.clock_ms, journal.state = start.cause, start.clock_ms, start.state
        progress = _decode_progress(journal._row(_PROGRESS))
        journal.segments, journal.parked = progress.segments, progress.parked
        journal.lines = [_decode_line(journal._row(_LINE, number)) for number in range(progress.lines)]
        journal.undo = dict(_decode_undo(journal._row(_UNDO, number)) for number in range(progress.undone))
        journal._joined = [_decode_joined(journal._row(_JOINED, number)) for number in range(progress.joined)]
        arrived = [(line.arrived, index) for index, line in enumerate(journal.lines) if line.arrived]
        arrived += [(joined.arrived, JOINED - number) for number, joined in enumerate(journal._joined)]
        journal._cancelled = progress.cancelled
        if progress.cancelled is not None:
            arrived.append((progress.cancelled[0], CANCELLATION))
        journal.arrivals = [index for _, index in sorted(arrived)]
        journal._stored = True
        journal._lines_stored, journal._undo_stored = progress.lines, progress.undone
        journal._joined_stored = progress.joined
        return journal

    @staticmethod
    def exists(overlay: Overlay, address: tuple[str, str]) -> bool:
        """Whether the message that an address is busy with has begun, and is to be gone on with."""
        return overlay.get(_key_of(address, _START)) is not None

    @staticmethod
    def waits_for_messages(overlay: Overlay, address: tuple[str, str]) -> bool:
        """Whether the invocation that holds an address needs nothing to be begun anew after a restore."""
        progress = _progress_of(overlay, address)
        return progress is not None and progress.passive and not progress.parked

    @staticmethod
    def is_parked(overlay: Overlay, address: tuple[str, str]) -> bool:
        """Whether the invocation that holds an address can't go on with the code there is."""
        progress = _progress_of(overlay, address)
        return progress is not None and bool(progress.parked)

    # What happens.

    def add(self, wish: Wish, clock_ms: int) -> None:
        """Note what is asked for by the segment that is being committed."""
        self._changed.add(len(self.lines))
        self.lines.append(Line(wish.kind, wish.name, wish.digest, clock_ms))

    def arrive(self, index: int, value: bytes, error: tuple[str, str] | None, clock_ms: int) -> bool:
        """Note a result. False when nobody waits for it: it came before, or what asked for it was rolled back."""
        if not 0 <= index < len(self.lines) or self.lines[index].arrived:
            return False
        self.arrivals.append(index)
        line = self.lines[index]
        line.arrived, line.clock_ms = len(self.arrivals), clock_ms
        line.value, line.error = value, error
        self._changed.add(index)
        return True

    def cancel(self, clock_ms: int) -> bool:
        """Note that the invocation is to end. False when that is known."""
        if self._cancelled is not None:
            return False
        self.arrivals.append(CANCELLATION)
        self._cancelled = (len(self.arrivals), clock_ms)
        return True

    def arrived_ms(self, index: int) -> int:
        """When a result, or the cancellation, arrived."""
        if index == CANCELLATION:
            assert self._cancelled is not None
            return self._cancelled[1]
        if index <= JOINED:
            return self.joined(index).clock_ms
        return self.lines[index].clock_ms

    def join(self, state: bytes, rows: Mapping[bytes, bytes | None], clock_ms: int) -> None:
        """Note what a call that came back leaves: a segment that is committed, and that others have run."""
        self.before(rows)
        self.arrivals.append(JOINED - len(self._joined))
        self._joined.append(Joined(len(self.arrivals), clock_ms, state, list(rows.items())))
        self.segments += 1

    @property
    def joins(self) -> int:
        """How many there were."""
        return len(self._joined)

    def joined(self, index: int) -> Joined:
        """What the arrival `index` has left."""
        return self._joined[JOINED - index]

    def waits_for_call(self, address: tuple[str, str]) -> bool:
        """Whether a call of this address is not answered."""
        name = "/".join(address)
        return any(line.kind == CALL and line.name == name and not line.arrived for line in self.lines)

    @property
    def cancelled(self) -> bool:
        return self._cancelled is not None

    def before(self, changes: Iterable[bytes]) -> None:
        """Keep what these rows are, unless it is kept already: they are about to change."""
        for key in changes:
            if key not in self.undo:
                self.undo[key] = self._overlay.get(key)

    # Rows.

    def flush(self, *, passive: bool) -> None:
        """Write what has changed since the last time."""
        put = self._overlay.put
        if not self._stored:
            put(self._key(_START), _encode(_Start(self.cause, self.clock_ms, self.state)))
            self._stored = True
        for index in sorted(self._changed):
            put(self._key(_LINE, index), _encode(self.lines[index]))
        self._changed.clear()
        for number, row in enumerate(islice(self.undo.items(), self._undo_stored, None), self._undo_stored):
            put(self._key(_UNDO, number), _encode(row))
        for number in range(self._joined_stored, len(self._joined)):
            put(self._key(_JOINED, number), _encode(self._joined[number]))
        self._lines_stored, self._undo_stored = len(self.lines), len(self.undo)
        self._joined_stored = len(self._joined)
        progress = _Progress(
            self.segments,
            len(self.lines),
            len(self.undo),
            passive,
            self._cancelled,
            self.parked,
            len(self._joined),
        )
        put(self._key(_PROGRESS), _encode(progress))

    def delete(self) -> None:
        """The invocation has ended."""
        if not self._stored:
            return
        put = self._overlay.put
        for part in (_START, _PROGRESS):
            put(self._key(part), None)
        for number in range(self._lines_stored):
            put(self._key(_LINE, number), None)
        for number in range(self._undo_stored):
            put(self._key(_UNDO, number), None)
        for number in range(self._joined_stored):
            put(self._key(_JOINED, number), None)
        self._stored = False

    def _row(self, part: int, number: int = 0) -> bytes:
        data = self._overlay.get(self._key(part, number))
        assert data is not None, f"the journal of {Address(self._typename, self._id)} has no row {part}, {number}"
        return data

    def _key(self, part: int, number: int = 0) -> bytes:
        return keys.encode_journal_key(self._group, self._typename, self._id, part, number)


def _key_of(address: tuple[str, str], part: int) -> bytes:
    """The key of a row that there is one of, for who asks without a journal."""
    return keys.encode_journal_key(key_group(address[1]), *address, part)


def _progress_of(overlay: Overlay, address: tuple[str, str]) -> _Progress | None:
    data = overlay.get(_key_of(address, _PROGRESS))
    return None if data is None else _decode_progress(data)
