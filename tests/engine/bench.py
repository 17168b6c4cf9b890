"""One task core over memory, driven by hand: batches go in, effects come out, and every effect passes through bytes."""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from penstock.checkpoint.control import Part
from penstock.checkpoint.delta import DeltaIdentity, decode_delta, encode_delta
from penstock.engine.effects import Batch, Completed, DeadLetter, Deliveries, Effects, Input
from penstock.engine.invocation import Outcome
from penstock.engine.journal import Journal
from penstock.engine.operations import Operation, encode_operation
from penstock.engine.restore import Restored, restore_task
from penstock.engine.task import TaskCore, TaskOptions
from penstock.functions.app import App
from penstock.functions.context import Outlet
from penstock.functions.function import Function
from penstock.ids import Address
from penstock.records import Envelope, Frozen, Meta, TaskMeta
from penstock.router.memory import MemoryLog
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import Overlay

NOWHERE = Address("", "")
"""Where operations go that are for the task itself."""

_decode_effects = msgspec.msgpack.Decoder(Effects).decode


class Pause:
    """What an async handler awaits to be suspended until the test resumes it."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Bench:
    """See the module. The clock stands still unless the test moves it."""

    def __init__(self, app: App, *, task: int = 0, tasks: int = 1, options: TaskOptions | None = None) -> None:
        self.app = app
        self.options = options or TaskOptions(task=task, tasks=tasks)
        self.clock_ms = 1_000
        self.checkpoint = 0
        self.journal = Journal(MemoryLog(), Path())
        self.first = self.head = -1
        """Where the oldest and the newest delta stand in the journal."""
        self.effects: list[Effects] = []
        self._build(Restored(Overlay(MemoryBackend())))

    def _build(self, restored: Restored) -> None:
        self.overlay = restored.overlay
        outlets: dict[Any, Outlet] = {}
        for egress in self.app.egresses.values():
            outlets[egress.name] = outlets[egress] = Outlet(egress.name, egress.spec.encode, 1 << 20)
        self.suspended: dict[int, Coroutine[Any, Any, Any]] = {}
        self.core = TaskCore(
            self.app.functions.values(), outlets, self.overlay, self.options, self._start, self.app.schedules
        )
        self.core.restore(restored.meta, restored.queues, restored.staged)

    def _start(self, number: int, handler: Coroutine[Any, Any, Any]) -> Outcome | None:
        self.suspended[number] = handler
        ended = self._step(number)
        return None if ended is None else Outcome(ended.value, ended.error)

    def _step(self, number: int) -> Completed | None:
        handler = self.suspended[number]
        try:
            handler.send(None)
        except StopIteration as stop:
            del self.suspended[number]
            return Completed(number, stop.value, None)
        except Exception as error:  # noqa: BLE001  # Whatever a handler raises is how it ended.
            del self.suspended[number]
            return Completed(number, None, error)
        return None

    # Input.

    def run(self, *inputs: Input, invocations_max: int = 1_000) -> Effects:
        """One turn. Returns its effects after a trip through bytes."""
        effects = self.core.run(Batch(self.clock_ms, inputs, invocations_max))
        self.effects.append(_decode_effects(msgspec.msgpack.encode(effects)))
        return self.effects[-1]

    def send(self, to: Function[Any, Any] | str, id: str, message: Any, *, meta: Meta | None = None) -> Effects:
        return self.run(deliver(to, id, message, meta=meta))

    def call(
        self, to: Function[Any, Any] | str, id: str, message: Any, *, request: str = "r", key: str = ""
    ) -> Effects:
        return self.send(to, id, message, meta=Meta(request_id=request, idempotency_key=key))

    def operate(self, operation: Operation, address: Address = NOWHERE) -> Any:
        """Carry out an operation, and return its answer, or its error as text."""
        (reply,) = self.run(requested(operation, address)).replies
        return reply.error or msgspec.json.decode(reply.value)

    def advance(self, milliseconds: int) -> Effects:
        self.clock_ms += milliseconds
        return self.run()

    def resume(self, number: int | None = None) -> Effects:
        """Let the suspended handler with this number, or the oldest, go on to its end."""
        ended = self._step(min(self.suspended) if number is None else number)
        assert ended is not None, "the handler was suspended again"
        return self.run(ended)

    # Cuts.

    def freeze(self) -> Frozen:
        """Cut, and write what was cut. Returns it as it is read back."""
        self.checkpoint += 1
        records = encode_delta(self.core.freeze(self.checkpoint), DeltaIdentity("bench", 1, 1, self.head))
        self.head, *_ = [self.journal.append_delta(record) for record in records]
        self.first = self.head if self.first < 0 else self.first
        return decode_delta(records)[1]

    def restart(self, app: App | None = None) -> None:
        """Cut, and continue from the bytes, perhaps with changed code."""
        self.freeze()
        for handler in self.suspended.values():
            handler.close()
        self.app = app or self.app
        checksum = self.journal.delta(self.head)[0].checksum
        part = Part(self.options.task, "", 0, self.head, checksum, self.first, 0, 0)
        self._build(
            restore_task(
                part,
                self.journal,
                lambda name: MemoryBackend(),
                cache_bytes_max=1 << 20,
                progress=lambda done, total: None,
            )
        )

    def adopt(self, backend: MemoryBackend, meta: TaskMeta) -> None:
        """Continue with what another task left."""
        restored = Restored(Overlay(backend))
        restored.meta = meta
        self._build(restored)

    # What there is.

    def state(self, function: Function[Any, Any], id: str) -> Any:
        entry = self.core.entries[function.typename]
        context = entry.new_context()
        context.id = id
        entry.open(context, self.clock_ms)
        return context.storage if function.storage else context.state

    def letters(self) -> list[DeadLetter]:
        return list(self.core.letters.all())

    def redone(self) -> Frozen:
        """What a core that only redoes the effects so far freezes."""
        other = Bench(self.app, options=self.options)
        for effects in self.effects:
            other.core.redo(effects)
        return other.core.freeze(self.checkpoint + 1)


def deliver(
    to: Function[Any, Any] | str,
    id: str,
    message: Any,
    *,
    meta: Meta | None = None,
    cause: int = 7,
    caller: Address | None = None,
) -> Deliveries:
    """One message from outside; `message` in bytes is taken as it is."""
    typename = to if isinstance(to, str) else to.typename
    if not isinstance(message, bytes):
        message = msgspec.msgpack.encode(message) if isinstance(to, str) else to.message_codec.encode(message)
    return Deliveries("requests", 1, [Envelope(typename, id, message, cause, caller, meta)])


def requested(operation: Operation, address: Address = NOWHERE) -> Deliveries:
    """What asks a task for an operation."""
    name, payload = encode_operation(operation)
    return Deliveries(
        "requests", 1, [Envelope(*address, payload, 1, None, Meta(request_id="operation", operation=name))]
    )


def deliver_all(*deliveries: Deliveries) -> Deliveries:
    """Several messages in one input."""
    return Deliveries("requests", 1, [envelope for each in deliveries for envelope in each.envelopes])


def payloads(rows: Sequence[Any]) -> list[Any]:
    """The values of egress rows or messages in msgpack."""
    return [msgspec.msgpack.decode(row.value) for row in rows]
