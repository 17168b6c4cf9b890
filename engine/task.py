"""The core of one task: runs handlers, and turns what they did into effects.

    batch -> admit -> [ local queues -> decode -> handler -> encode ] -> effects
                            ^______________________|

What always holds: one address processes one message at a time, in arrival order for each pair of addresses; an
invocation is atomic (state, messages, rows and timers are taken over only when its handler returned); time reaches
handlers through the batch alone; `redo(effects)` on the state before a batch gives the state after it. Whatever is
admitted and unfinished is part of the frozen state, so a flip may happen between any two batches.

Sans-io: knows no log, no checkpoint protocol, no sink and no clock. Handlers that suspend are handed to `start`, and
come back as `Completed` inputs. It never sends: whoever calls `run` performs the effects.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, islice, repeat
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from penstock.checkpoint.sinks import Staged
from penstock.engine.awaiting import Awaiting, Limits, Outside, operation_for, timer_token
from penstock.engine.delays import Delays, DueMessage, DueSchedule
from penstock.engine.effects import (
    Batch,
    Column,
    Completed,
    DeadLetter,
    Deliveries,
    Effects,
    FrameInput,
    Input,
    OutFrame,
    Performed,
    Rejected,
    TaskStatistics,
    bounded,
    taken,
)
from penstock.engine.entry import Entry
from penstock.engine.invocation import Invocation, Outcome
from penstock.engine.invocation_journal import InvocationJournal
from penstock.engine.letters import DeadLetters, copy_of
from penstock.engine.looks import Question, RequestOf, answer
from penstock.engine.operations import (
    Answer,
    Attach,
    BackfillSchedule,
    BuryRows,
    CancelInvocation,
    Drop,
    Look,
    Operation,
    PauseSchedule,
    Redrive,
    Resolve,
    ResumeInvocation,
    RunSchedule,
    SetState,
    decode_operation,
)
from penstock.engine.pending import Held, Pending
from penstock.engine.schedules import Schedules
from penstock.engine.views import TaskView, View
from penstock.errors import CorruptSnapshot, FunctionError, InvalidInput, PenstockError, ProtocolError, Unavailable
from penstock.faults import fault
from penstock.functions.answers import encode_answer
from penstock.functions.context import (
    Cancel,
    CancelCall,
    Context,
    Delayed,
    Emitted,
    Outlet,
    Output,
    Replied,
    Resolved,
    Wished,
    Withdrawn,
)
from penstock.functions.failures import describe
from penstock.functions.function import Function
from penstock.functions.schedule import Schedule
from penstock.ids import GOLDEN_64, MASK_64, ODD_64, Address, key_group, output_cause
from penstock.records import EgressRow, Envelope, Frozen, Meta, QueueCut, QueuedRow, Reply, TaskMeta, Turn
from penstock.state import keys
from penstock.state.overlay import ABSENT, Cells, Overlay
from penstock.state.stateful import EMPTY_STATE, Opened

FRAME_BYTES = 1 << 20
"""Payloads in a frame: not many more."""
SLICE_MESSAGES = 128
"""Messages of one function that run before the next function has its turn, so that a flood for one function does not
starve the others. After each slice the time is looked at: often enough for a handler that has become slow, and too
seldom to cost anything."""

MISS_SAMPLE = 32
"""Ids of a column looked at to tell whether the cache holds most of them."""

OWN_IDS_MAX = 1 << 15
"""Ids remembered as those of this task, so that the task of a hot id is not computed for each record."""

_encode = msgspec.msgpack.Encoder().encode
_new = tuple.__new__
"""Makes a named tuple of a tuple, in a third of the time that its class takes."""
_value_of: Callable[[EgressRow], bytes] = itemgetter(0)
_payload_of: Callable[[Envelope], bytes] = itemgetter(2)


Start = Callable[[int, "Coroutine[Any, Any, Any]"], Outcome | None]
"""Let a handler, by the number of its message, go on in the event loop. Returns its outcome when it ended without
suspending; otherwise the outcome comes later, as `Completed(number, ...)`."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Limits of one task."""

    task: int = 0
    tasks: int = 1
    message_bytes_max: int = 1 << 20
    eager: frozenset[str] = frozenset()
    """Egresses whose rows leave with the effects and belong to no snapshot."""
    idempotency_keep_ms: int = 24 * 3_600_000
    """How long the result of a request with an Idempotency-Key is kept for repeats of it."""
    dead_egress: str = ""
    """The egress that gets a copy of every dead letter; empty for none."""
    check_state: bool = False
    """Whether every state is read back before it is stored, and not only where that costs nothing to speak of."""
    always_replay: bool = False
    """Whether a handler is put aside wherever it waits, so that each result has it run again from its start."""
    journal_lines_max: int = 10_000
    """What one invocation may ask for: all of it is read and done again when the handler is run again."""


class _Run(NamedTuple):
    """A run of a handler that awaits nothing."""

    entry: Entry
    message: QueuedRow
    context: Context[Any]
    opened: Opened
    journal: None = None


EXPIRE_AGAIN_MS = 1_000
"""How long the expiration of a field waits for a handler that has the state in its hands."""


