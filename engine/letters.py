"""Dead letters: messages a task gave up, kept as rows of that task.

A letter is written in the batch that gave its message up, and deleted in the batch that sends it again or drops it, so
each exists exactly once and is redriven exactly once, whatever crashes. Numbers are unique in the application (task t
of P uses t, P + t, 2P + t, ...) and never reused. Decides nothing: the task core says what becomes a letter.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

import msgspec

from penstock.engine.effects import DeadLetter
from penstock.errors import PenstockError
from penstock.functions.failures import describe, user_traceback
from penstock.ids import Address
from penstock.records import EgressRow, Envelope, Meta
from penstock.state import keys
from penstock.state.overlay import Overlay

TEXT_BYTES_MAX = 64 << 10
"""Of a payload that a copy also shows as text. Of a longer one it would become too large."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(DeadLetter).decode


class DeadLetters:
    """See the module. Owns the rows of kind DEAD of one task."""

    def __init__(self, overlay: Overlay, *, task: int, tasks: int) -> None:
        self._overlay = overlay
        self._task = task
        self._tasks = tasks
        self.next_number = 1
        self._rows: dict[tuple[str, int], int] | None = None
        """Egress and cause -> number of the letters that are rows; None until somebody asks."""
        self.written = 0
        """Letters written since the task started."""

    def write(
        self,
        envelope: Envelope,
        error: BaseException,
        *,
        attempts: int,
        clock_ms: int,
        state: bytes,
        row: EgressRow | None = None,
    ) -> DeadLetter:
        """Keep `envelope` as a letter that says why it failed; `row` is what it was on its way to an egress."""
        number = self.next_number * self._tasks + self._task
        self.next_number += 1
        self.written += 1
        code, reason = describe(error)
        meta = envelope.meta or Meta()
        letter = DeadLetter(
            number=number,
            clock_ms=clock_ms,
            code=code,
            reason=_storable(reason),
            traceback="" if isinstance(error, PenstockError) else _storable(user_traceback(error)),
            origin=meta.origin,
            typename=envelope.typename,
            id=envelope.id,
            payload=envelope.payload,
            cause=envelope.cause,
            caller=envelope.caller,
            headers=meta.headers,
            attempts=attempts,
            state=state,
            idempotency_key=meta.idempotency_key,
            row=row,
        )
        self._overlay.put(keys.encode_dead_key(number), _encode(letter))
        if row is not None and self._rows is not None:
            self._rows[letter.typename, letter.cause] = number
        return letter

    def write_row(self, egress: str, row: EgressRow, error: BaseException, *, clock_ms: int) -> DeadLetter | None:
        """Keep a row of `egress` as a letter. None when it is one already: after a crash a row may come again."""
        if (egress, row.cause) in self._known_rows():
            return None
        envelope = Envelope(egress, "", row.value, row.cause, None, Meta(origin=f"egress {egress}"))
        # The payload is the value: it need not be there twice.
        return self.write(envelope, error, attempts=0, clock_ms=clock_ms, state=b"", row=row._replace(value=b""))

    def _known_rows(self) -> dict[tuple[str, int], int]:
        if self._rows is None:
            self._rows = {(each.typename, each.cause): each.number for each in self.all() if each.row is not None}
        return self._rows

    def get(self, number: int) -> DeadLetter | None:
        data = self._overlay.get(keys.encode_dead_key(number))
        return None if data is None else _decode(data)

    def all(self) -> Iterator[DeadLetter]:
        """The letters of this task by number."""
        return (_decode(data) for _, data in self._overlay.scan(*keys.task_kind_range(keys.DEAD)))

    def drop(self, letter: DeadLetter) -> None:
        self._overlay.put(keys.encode_dead_key(letter.number), None)
        if self._rows is not None:
            self._rows.pop((letter.typename, letter.cause), None)

    def redrive_row(self, letter: DeadLetter) -> EgressRow:
        """Take a letter out, as the row it was."""
        assert letter.row is not None
        self.drop(letter)
        return letter.row._replace(value=letter.payload)

    def redrive(self, letter: DeadLetter) -> Envelope:
        """Take a letter out, as the message it was: same cause, so its outputs carry the ids they would have had."""
        self.drop(letter)
        caller = None if letter.caller is None else Address(*letter.caller)
        meta = Meta(headers=letter.headers, origin=letter.origin, idempotency_key=letter.idempotency_key)
        return Envelope(letter.typename, letter.id, letter.payload, letter.cause, caller, meta)


def copy_of(letter: DeadLetter) -> EgressRow:
    """The letter for people's own tools: a row whose key is the id, and whose value is JSON."""
    fields = {
        "number": letter.number,
        "at_ms": letter.clock_ms,
        "code": letter.code,
        "reason": letter.reason,
        "origin": letter.origin,
        "function": letter.typename,
        "id": letter.id,
        "attempts": letter.attempts,
        "traceback": letter.traceback,
        "headers": letter.headers,
        "payload": base64.b64encode(letter.payload).decode(),
        "text": _text_of(letter.payload),
    }
    return EgressRow(msgspec.json.encode(fields), letter.cause, letter.id.encode() or None)


def gist(copy: bytes) -> bytes:
    """What the value of a copy says of a message and its failure, wherever that was found out and whatever failed
    before."""
    fields = msgspec.json.decode(copy)
    return msgspec.json.encode(
        {name: fields[name] for name in ("code", "reason", "function", "id", "attempts", "headers", "payload", "text")}
    )


def _text_of(payload: bytes) -> str | None:
    if len(payload) > TEXT_BYTES_MAX:
        return None
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None


def _storable(text: str) -> str:
    """`text` with lone surrogates, which an error may quote and UTF-8 can't hold, written out."""
    return text.encode(errors="backslashreplace").decode()