class TaskCore:
    """See the module. `functions`, `outlets` and `schedules` are those of the application: all tasks have all of
    them."""

    def __init__(
        self,
        functions: Iterable[Function[Any, Any]],
        outlets: Mapping[str, Outlet],
        overlay: Overlay,
        options: TaskOptions,
        start: Start,
        schedules: Mapping[str, Schedule] | None = None,
    ) -> None:
        self._overlay = overlay
        self._options = options
        self.start = start
        self._entries = _bound_entries(functions, outlets, overlay, options)
        self._outlets = outlets
        self._single = options.tasks == 1
        self._own: set[str] = set()
        """Some of the ids that belong to this task."""

        # What a snapshot contains, beside the rows of the overlay.
        self._meta = TaskMeta()
        self._pending = Pending(overlay)
        self._delays = Delays(overlay)
        self._letters = DeadLetters(overlay, task=options.task, tasks=options.tasks)
        self._schedules = Schedules(
            schedules or {},
            {name: entry.function for name, entry in self._entries.items()},
            overlay,
            self._delays,
            task=options.task,
            tasks=options.tasks,
            bytes_max=options.message_bytes_max,
        )
        self._frozen_queues: dict[str, tuple[int, int]] = {}
        """Function -> head and tail of its queue at the last cut."""
        self._egress: dict[str, list[EgressRow]] = {}
        self._replies: list[Reply] = []
        self._schedule: list[Turn] = []
        self._changed = False
        self._commits_untold = False

        # What only the present process knows.
        self._ready: deque[tuple[Entry, int]] = deque()
        """Held addresses whose current message may run now."""
        self.outside: Outside | None = None
        self._redone = False
        """Whether batches were redone: effects don't say what may run next."""
        limits = Limits(options.journal_lines_max, options.always_replay)
        self._awaiting = Awaiting(self, overlay, self._pending, self._delays, self._ready, limits)
        self._n = 0

        self.emitted_bytes = 0
        """Of the rows for egresses that no cut contains yet."""
        self.origin_of: Callable[[int], str] = lambda cause: ""
        """Where the record with this cause stands, for people: set by whoever knows the ingresses."""

        # The batch being run.
        self._invocations = self._invocations_max = 0
        self._expired: Callable[[], bool] = lambda: False
        self._batch_egress: defaultdict[str, list[EgressRow]] = defaultdict(list)
        self._batch_replies: list[Reply] = []
        self._out: dict[int, list[Envelope]] = {}

        self.messages: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self._total = self._retries = self._duplicates = 0

    # One turn.

    def run(self, batch: Batch, expired: Callable[[], bool] = lambda: False) -> Effects:
        """Process `batch` and as much of the local queues as its bound allows, and no more once `expired` says that
        it took long enough. Raises FunctionError when a handler whose policy is to halt has failed: this core must
        not be used any further then.
        """
        self._meta.clock_ms = max(self._meta.clock_ms, batch.clock_ms)
        self._invocations = 0
        self._invocations_max = batch.invocations_max
        self._expired = expired
        positions: dict[str, Any] = {}
        ends = {name: (entry.queue_head, entry.queue_head + len(entry.queue)) for name, entry in self._entries.items()}
        admitted = [item for item in batch.inputs if self._admit(item, positions)]
        self._wake_due(batch.invocations_max)
        self._drain()
        self._awaiting.end_turn()
        return self._finish(batch, admitted, positions, ends)

    def _admit(self, item: Input, positions: dict[str, Any]) -> bool:
        """Returns whether it is something new. What was passed is not, nor is a frame that came before."""
        match item:
            case Column(source, position, typename, ids, payloads, cause):
                positions[source] = position
                self._admit_column(typename, ids, payloads, cause)
            case Deliveries(source, position, envelopes, rejected):
                positions[source] = position
                for envelope in envelopes:
                    self.deliver(envelope)
                for bad in rejected:
                    self._reject(bad)
            case FrameInput(position, frame):
                self._meta.inbox_position = position
                self._changed = True  # Also when nothing of it is new: the next checkpoint says how far we are.
                if frame is None or not self._is_new(frame.attempt, frame.source, frame.sequence):
                    return False
                self._admit_messages(frame.messages)
            case Completed(number, value, error):
                self._awaiting.complete(number, Outcome(value, error))
            case Performed(typename, id, cause, index, value, failed):
                self._awaiting.arrived(Address(typename, id), cause, index, value, failed)
        return True

    def _admit_messages(self, messages: Sequence[Envelope]) -> None:
        """What another task has sent, nearly all of which is for functions that are there."""
        entries = self._entries
        for envelope in messages:
            entry = entries.get(envelope[0])
            if entry is not None and envelope[1] and envelope[5] is None:
                entry.queue.append(envelope[1:])
            else:
                self._deliver_here(envelope)

    def _admit_column(self, typename: str, ids: Sequence[str], payloads: Sequence[bytes], cause: int) -> None:
        """Records for one function. Nothing waits before them in the usual case, so they need not be queued."""
        entry = self._entries[typename]
        causes: Sequence[int] = range(cause, cause + len(ids))
        if not (self._single or self._own.issuperset(ids)) and (foreign := self._foreign(ids)):
            for id, payload, each in zip(ids, payloads, causes, strict=True):
                if id in foreign:
                    self.deliver(Envelope(typename, id, payload, each, None, None))
            own = [id not in foreign for id in ids]
            payloads, causes = list(compress(payloads, own)), list(compress(causes, own))
            ids = list(compress(ids, own))
        count = len(ids)
        messages = zip(ids, payloads, causes, repeat(None), repeat(None))  # `repeat` has no end.
        if entry.plain and not entry.queue:
            missing = entry.has_state and self._misses_often(entry.cells, ids)
            done = 0
            while done < count and self._may_go_on():
                slice = min(count - done, self._slice_max)
                if missing:  # A slice at a time: a look-up takes 7 to 40 us, during which no handler runs.
                    self._overlay.prefetch(entry.cells, ids[done : done + slice])
                self._count(entry, slice)
                self._run_plain_or_stateless(entry, islice(messages, slice))
                done += slice
                fault("turn.half")
                self._run_slices()  # What these sent, while it is in the CPU's cache.
        entry.queue.extend(messages)

    def _foreign(self, ids: Sequence[str]) -> set[str]:
        """The ids among these that other tasks own (PROTOCOL 2). The others are remembered."""
        task, tasks = self._options.task, self._options.tasks
        new = set(ids) - self._own
        foreign = {id for id in new if key_group(id) % tasks != task}
        if len(self._own) + len(new) > OWN_IDS_MAX:
            self._own.clear()
        self._own |= new - foreign
        return foreign

    @staticmethod
    def _misses_often(cells: Cells, ids: Sequence[str]) -> bool:
        """Whether enough of the ids are not cached for one look-up of them all to be cheaper than many."""
        young = cells.young
        sample = ids[:: max(1, len(ids) // MISS_SAMPLE)]
        return sum(id not in young for id in sample) * 8 > len(sample)

    def _wake_due(self, count_max: int) -> None:
        """Deliver what the clock has made due: delayed messages, schedules, retries, expirations."""
        clock_ms = self._meta.clock_ms
        for due in self._delays.pop_due(clock_ms, count_max):
            if isinstance(due, DueMessage):
                self.deliver(due.envelope)
            elif isinstance(due, DueSchedule):
                self._deliver_all(self._schedules.look(due.name, clock_ms))
            else:
                self._expire(due.address)
        for number in self._pending.pop_retries(clock_ms):
            self._ready.append((self._entries[self._pending.get(number).typename], number))

    def _drain(self) -> None:
        """Run waiting messages, function by function, until all queues are empty or the bound is reached."""
        while self._may_go_on():
            before = self._invocations
            for _ in range(min(len(self._ready), self._slice_max)):
                self._run_held(*self._ready.popleft())
            self._run_slices()
            if self._invocations == before and not self._ready:
                return

    def _run_slices(self) -> None:
        """One slice of each function that has messages."""
        for entry in self._entries.values():
            if entry.queue and self._may_go_on():
                self._run_slice(entry, min(len(entry.queue), self._slice_max))
                fault("turn.half")

    def _may_go_on(self) -> bool:
        """Whether the bounds of the batch leave room for another slice. The first one always has some, so that there
        is progress however long admission took."""
        return self._invocations < self._invocations_max and not (self._invocations and self._expired())

    @property
    def _slice_max(self) -> int:
        return min(SLICE_MESSAGES, self._invocations_max - self._invocations)

    def _run_slice(self, entry: Entry, count: int) -> None:
        messages = entry.take(count)
        entry.queue_head += count
        self._count(entry, count)
        if entry.plain:
            self._run_plain_or_stateless(entry, messages)
        else:
            for message in messages:
                self._run_message(entry, message)

    def _count(self, entry: Entry, count: int) -> None:
        self._invocations += count
        self.messages[entry.typename] = self.messages.get(entry.typename, 0) + count

    def _run_plain_or_stateless(self, entry: Entry, messages: Iterable[QueuedRow]) -> None:
        if entry.has_state:
            self._run_plain(entry, messages)
        else:
            self._run_stateless(entry, messages)

    def _run_plain(self, entry: Entry, messages: Iterable[QueuedRow]) -> None:
        """The hot path: a synchronous handler with a typed state or none. One screen, and every name local."""
        held, context, cells, typename = entry.held, entry.context, entry.cells, entry.typename
        young, dirty = cells.young, cells.dirty
        load, apply = self._overlay.load, self.apply
        decode, handler = entry.decode, entry.function.handler
        decode_state, encode_state, new_state = entry.decode_state, entry.encoder(), entry.new_state
        context._clock_ms = self._meta.clock_ms
        for message in messages:
            id, payload, cause, caller, meta = message
            if meta is not None or (held and id in held):
                self._run_message(entry, message)
                continue
            context.id = id
            context._caller = caller
            context._cause = cause
            try:
                value = decode(payload)
                raw = young.get(id)
                if raw is None:
                    raw = load(cells, id)
                context.state = decode_state(raw) if raw else new_state()
                handler(context, value)
                new = encode_state(context.state)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001  # Whatever a handler raises is its failure, SystemExit too.
                context.outputs.clear()
                self._fail(entry, message, error, 1, None)
                continue
            if new != raw and (raw or new != EMPTY_STATE):
                young[id] = dirty[id] = ABSENT if new == EMPTY_STATE else new
            if context.outputs:
                apply(context.outputs, cause, (typename, id))

    def _run_stateless(self, entry: Entry, messages: Iterable[QueuedRow]) -> None:
        """The same for a function without state."""
        held, context, apply, typename = entry.held, entry.context, self.apply, entry.typename
        decode, handler = entry.decode, entry.function.handler
        context._clock_ms = self._meta.clock_ms
        for message in messages:
            id, payload, cause, caller, meta = message
            if meta is not None or (held and id in held):
                self._run_message(entry, message)
                continue
            context.id = id
            context._caller = caller
            context._cause = cause
            try:
                handler(context, decode(payload))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001  # As above.
                context.outputs.clear()
                self._fail(entry, message, error, 1, None)
                continue
            if context.outputs:
                apply(context.outputs, cause, (typename, id))

    # One message, the general way.

    def _run_message(self, entry: Entry, message: QueuedRow) -> None:
        """Run a message that has just been admitted to its address."""
        if message[0] in entry.held:
            if self._awaiting.lets_in(entry, message):
                self.join(entry, message)
            else:
                self._pending.wait(entry.held, entry.typename, message)
            return
        meta = message[4]
        if meta is not None and self._needs_no_run(entry, message, meta):
            return
        self._attempt(entry, message, 1, None)

    def _run_held(self, entry: Entry, number: int) -> None:
        """Run the current message of a held address, again or for the first time, or let its handler go on."""
        self._invocations += 1
        if self._awaiting.go_on(number):
            return
        pending = self._pending.get(number)
        meta = pending.meta
        if (
            meta is not None
            and not self._awaiting.has_begun(entry, pending.id)
            and self._needs_no_run(entry, pending.queued, meta)
        ):
            self.release(entry, pending.id)
            return
        self._attempt(entry, pending.queued, pending.attempt, number)

    def _attempt(self, entry: Entry, message: QueuedRow, attempt: int, number: int | None) -> None:
        """Run one message once. `number` is its pending row, when it has one already."""
        context = self._context_for(entry, message, attempt)
        journal = None
        if number is not None and entry.function.is_async:
            journal = InvocationJournal.load(self._overlay, context.address)
        try:
            value = entry.decode(message[1])
            if journal is None:
                opened = entry.open(context, self._meta.clock_ms)
            else:
                context._clock_ms = journal.clock_ms
                opened = entry.open(context, journal.clock_ms, journal.state, journal.undo)
            result = entry.function.handler(context, value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # As above.
            if journal is not None and number is not None:  # What it began with can't be read: no line of it has run.
                self._awaiting.park(number, entry.typename, journal, str(self._diagnose(entry, message, error)))
            else:
                self._fail(entry, message, error, attempt, number)
            return
        if not entry.function.is_async:
            self.end(_Run(entry, message, context, opened), Outcome(result, None), attempt, number)
            return
        if journal is None:
            journal = self._new_journal(context, opened)
        journal.parked = ""
        invocation = Invocation(entry, message, context, opened, journal, attempt=attempt, watcher=self.outside)
        invocation.begin(result)
        self._awaiting.begin(invocation, number)

    def _context_for(self, entry: Entry, message: QueuedRow, attempt: int) -> Context[Any]:
        context = entry.new_context()
        context.id, _, context._cause, context._caller, context._meta = message
        context._clock_ms, context._attempt = self._meta.clock_ms, attempt
        return context

    def _new_journal(self, context: Context[Any], opened: Opened) -> InvocationJournal:
        return InvocationJournal(self._overlay, context.address, context._cause, self._meta.clock_ms, opened.raw)

    def join(self, entry: Entry, message: QueuedRow) -> None:
        """Run a call that came back to an address which waits for it, between two segments of the handler that waits.
        It is tried once, as who waits for it holds the address."""
        if message[4] is not None and self._needs_no_run(entry, message, message[4]):
            return
        context = self._context_for(entry, message, 1)
        try:
            value = entry.decode(message[1])
            opened = entry.open(context, self._meta.clock_ms)
            handler = entry.function.handler(context, value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # As above.
            self._fail(entry, message, error, 1, None)
            return
        journal = self._new_journal(context, opened)
        call = Invocation(entry, message, context, opened, journal, attempt=1, watcher=self.outside)
        call.joins = True
        call.begin(handler)
        outcome = call.outcome
        if outcome is None:
            outcome = Outcome(None, _waits_inside(context.address))
            if call.excursion is not None:
                call.excursion.close()
            call.close()
        self.end(call, outcome, 1, None)
        call.let_go()

    # A handler that awaits.

    def end(self, run: _Run | Invocation, outcome: Outcome, attempt: int, number: int | None) -> None:
        """The handler has returned or raised: take over what it did, or nothing of it. One that was cancelled and says
        so by CancelledError has done what there was to do."""
        entry, message, context, opened, journal = run.entry, run.message, run.context, run.opened, run.journal
        was_cancelled = journal is not None and journal.cancelled and isinstance(outcome.error, asyncio.CancelledError)
        if outcome.error is not None and not was_cancelled:
            is_last = isinstance(run, Invocation) and run.is_to_end
            self._fail(entry, message, outcome.error, attempt, number, journal, is_last=is_last)
            return
        if isinstance(run, Invocation) and run.replaying:
            run.differ_at_end()
            self._awaiting.park_differing(run)
            return
        meta, address = message[4], Address(entry.typename, context.id)
        is_awaited = meta is not None and _is_awaited(meta)
        try:
            new, expires_ms = entry.close(context, opened, self._meta.clock_ms)
            answer = _encode_answer(context, outcome.value) if is_awaited and not was_cancelled else b""
            if isinstance(run, Invocation) and run.joins:
                self._awaiting.joined(run, new)
        except Exception as error:  # noqa: BLE001  # As above.
            self._fail(entry, message, error, attempt, number, journal)
            return
        if new != opened.raw:
            self._overlay.put_value(entry.cells, context.id, new)
        if opened.collections is not None:
            opened.collections.flush()
        if expires_ms is not None:
            self._delays.expire_at(address, expires_ms)
        if isinstance(run, Invocation):
            self.apply(context.outputs, run.segment_cause, address, run)
            run.journal.delete()
        else:
            self.apply(context.outputs, message[2], address)
        if was_cancelled:
            self.tell_cancelled(Envelope(entry.typename, *message))
        elif meta is not None and is_awaited:
            self._answer(address, message, meta, answer)
        if number is not None:
            self.release(entry, context.id)

    def release(self, entry: Entry, id: str) -> None:
        following = self._pending.done(entry.held, id)
        if following is not None:
            self._ready.append((entry, following))

    # Outputs.

    def apply(
        self, outputs: list[Output], cause: int, sender: tuple[str, str], invocation: Invocation | None = None
    ) -> None:
        """Take over what a handler asked for, and empty the list. The i-th output's cause follows from the invocation's
        and i (PROTOCOL 6)."""
        task, tasks = self._options.task, self._options.tasks
        step = 0
        for output in outputs:
            step += GOLDEN_64
            output_cause = (cause ^ step) * ODD_64 & MASK_64  # `penstock.ids.output_cause`, without the call.
            if type(output) is tuple:
                target, id, payload = output  # type: ignore[misc]  # A bare tuple is a Send; the others are classes.
                if tasks == 1 or (to := key_group(id) % tasks) == task:
                    target.queue.append((id, payload, output_cause, sender, None))
                else:
                    envelope = _new(Envelope, (target.typename, id, payload, output_cause, sender, None))
                    self._out.setdefault(to, []).append(envelope)
            elif type(output) is Emitted:
                name, value, key, topic, headers, partition, timestamp_ms = output
                row = _new(EgressRow, (value, output_cause, key, topic, headers, partition, timestamp_ms))
                self._batch_egress[name].append(row)
            else:
                self._apply_rare(Address(*sender), output, output_cause, invocation)
        outputs.clear()

    def _apply_rare(self, address: Address, output: Output, cause: int, invocation: Invocation | None) -> None:
        match output:
            case Wished(index, wish):
                assert invocation is not None
                self._awaiting.bring_about(invocation, index, wish, cause)
            case Withdrawn(index) if invocation is not None:
                self._delays.cancel(address.id, timer_token(address, invocation.journal.cause, index))
            case CancelCall(index) if invocation is not None:
                self._awaiting.cancel_call(invocation, index, cause)
            case Resolved(target, id, name, value):
                self.deliver(operation_for(target.typename, id, Resolve(name, value), cause, address))
            case Delayed():
                self._delays.schedule(address, output, cause, self._meta.clock_ms)
            case Cancel(token):
                self._delays.cancel(address.id, token)
            case _:
                assert isinstance(
                    output, Replied
                )  # Whoever waits was answered when the invocation ended; nobody waits for this one.

    def deliver(self, envelope: Envelope) -> None:
        """To the queue of its function here, or into the frame of the task that owns its id."""
        task = 0 if self._single else key_group(envelope.id) % self._options.tasks
        if task == self._options.task:
            self._deliver_here(envelope)
        else:
            self._out.setdefault(task, []).append(envelope)

    def _deliver_here(self, envelope: Envelope) -> None:
        entry = self._entries.get(envelope.typename)
        if envelope.meta is not None and envelope.meta.operation:
            self._operate(envelope, envelope.meta)
        elif entry is None:
            self._bury(envelope, self.unknown(envelope.typename), attempts=0)
        elif not envelope.id:
            reason = f"A message for {envelope.typename} has an empty id. An id names one instance: give it some text."
            self._bury(envelope, InvalidInput("PEN0203", reason), attempts=0)
        else:
            entry.queue.append(envelope[1:])

    def unknown(self, typename: str) -> InvalidInput:
        known = ", ".join(sorted(self._entries))
        return InvalidInput("PEN0105", f"{typename} is no function of this application. Known: {known}.")

    def _is_new(self, attempt: int, source: int, sequence: int) -> bool:
        """Dense sequences: a repeat is dropped, a gap is a broken log (PROTOCOL 5)."""
        last_attempt, last = self._meta.marks.get(source, (attempt, 0))
        if attempt > last_attempt:
            last = 0
        if attempt < last_attempt or sequence <= last:
            self._duplicates += 1
            return False
        if sequence != last + 1:
            raise ProtocolError(
                "PEN0503",
                f"Task {self._options.task} received frame {sequence} of task {source} after frame {last}. Frames are "
                "numbered densely, so at least one is lost: this attempt ends, and the last checkpoint is restored.",
            )
        self._meta.marks[source] = (attempt, sequence)
        return True

    # Failures.

    def _fail(
        self,
        entry: Entry,
        message: QueuedRow,
        error: BaseException,
        attempt: int,
        number: int | None,
        journal: InvocationJournal | None = None,
        *,
        is_last: bool = False,
    ) -> None:
        """A message could not be processed: try again later, give it up, or halt, as the function's policy says. One
        that is to end anyway (`is_last`), or that joins whoever waits for it, is not tried again."""
        self.failures[entry.typename] = self.failures.get(entry.typename, 0) + 1
        options = entry.function.options
        if isinstance(error, CorruptSnapshot | Unavailable) and error.code.startswith("PEN04"):
            raise error  # The store's failure, not the handler's: no retry here can mend it.
        error = self._diagnose(entry, message, error)
        joins = number is None and message[0] in entry.held
        if attempt < options.attempts and not (is_last or joins or isinstance(error, InvalidInput)):
            self._retries += 1
            due_ms = self._meta.clock_ms + options.backoff_ms(attempt)
            if journal is not None and journal.segments:
                journal.flush(passive=False)
            if number is None:
                self._pending.hold(entry.held, entry.typename, message, attempt=attempt + 1, due_ms=due_ms)
            else:
                self._pending.retry_at(number, due_ms)
            return
        if options.on_failure == "halt":
            raise _halted(Address(entry.typename, message[0]), error, attempt) from error
        self._bury(Envelope(entry.typename, *message), error, attempts=attempt)
        if journal is not None:
            journal.delete()
        if number is not None:
            self.release(entry, message[0])

    def _diagnose(self, entry: Entry, message: QueuedRow, error: BaseException) -> BaseException:
        """Tell an undecodable message or state apart from a failing handler: trying the former again can't help."""
        if isinstance(error, PenstockError):
            return error
        place = f"{entry.typename} {message[0]!r}"
        try:
            entry.decode(message[1])
        except Exception as cause:  # noqa: BLE001  # Codecs raise what is quickest.
            return entry.codec.explain(cause, message[1], place=f"Message for {place}")
        return entry.explain_state(message[0], place=f"State of {place}") or error

    def _reject(self, bad: Rejected) -> None:
        meta = Meta(headers=dict(bad.headers or {}), origin=bad.origin)
        envelope = Envelope(bad.typename, bad.id, bad.payload, 0, None, meta)
        self._bury(envelope, InvalidInput(bad.code, bad.reason), attempts=0)

    def _bury(self, envelope: Envelope, error: BaseException, *, attempts: int) -> None:
        """Make a dead letter of a message, and tell whoever waits for its answer."""
        entry = self._entries.get(envelope.typename)
        state = entry.raw(envelope.id) if entry is not None and envelope.id else b""
        envelope = self._with_origin(envelope)
        letter = self._letters.write(envelope, error, attempts=attempts, clock_ms=self._meta.clock_ms, state=state)
        self._copy(letter)
        meta = envelope.meta
        if meta is not None and meta.request_id:
            text = f"{letter.code} {letter.reason.rstrip('.')}. It is dead letter {letter.number}."
            self._batch_replies.append(Reply(meta.request_id, b"", text))
        if meta is not None and meta.call is not None:
            text = f"{letter.reason.rstrip('.')}. It is dead letter {letter.number}."
            self._answer_call(envelope, meta.call, Answer(*meta.call, b"", (letter.code, text)))

    def _bury_row(self, egress: str, row: EgressRow, error: BaseException) -> None:
        """Make a dead letter of a row. A copy of a letter that can't be written needs none: its letter is there."""
        if egress != self._options.dead_egress:
            letter = self._letters.write_row(egress, row, error, clock_ms=self._meta.clock_ms)
            if letter is not None:
                self._copy(letter)

    def _copy(self, letter: DeadLetter) -> None:
        if self._options.dead_egress:
            self._batch_egress[self._options.dead_egress].append(copy_of(letter))

    def _with_origin(self, envelope: Envelope) -> Envelope:
        """Say where a message entered. Those of an ingress don't carry it: their cause tells."""
        meta = envelope.meta or Meta()
        if meta.origin or envelope.caller is not None:
            return envelope
        origin = self.origin_of(envelope.cause)
        return envelope._replace(meta=msgspec.structs.replace(meta, origin=origin)) if origin else envelope

    # Requests from outside.

    def _needs_no_run(self, entry: Entry, message: QueuedRow, meta: Meta) -> bool:
        """Whether its answer is known, or wanted by nobody any more, or it asks for nothing but its turn."""
        if meta.operation:
            self._carry_out(Envelope(entry.typename, *message), meta, decode_operation(meta.operation, message[1]))
            return True
        if meta.deadline_ms and meta.deadline_ms <= self._meta.clock_ms:
            self._awaiting.late += 1
            return True
        return self._answered_before(entry, message, meta)

    def _answered_before(self, entry: Entry, message: QueuedRow, meta: Meta) -> bool:
        """A repeat of a request whose result is kept gets that result, and the handler does not run."""
        if not meta.idempotency_key:
            return False
        address = Address(entry.typename, message[0])
        kept = self._overlay.get(_idempotency_key(address, meta))
        if kept is None:
            return False
        if meta.request_id:
            self._batch_replies.append(Reply(meta.request_id, kept))
        return True

    def _answer(self, address: Address, message: QueuedRow, meta: Meta, answer: bytes) -> None:
        """Give the caller what the invocation answered, and keep it for repeats of the request."""
        if meta.call is not None:
            self._answer_call(Envelope(address.typename, *message), meta.call, Answer(*meta.call, answer))
        if meta.request_id:
            self._batch_replies.append(Reply(meta.request_id, answer))
        if meta.idempotency_key:
            key = _idempotency_key(address, meta)
            self._overlay.put(key, answer)
            self._delays.forget_at(key, self._meta.clock_ms + self._options.idempotency_keep_ms)

    def _answer_call(self, envelope: Envelope, call: tuple[int, int], answer: Answer) -> None:
        """To the function that waits for it, here or in another task."""
        assert envelope.caller is not None
        caller = Address(*envelope.caller)
        if self._single or key_group(caller.id) % self._options.tasks == self._options.task:
            self._awaiting.arrived(caller, *call, answer.value, answer.error)
        else:
            address = Address(envelope.typename, envelope.id)
            self.deliver(operation_for(*caller, answer, output_cause(envelope.cause, 0), address))

    def tell_cancelled(self, envelope: Envelope) -> None:
        """A message was cancelled: tell who waits."""
        meta = envelope.meta or Meta()
        address = Address(envelope.typename, envelope.id)
        error = ("PEN0272", f"{address} was cancelled before it answered.")
        if meta.call is not None:
            self._answer_call(envelope, meta.call, Answer(*meta.call, b"", error))
        if meta.request_id:
            self._batch_replies.append(Reply(meta.request_id, b"", " ".join(error)))

    def _operate(self, envelope: Envelope, meta: Meta) -> None:
        """Carry out what a person asked of the task itself. It is part of the batch like any message."""
        operation = decode_operation(meta.operation, envelope.payload)
        entry = self._entries.get(envelope.typename)
        if isinstance(operation, Attach) and entry is not None:
            entry.queue.append(envelope[1:])  # It stands in line: `_needs_no_run` carries it out.
        else:
            self._carry_out(envelope, meta, operation)

    def _carry_out(self, envelope: Envelope, meta: Meta, operation: Operation) -> None:
        try:
            answered = self._perform(Address(envelope.typename, envelope.id), operation)
        except InvalidInput as error:
            if meta.request_id:
                self._batch_replies.append(Reply(meta.request_id, b"", str(error)))
            else:
                self._bury(envelope, error, attempts=1)
        else:
            if meta.request_id:
                self._batch_replies.append(Reply(meta.request_id, msgspec.json.encode(answered)))

    def _perform(self, address: Address, operation: Operation) -> Any:
        match operation:
            case SetState(value, expected):
                return self._set_state(address, value, expected)
            case Look(question):
                return self._look(question)
            case Attach(key):
                return self._look(RequestOf(*address, key))
            case Redrive(numbers):
                return self._redrive(self._existing(numbers))
            case Drop(numbers):
                found = self._existing(numbers)
                for letter in found:
                    self._letters.drop(letter)
                return len(found)
            case Answer(cause, index, value, error):
                self._awaiting.arrived(address, cause, index, value, error)
                return True
            case Resolve(name, value):
                return self._awaiting.resolve(address, name, value)
            case CancelInvocation(call):
                return self._awaiting.cancel(address, call)
            case ResumeInvocation():
                return self._awaiting.resume(address)
            case BuryRows(egress, rows):
                for row, reason in rows:
                    self._bury_row(egress, row, InvalidInput("PEN0215", reason))
                return len(rows)
            case PauseSchedule(paused):
                return self._schedules.pause(address.id, self._meta.clock_ms, paused=paused)
            case RunSchedule():
                self.deliver(self._schedules.run(address.id, self._meta.clock_ms))
                return True
            case BackfillSchedule(start_ms, end_ms, dry):
                count, runs = self._schedules.backfill(address.id, start_ms, end_ms, self._meta.clock_ms, dry=dry)
                self._deliver_all(runs)
                return count

    def _deliver_all(self, envelopes: Iterable[Envelope]) -> None:
        for envelope in envelopes:
            self.deliver(envelope)

    def _look(self, question: Question) -> Any:
        return answer(question, self.view(), bytes_max=self._options.message_bytes_max // 2)

    def _existing(self, numbers: Iterable[int]) -> list[DeadLetter]:
        return [letter for number in numbers if (letter := self._letters.get(number)) is not None]

    def _redrive(self, letters: list[DeadLetter]) -> int:
        """Send letters to where they were going, all or none: a message to its function, a row to its egress."""
        for letter in letters:
            if letter.row is not None and letter.typename not in self._outlets:
                raise InvalidInput(
                    "PEN0216",
                    f"Dead letter {letter.number} is a row of egress {letter.typename}, which is not declared. Nothing "
                    "was redriven: declare that egress first, or drop the letter.",
                )
        for letter in letters:
            if letter.row is None:
                self.deliver(self._letters.redrive(letter))
            else:
                self._batch_egress[letter.typename].append(self._letters.redrive_row(letter))
        return len(letters)

    def _set_state(self, address: Address, value: bytes, expected: bytes | None) -> bool:
        view = self.view()
        encoded = view.encode_state(address, value)
        if expected is not None and not view.holds(address, expected):
            raise InvalidInput(
                "PEN0303",
                f"State of {address} is not what was expected, so it was not set. Read it again, and decide anew.",
            )
        entry = self._entries[address.typename]
        if self._awaiting.is_busy(entry, address.id):
            raise InvalidInput(
                "PEN0303",
                f"State of {address} was not set: a handler that waits holds it, and would overwrite it when it ends. "
                "Try again then.",
            )
        self._overlay.put_value(entry.cells, address.id, encoded)
        return True

    def _expire(self, address: Address) -> None:
        """Look whether fields of an address have expired, and take them out."""
        entry = self._entries.get(address.typename)
        if entry is None:
            return
        if self._awaiting.is_busy(entry, address.id):
            self._delays.expire_at(address, self._meta.clock_ms + EXPIRE_AGAIN_MS)
            return
        new, again_ms = entry.sweep(address.id, self._meta.clock_ms)
        if new != entry.raw(address.id):
            self._overlay.put_value(entry.cells, address.id, new)
        if again_ms is not None:
            self._delays.expire_at(address, again_ms)

    # The end of a turn, and the same without handlers.

    def _finish(
        self, batch: Batch, admitted: Sequence[Input], positions: dict[str, Any], ends: Mapping[str, tuple[int, int]]
    ) -> Effects:
        """Close the batch: merge its rows, number its frames, and say all of it as one value. `admitted` is what was
        new in it; `ends` are head and tail of the queues before it."""
        meta = self._meta
        meta.ingress_positions.update(positions)
        values, rows = self._overlay.take_batch()
        frames = [frame for task, messages in self._out.items() for frame in self._number_frames(task, messages)]
        effects = Effects(
            n=self._n + 1,
            turn=Turn(meta.clock_ms, batch.invocations_max, self._invocations, taken(admitted)),
            values=values,
            rows=rows,
            positions=positions,
            inbox_position=meta.inbox_position,
            marks=dict(meta.marks),
            numbers=self._numbers(),
            queues={
                name: _cut_queue(entry, ends[name][1])
                for name, entry in self._entries.items()
                if entry.queue or entry.queue_head != ends[name][0]
            },
            frames=frames,
            egress=self._batch_egress,
            replies=self._batch_replies,
        )
        self._out, self._batch_egress, self._batch_replies = {}, defaultdict(list), []
        self._record(effects)
        return effects

    def _stage(self, rows: Mapping[str, Sequence[EgressRow]]) -> None:
        """Put the rows of a batch into the next snapshot."""
        for name, emitted in rows.items():
            if name not in self._options.eager:
                self._egress.setdefault(name, []).extend(emitted)
                self.emitted_bytes += sum(map(len, map(_value_of, emitted)))

    def _number_frames(self, destination: int, messages: list[Envelope]) -> Iterator[OutFrame]:
        """One frame as a rule; several where messages are large, as a record of a log has its bounds."""
        sequence = self._meta.sequences.get(destination, 0)
        for part in bounded(messages, FRAME_BYTES, _payload_of):
            sequence += 1
            yield OutFrame(destination, sequence, part)

    def _record(self, effects: Effects) -> None:
        """What running and redoing a batch have in common: the parts of the snapshot that are not rows."""
        self._n = effects.n
        self._total += effects.invocations
        if effects.turn.taken or effects.invocations or effects.values or effects.rows or effects.queues:
            self._changed = True
            self._schedule.append(effects.turn)
        for frame in effects.frames:
            self._meta.sequences[frame.destination] = frame.sequence
        self._stage(effects.egress)
        self._replies.extend(effects.replies)

    def redo(self, effects: Effects) -> None:
        """Apply what another run of the batch did. `effects.n` must follow the last one."""
        assert effects.n == self._n + 1
        self._redone = True
        meta = self._meta
        meta.clock_ms = effects.clock_ms
        meta.ingress_positions.update(effects.positions)
        meta.inbox_position = effects.inbox_position
        meta.marks = dict(effects.marks)
        self._set_numbers(effects.numbers)
        self._overlay.apply(effects.values, effects.rows)
        self._delays.written(effects.rows)
        for name, queue in effects.queues.items():
            _apply_queue(self._entries[name], queue)
        self._record(effects)

    def close(self) -> None:
        """This core is not used any more: drop the handlers that wait. Their journals are where the last cut left
        them."""
        self._awaiting.close()

    # Cuts.

    @property
    def changed(self) -> bool:
        """Whether anything happened since the last cut."""
        return self._changed

    @property
    def has_output(self) -> bool:
        """Whether somebody waits for the next cut: callers, or readers of an egress."""
        return bool(self._egress or self._replies)

    @property
    def has_steps(self) -> bool:
        """Whether steps of handlers wait for the next cut to be complete: it is worth taking early."""
        return self.outside is not None and self.outside.waits_for_cut

    def freeze(self, checkpoint: int) -> Frozen:
        """Take everything since the last cut as one value, by swapping pointers: the pause of a checkpoint."""
        queues = {}
        for name, entry in self._entries.items():
            ends = (entry.queue_head, entry.queue_head + len(entry.queue))
            known = self._frozen_queues.get(name, (0, 0))
            if ends != known:
                queues[name] = _cut_queue(entry, known[1])
                self._frozen_queues[name] = ends
        layer = self._overlay.freeze(checkpoint, queues)
        meta = self._meta
        frozen = Frozen(
            task=self._options.task,
            checkpoint=checkpoint,
            meta=TaskMeta(
                clock_ms=meta.clock_ms,
                inbox_position=meta.inbox_position,
                ingress_positions=dict(meta.ingress_positions),
                marks=dict(meta.marks),
                sequences=dict(meta.sequences),
                queues=dict(self._frozen_queues),
                numbers=self._numbers(),
                committed=dict(meta.committed),
                schedule=self._schedule,
                ready=None if self._redone else [number for _, number in self._ready],
            ),
            values=layer.values,
            rows=layer.rows,
            queues=queues,
            egress=self._egress,
            replies=self._replies,
        )
        self._schedule, self._egress, self._replies = [], {}, []
        self.emitted_bytes = 0
        self._changed = self._commits_untold = False
        return frozen

    def settle(self, checkpoint: int) -> None:
        """COMPLETE(checkpoint) was read: what the cuts up to it contain can't be rolled back any more (PROTOCOL 12)."""
        self._overlay.settle(checkpoint)

    def committed(self, egress: str, checkpoint: int) -> None:
        """The rows of `egress` up to `checkpoint` are committed. The next snapshot says so, which spares a restore the
        look at the sink; the sink's own marker is what decides."""
        self._meta.committed[egress] = max(checkpoint, self._meta.committed.get(egress, 0))
        self._commits_untold = True

    def tell_commits(self) -> None:
        """Let the next snapshot be worth taking for what was committed alone: it is to be the last for a while."""
        self._changed = self._changed or self._commits_untold

    def restore(
        self,
        meta: TaskMeta,
        queues: Mapping[str, tuple[int, int, list[QueuedRow]]],
        staged: Mapping[str, Sequence[Staged]],
        *,
        attempt_starts: bool = True,
    ) -> None:
        """Continue where a snapshot was taken. The overlay holds its rows already; `queues` are head, tail and
        messages; `staged` are rows by egress that are decided, and of which it is not known that they are written."""
        self._meta = meta
        self._meta.schedule = []
        if attempt_starts:
            self._meta.sequences = {}
        self._set_numbers(meta.numbers)
        for name, (head, tail, rows) in queues.items():
            entry = self._entries.get(name)
            if entry is None:
                for row in rows:
                    self._deliver_here(Envelope(name, *row))
                continue
            entry.queue.extend(rows)
            entry.queue_head = head
            self._frozen_queues[name] = (head, tail)
        order = {number: place for place, number in enumerate(meta.ready or ())}
        for number, message in self._pending.restore():
            known = self._entries.get(message.typename)
            if known is None or not message.id or (message.meta is not None and message.meta.operation):
                self._pending.discard(number)
                self._deliver_here(Envelope(message.typename, *message.queued))
            elif self._pending.readmit(known.held, number, message, ready=number in order) and (
                number in order or self._awaiting.readmit(known, number, message)
            ):
                self._ready.append((known, number))
        # As they would have run; then those that were suspended, which begin anew.
        found = sorted(self._ready, key=lambda each: order.get(each[1], len(order)))
        self._ready.clear()
        self._ready.extend(found)
        for egress, batches in staged.items():
            if egress not in self._outlets:
                self._bury_undeclared(egress, batches)
        self._stage(self._batch_egress)  # Copies of letters: no batch need ever come.
        self._batch_egress = defaultdict(list)
        self._schedules.compare(meta.clock_ms)
        # A migration, or what was for functions, egresses and schedules that are gone: the next checkpoint makes it
        # last.
        self._changed = any(self._overlay.take_batch())

    def _bury_undeclared(self, egress: str, batches: Sequence[Staged]) -> None:
        """Nobody will write these rows: keep them where people find them."""
        known = ", ".join(sorted({outlet.name for outlet in self._outlets.values()})) or "none"
        error = InvalidInput(
            "PEN0216",
            f"Egress {egress} is not declared any more, so this row can't be written; whether it was before the last "
            f"stop is not known. Declared: {known}. Declare {egress} again and redrive, or drop the row.",
        )
        for batch in batches:
            for row in batch.rows:
                self._bury_row(egress, row, error)
            self.committed(egress, batch.checkpoint)

    def _numbers(self) -> dict[str, int]:
        return {
            "pending": self._pending.next_number,
            "timer": self._delays.next_number,
            "dead": self._letters.next_number,
        }

    def _set_numbers(self, numbers: Mapping[str, int]) -> None:
        self._pending.next_number = numbers.get("pending", 0)
        self._delays.next_number = numbers.get("timer", 0)
        self._letters.next_number = numbers.get("dead", 1)

    # What the driver and people ask.

    @property
    def queued(self) -> int:
        """Messages that could run at once."""
        return sum(len(entry.queue) for entry in self._entries.values()) + len(self._ready)

    @property
    def invocations(self) -> int:
        """Handlers that ran in the present turn, or in the last one."""
        return self._invocations

    @property
    def suspended(self) -> int:
        """Handlers that wait for something."""
        return len(self._awaiting)

    @property
    def clock_ms(self) -> int:
        return self._meta.clock_ms

    @property
    def meta(self) -> TaskMeta:
        return self._meta

    @property
    def entries(self) -> Mapping[str, Entry]:
        return self._entries

    @property
    def letters(self) -> DeadLetters:
        return self._letters

    @property
    def parked(self) -> int:
        """Handlers that can't go on with the code there is."""
        return self._awaiting.parked

    @property
    def late_answers(self) -> int:
        """Results that nobody waited for any more."""
        return self._awaiting.late

    def view(self) -> View:
        """What people may see of this task."""
        return View([TaskView(self._overlay, self._entries, self._letters, self._held)], self._meta.clock_ms)

    def _held(self) -> Mapping[str, Held]:
        return {name: entry.held for name, entry in self._entries.items()}

    def next_due_ms(self) -> int | None:
        """When the clock alone gives this task something to do; None when it never does."""
        due = [at for at in (self._delays.next_due_ms(), self._pending.next_retry_ms()) if at is not None]
        return min(due, default=None)

    @property
    def holds_delayed_messages(self) -> bool:
        """Whether a message that was sent with a delay is still to be delivered. What only tidies up does not count:
        state that expires, results of requests that are forgotten.
        """
        return self._delays.holds_messages

    def next_retry_ms(self) -> int | None:
        """When the next failed message is tried again; None when none waits for that."""
        return self._pending.next_retry_ms()

    def next_wake_ms(self) -> int | None:
        """When the first sleep or deadline of a handler that awaits is over. Reads rows: not for every turn."""
        return self._delays.next_own_ms()

    def statistics(self) -> TaskStatistics:
        return TaskStatistics(
            invocations=self._total,
            failures=sum(self.failures.values()),
            retries=self._retries,
            dead_letters=self._letters.written,
            duplicate_frames=self._duplicates,
            timers_fired=self._delays.fired,
            queued=self.queued,
            pending=self._pending.count,
        )


def _bound_entries(
    functions: Iterable[Function[Any, Any]], outlets: Mapping[str, Outlet], overlay: Overlay, options: TaskOptions
) -> dict[str, Entry]:
    """The functions of the application by name, each of which reaches all."""
    entries = {
        f.typename: Entry(f, overlay, bytes_max=options.message_bytes_max, check_state=options.check_state)
        for f in functions
    }
    targets: dict[Any, Any] = dict(entries)
    targets.update((entry.function, entry) for entry in entries.values())
    for entry in entries.values():
        entry.bind(targets, outlets)
    return entries


def _cut_queue(entry: Entry, known: int) -> QueueCut:
    """The queue of a function, with the messages numbered `known` and later."""
    head = entry.queue_head
    first = max(head, known)
    rows = list(islice(entry.queue, first - head, None))
    return QueueCut(head, head + len(entry.queue), first, rows)


def _apply_queue(entry: Entry, cut: QueueCut) -> None:
    entry.queue.extend(cut.rows)
    while len(entry.queue) > cut.tail - cut.head:
        entry.queue.popleft()
    entry.queue_head = cut.head


def _is_awaited(meta: Meta) -> bool:
    """Whether the answer is of use: somebody waits for it, or it is kept for repeats of the request."""
    return bool(meta.request_id or meta.idempotency_key or meta.call is not None)


def _encode_answer(context: Context[Any], returned: Any) -> bytes:
    """What the caller gets: the value of `ctx.reply`, else what the handler returned. Encoded while it can still
    fail."""
    for output in context.outputs:
        if type(output) is Replied:
            return encode_answer(context.address, output.value)
    return encode_answer(context.address, returned)


def _waits_inside(address: Address) -> InvalidInput:
    return InvalidInput(
        "PEN0275",
        f"{address} was called by somebody it waits for, and waits itself: nobody could say any more what its state is "
        "between the two. Let the part of a reentrant function that is called back end without an await.",
    )


def _idempotency_key(address: Address, meta: Meta) -> bytes:
    return keys.encode_idempotency_key(key_group(address.id), *address, meta.idempotency_key)


def _halted(address: Address, error: BaseException, attempts: int) -> FunctionError:
    code, reason = describe(error)
    return FunctionError(
        "PEN0211",
        f"{address} failed after {attempts} attempts, and on_failure is 'halt', so the application stops. "
        f"{code} {reason.rstrip('.')}. Correct the handler and start again: the message is processed once more.",
        address=str(address),
    )
