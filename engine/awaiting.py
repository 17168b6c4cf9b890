"""Handlers of one task that await: driven on, committed segment by segment, put aside, and given what arrives.

    begin -> advance: rest -> commit the segment -> deliver the next result -> ... -> end
                        |
                     waits; after a second only its journal is kept -> arrived -> run again from its start

What always holds: a segment's outputs and state, what it asked for, and the number of the segment are taken over in one
turn; at the end of each turn every journal that has changed is written; at most one invocation of an address runs. A
result that nobody waits for (any more) changes nothing.

Knows messages and journals. How a message is run first, fails or ends is for the core.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from penstock.engine.delays import Delays
from penstock.engine.entry import Entry
from penstock.engine.invocation import TIMED_OUT, Invocation, Outcome, Signal, Watcher
from penstock.engine.invocation_journal import InvocationJournal
from penstock.engine.operations import Answer, CancelInvocation, Operation, encode_operation
from penstock.engine.pending import Pending, PendingMessage
from penstock.errors import InvalidInput
from penstock.functions.context import Output, Replied, unnamed
from penstock.functions.durable import CALL, PROMISE, STEP, Called, Stepped, Wish
from penstock.ids import Address, key_group
from penstock.records import Envelope, Meta, QueuedRow
from penstock.state import keys
from penstock.state.overlay import Overlay

ASLEEP_MS = 1_000
"""How long a handler that waits is kept in memory."""
CANCEL_AGAIN_MS = 10
"""How long a cancellation waits for its call to leave the queue."""

log = logging.getLogger("penstock")


class Outside(Watcher, Protocol):
    """What goes on between the turns of a task, besides handlers that await the event loop."""

    def perform(self, typename: str, id: str, cause: int, index: int, step: Stepped) -> None:
        """Carry out a step once the next cut is settled, when no failure takes back any more that it was asked for.
        Tell what came of it by `Performed`."""
        ...

    @property
    def waits_for_cut(self) -> bool:
        """Whether a step was asked for since the last cut."""
        ...

    def cut(self, checkpoint: int) -> None:
        """What was asked for until now is in this checkpoint."""
        ...

    def settle(self, checkpoint: int) -> None:
        """It is complete."""
        ...


class Limits(NamedTuple):
    """Of the invocations of a task."""

    lines_max: int
    """What one invocation may ask for: all of it is read and done again when the handler is run again."""
    always_replay: bool
    """Whether a handler is put aside wherever it waits."""


class Core(Protocol):
    """The task, as far as this needs it."""

    failures: dict[str, int]
    outside: Outside | None

    @property
    def clock_ms(self) -> int: ...
    @property
    def entries(self) -> Mapping[str, Entry]: ...
    @property
    def start(self) -> Callable[[int, Coroutine[Any, Any, Any]], Outcome | None]: ...
    def deliver(self, envelope: Envelope) -> None: ...
    def apply(
        self, outputs: list[Output], cause: int, sender: tuple[str, str], invocation: Invocation | None = None
    ) -> None: ...
    def end(self, run: Invocation, outcome: Outcome, attempt: int, number: int | None) -> None: ...
    def release(self, entry: Entry, id: str) -> None: ...
    def join(self, entry: Entry, message: QueuedRow) -> None: ...
    def tell_cancelled(self, envelope: Envelope) -> None: ...
    def unknown(self, typename: str) -> InvalidInput: ...


class Awaiting:
    """See the module. `ready` is where messages stand whose handlers can go on."""

    def __init__(
        self,
        core: Core,
        overlay: Overlay,
        pending: Pending,
        delays: Delays,
        ready: deque[tuple[Entry, int]],
        limits: Limits,
    ) -> None:
        self._core = core
        self._overlay = overlay
        self._pending = pending
        self._delays = delays
        self._ready = ready
        self._limits = limits
        self._running: dict[int, Invocation] = {}
        """By the number of the message."""
        self._aside: set[int] = set()
        """Numbers of the messages whose handlers wait for a result, and are known by their journals alone."""
        self._asleep: deque[tuple[int, Invocation, int]] = deque()
        """Handlers that wait, by when they began to, with their count of changes."""
        self._woken: set[int] = set()
        """Numbers that stand in `ready` because something has arrived for a handler that is in memory."""
        self._touched: dict[Invocation, None] = {}
        """Those whose journals have changed in this turn, in order."""
        self._parked: set[int] = set()
        """Numbers of the messages whose handlers can't go on with the code there is."""
        self.late = 0
        """Results that nobody waited for any more."""

    def __len__(self) -> int:
        return len(self._running) + len(self._aside)

    @property
    def parked(self) -> int:
        return len(self._parked)

    def begin(self, invocation: Invocation, number: int | None) -> None:
        """Run a handler that has been begun. `number` is that of its message, when it has one already."""
        if number is not None:
            invocation.number = number
            self._running[number] = invocation
            self._aside.discard(number)
        self.advance(invocation)

    def go_on(self, number: int) -> bool:
        """Let the handler of a message go on with what has arrived. False when the message is to be run from its
        start."""
        invocation = self._running.get(number)
        woken = number in self._woken
        self._woken.discard(number)
        if invocation is not None:
            self.advance(invocation)
        return invocation is not None or woken  # One that was woken, and is not there any more, has gone on without.

    def readmit(self, entry: Entry, number: int, message: PendingMessage) -> bool:
        """Take a restored message into account. Whether it is to be run before anything arrives."""
        address = (message.typename, message.id)
        waits = entry.function.is_async and InvocationJournal.waits_for_messages(self._overlay, address)
        if waits:
            self._aside.add(number)
        return not waits

    def close(self) -> None:
        """The task is not used any more: drop the handlers. Their journals are where the last cut left them."""
        for invocation in self._running.values():
            invocation.close()
        self._running.clear()

    # Going on.

    def advance(self, invocation: Invocation) -> None:
        """Let it go on as far as it can: to its end, or to where it waits."""
        while invocation.outcome is None and invocation.mismatch is None:
            if not invocation.at_rest:
                self._hold(invocation)
                if invocation.excursion is None:
                    invocation.watch()
                    return
                if invocation.excursion.started:
                    invocation.watch_if_composing()
                    return
                invocation.excursion.started = True
                if not invocation.entry.function.told_of_raw_await:
                    invocation.watch()
                outcome = self._core.start(invocation.number, invocation.excursion)
                if outcome is None:
                    return
                self._returned(invocation, outcome)
                continue
            if invocation.moved:
                try:
                    self._commit(invocation)
                except Exception as error:  # noqa: BLE001  # A state that can't be written, say.
                    invocation.outcome = Outcome(None, error)
                    break
            if not invocation.deliver():
                self._hold(invocation)
                if invocation.entry.reentrant:
                    self._let_in(invocation)
                if self._limits.always_replay and invocation.can_be_put_aside:
                    self._lay_aside(invocation)
                else:
                    self._asleep.append((self._core.clock_ms, invocation, invocation.changes))
                return
        self._running.pop(invocation.number, None)
        self._touched.pop(invocation, None)
        number = invocation.number if invocation.number >= 0 else None
        if invocation.mismatch is not None:
            self.park_differing(invocation)
        else:
            assert invocation.outcome is not None
            self._core.end(invocation, invocation.outcome, invocation.attempt, number)
            invocation.let_go()

    # Calls that come back.

    def lets_in(self, entry: Entry, message: QueuedRow) -> bool:
        """Whether a message for an address that is held is a call which its handler waits for, and may run now. It
        may not while there is something that the handler has not been given: that comes first."""
        if not entry.reentrant:
            return False
        number = entry.held[message[0]].current
        address = Address(entry.typename, message[0])
        invocation = self._running.get(number)
        if invocation is not None:
            if invocation.replaying or invocation.has_news or not invocation.at_rest or invocation.moved:
                return False
            return _comes_back(invocation.journal, address, message)
        journal = InvocationJournal.load(self._overlay, address) if number in self._aside else None
        return journal is not None and _comes_back(journal, address, message)

    def _let_in(self, invocation: Invocation) -> None:
        """Run the calls which came back while the handler that waits for them was not at rest."""
        held, id = invocation.entry.held, invocation.address.id
        for number in list(held[id].waiting):
            message = self._pending.get(number).queued
            if _comes_back(invocation.journal, invocation.address, message):
                self._pending.take_out(held, id, number)
                self._core.join(invocation.entry, message)

    def joined(self, call: Invocation, state: bytes) -> None:
        """A call that came back is about to leave this state, and its rows. The handler that waits goes on with
        them."""
        rows = call.opened.collections.changed if call.opened.collections is not None else {}
        if state == call.opened.raw and not rows:
            return
        found = self.invocation_of(call.address)
        assert found is not None, "a call that came back joins a handler that waits"
        number, journal = found
        if journal.joins >= self._limits.lines_max:
            raise _journal_too_long(call.address, self._limits.lines_max)
        journal.join(state, rows, self._core.clock_ms)
        invocation = self._running.get(number)
        if invocation is None:
            journal.flush(passive=True)
        else:
            invocation.joined()
            self._touched[invocation] = None

    def _hold(self, invocation: Invocation) -> None:
        """It will not end within this step: its address is held, and its journal kept."""
        if invocation.number < 0:
            entry = invocation.entry
            number = self._pending.hold(entry.held, entry.typename, invocation.message, attempt=invocation.attempt)
            invocation.number = number
            self._running[number] = invocation
        self._touched[invocation] = None

    def _commit(self, invocation: Invocation) -> None:
        """Take over the segment that has ended, unless that was done before."""
        entry, context, journal = invocation.entry, invocation.context, invocation.journal
        clock_ms = self._core.clock_ms
        answers = [output for output in context.outputs if type(output) is Replied]
        if invocation.replaying:
            context.outputs[:] = answers
            if invocation.passed():
                self._catch_up(invocation)
            elif entry.expirations or entry.storage:  # What has expired by then is gone, as in the first run.
                new, _ = entry.close(context, invocation.opened, context._clock_ms)
                invocation.opened = entry.reopen(context, invocation.opened, new)
            return
        if len(journal.lines) + len(invocation.fresh) > self._limits.lines_max:
            raise _journal_too_long(invocation.address, self._limits.lines_max)
        opened = invocation.opened
        new, expires_ms = entry.close(context, opened, context._clock_ms)
        if new != opened.raw:
            self._overlay.put_value(entry.cells, context.id, new)
        if opened.collections is not None:
            journal.before(opened.collections.changed)
            opened.collections.flush()
        if expires_ms is not None:
            self._delays.expire_at(invocation.address, expires_ms)
        invocation.opened = entry.reopen(context, opened, new)
        for wish in invocation.fresh:
            journal.add(wish, clock_ms)
        base = invocation.segment_cause
        invocation.committed()
        self._core.apply(context.outputs, base, invocation.address, invocation)
        context.outputs += answers  # It is given when the handler ends.

    def _catch_up(self, invocation: Invocation) -> None:
        """It has done again what it did. What it left must be what is stored, and steps that were under way are begun
        again."""
        entry, context, opened = invocation.entry, invocation.context, invocation.opened
        if opened.collections is not None:
            opened.collections.caught_up()
        new, _ = entry.close(context, opened, context._clock_ms)
        stored = entry.raw(context.id)
        if new != stored and not entry.reads_only:
            invocation.differ_in_state()
            return
        invocation.opened = entry.reopen(context, opened, stored)
        for index, wish in invocation.wishes.items():
            if wish.kind == STEP and not invocation.journal.lines[index].arrived:
                self._perform_step(invocation, index, wish)

    def _perform_step(self, invocation: Invocation, index: int, wish: Wish) -> None:
        assert self._core.outside is not None, "whoever runs handlers with steps carries them out"
        self._core.outside.perform(*invocation.address, invocation.journal.cause, index, wish.wants)

    def park(self, number: int, typename: str, journal: InvocationJournal, reason: str) -> None:
        """The invocation of a message can't go on with this code: its address is held until somebody corrects the code,
        or cancels it."""
        self._core.failures[typename] = self._core.failures.get(typename, 0) + 1
        self._parked.add(number)
        journal.parked = reason
        journal.flush(passive=False)
        log.error("%s", reason)

    def park_differing(self, invocation: Invocation) -> None:
        """It has not done again what it did before."""
        assert invocation.mismatch is not None
        invocation.close()
        self.park(invocation.number, invocation.entry.typename, invocation.journal, str(invocation.mismatch))

    def complete(self, number: int, outcome: Outcome) -> None:
        invocation = self._running.get(number)
        if invocation is not None:
            self._returned(invocation, outcome)
            self.advance(invocation)

    def _returned(self, invocation: Invocation, outcome: Outcome) -> None:
        """The handler is back from the event loop, or at rest in it."""
        if isinstance(outcome.value, Signal):
            invocation.back(outcome.value)
            if invocation.waits_outside:
                _warn_of_raw_await(invocation)
        else:
            invocation.outcome = outcome

    # Being put aside.

    def has_begun(self, entry: Entry, id: str) -> bool:
        return entry.function.is_async and InvocationJournal.exists(self._overlay, (entry.typename, id))

    def end_turn(self) -> None:
        """Forget handlers that have waited for a while: their journals are enough. Write the journals that changed."""
        until_ms = self._core.clock_ms - ASLEEP_MS
        while self._asleep and self._asleep[0][0] <= until_ms:
            _, invocation, changes = self._asleep.popleft()
            is_there = self._running.get(invocation.number) is invocation
            if is_there and invocation.changes == changes and invocation.can_be_put_aside:
                self._lay_aside(invocation)
        for invocation in self._touched:
            invocation.journal.flush(passive=invocation.waits_for_messages)
        self._touched.clear()

    def _lay_aside(self, invocation: Invocation) -> None:
        del self._running[invocation.number]
        self._touched.pop(invocation, None)
        invocation.journal.flush(passive=True)
        invocation.close()
        self._aside.add(invocation.number)

    def is_busy(self, entry: Entry, id: str) -> bool:
        """Whether a handler has the state of an address in its hands."""
        hold = entry.held.get(id)
        return hold is not None and (hold.current in self._running or self.has_begun(entry, id))

    # What is asked for.

    def bring_about(self, invocation: Invocation, index: int, wish: Wish, cause: int) -> None:
        """See that what a handler waits for comes."""
        address, journal = invocation.address, invocation.journal
        due_ms = 0
        if invocation.outcome is not None:  # Nobody awaits it any more: a call is a message then, and all else nothing.
            if wish.kind == CALL:
                called = wish.wants
                self._core.deliver(Envelope(called.target.typename, called.id, called.payload, cause, address, None))
            return
        if wish.kind == CALL:
            due_ms = self._call(invocation, index, wish.wants, cause)
        elif wish.kind == STEP:
            self._perform_step(invocation, index, wish)
        elif wish.kind == PROMISE:
            key = keys.encode_promise_key(key_group(address.id), *address, wish.name)
            kept = self._overlay.get(key)
            if kept is not None:
                self._overlay.put(key, None)
                journal.arrive(index, kept, None, self._core.clock_ms)
        else:
            due_ms = self._core.clock_ms + wish.wants
        if due_ms:
            journal.lines[index].timed = True
            error = (TIMED_OUT, f"{wish.name} did not answer in time.") if wish.kind == CALL else None
            timer = operation_for(*address, Answer(journal.cause, index, b"", error), cause, address)
            self._delays.schedule_own(timer, timer_token(address, journal.cause, index), due_ms)

    def _call(self, invocation: Invocation, index: int, called: Called, cause: int) -> int:
        """Send a call. Returns when its answer is not wanted any more; 0 for never."""
        address, asked = invocation.address, invocation.message[4]
        inherited, chain = (0, ()) if asked is None else (asked.deadline_ms, asked.chain)
        if called.detached:
            inherited = 0
        chain = (*chain, address)
        due_ms = 0 if called.timeout_ms is None else self._core.clock_ms + called.timeout_ms
        due_ms = min(filter(None, (due_ms, inherited)), default=0)
        to = (called.target.typename, called.id)
        if to in chain and not called.target.reentrant:
            cycle = " -> ".join("/".join(each) for each in (*chain[chain.index(to) :], to))
            text = (
                f"{address} calls {'/'.join(to)}, which waits for this very call: {cycle}. None of them could "
                "ever go on. Send a message instead of calling, call the other way round, or declare "
                f"{called.target.typename} with reentrant=True."
            )
            invocation.journal.arrive(index, b"", ("PEN0273", text), self._core.clock_ms)
            return 0
        meta = Meta(call=(invocation.journal.cause, index), chain=chain, deadline_ms=due_ms)
        self._core.deliver(Envelope(*to, called.payload, cause, address, meta))
        return due_ms

    def cancel_call(self, invocation: Invocation, index: int, cause: int) -> None:
        line = invocation.journal.lines[index]
        wish = invocation.wishes.get(index)
        if wish is not None and line.kind == CALL and not line.arrived:
            address = invocation.address
            wanted = CancelInvocation((*address, invocation.journal.cause, index))
            self._core.deliver(operation_for(wish.wants.target.typename, wish.wants.id, wanted, cause, address))

    # What arrives.

    def arrived(self, address: Address, cause: int, index: int, value: bytes, error: tuple[str, str] | None) -> None:
        """Something that an invocation waits for has come, or nobody waits for it any more."""
        found = self.invocation_of(address)
        if found is None or found[1].cause != cause:
            self.late += 1
            return
        number, journal = found
        if not journal.arrive(index, value, error, self._core.clock_ms):
            self.late += 1
            return
        if journal.lines[index].timed:
            self._delays.cancel(address.id, timer_token(address, cause, index))
        self._wake(address, number, journal)

    def invocation_of(self, address: Address) -> tuple[int, InvocationJournal] | None:
        """The invocation that an address is busy with: the number of its message, and its journal."""
        entry = self._core.entries.get(address.typename)
        hold = entry.held.get(address.id) if entry is not None else None
        if hold is None:
            return None
        invocation = self._running.get(hold.current)
        journal = invocation.journal if invocation is not None else InvocationJournal.load(self._overlay, address)
        return None if journal is None else (hold.current, journal)

    def _wake(self, address: Address, number: int, journal: InvocationJournal) -> None:
        """Something has arrived in a journal."""
        entry = self._core.entries[address.typename]
        invocation = self._running.get(number)
        if invocation is not None:
            self._touched[invocation] = None
            if number not in self._woken:
                self._woken.add(number)
                self._ready.append((entry, number))
            return
        journal.flush(passive=False)
        if number in self._aside or (journal.cancelled and self._pending.hasten(number)):
            self._aside.discard(number)
            self._ready.append((entry, number))

    def resolve(self, address: Address, name: str, value: bytes) -> bool:
        """Keep a promise: for who waits for it, or for who will."""
        if address.typename not in self._core.entries:
            raise self._core.unknown(address.typename)
        if not name:
            raise unnamed(f"A promise of {address}")
        found = self.invocation_of(address)
        lines = found[1].lines if found is not None else []
        named = [index for index, line in enumerate(lines) if (line.kind, line.name) == (PROMISE, name)]
        key = keys.encode_promise_key(key_group(address.id), *address, name)
        waiting = [index for index in named if not lines[index].arrived]
        if self._overlay.get(key) is not None or (named and not waiting):
            raise InvalidInput(
                "PEN0268",
                f"Promise {name!r} of {address} is resolved already, and is kept once: the first value stands.",
            )
        if found is None or not waiting:
            self._overlay.put(key, value)
            return True
        number, journal = found
        for index in waiting:
            journal.arrive(index, value, None, self._core.clock_ms)
        self._wake(address, number, journal)
        return True

    def cancel(self, address: Address, call: tuple[str, str, int, int] | None) -> bool:
        """End what the address is busy with, or take a call out of the line. False when there is no such call."""
        entry = self._core.entries.get(address.typename)
        if entry is None:
            raise self._core.unknown(address.typename)
        found = self.invocation_of(address)
        if found is not None and (call is None or is_call(self._pending.get(found[0]).queued, call)):
            number, journal = found
            if journal.cancel(self._core.clock_ms):
                self._wake_to_end(address, number, journal)
            return True
        if call is None:
            raise _nothing_to_cancel(address)
        return self._withdraw(entry, address.id, call)

    def _wake_to_end(self, address: Address, number: int, journal: InvocationJournal) -> None:
        if journal.parked and number not in self._running:
            self._core.tell_cancelled(self._pending.get(number).envelope)
            self._parked.discard(number)
            journal.delete()
            self._core.release(self._core.entries[address.typename], address.id)
        else:
            self._wake(address, number, journal)

    def _withdraw(self, entry: Entry, id: str, call: tuple[str, str, int, int]) -> bool:
        """Have a call that waits in line, or to be tried again, not run when its turn comes, and tell the caller."""
        hold = entry.held.get(id)
        for number in (hold.current, *hold.waiting) if hold is not None else ():
            message = self._pending.get(number)
            if is_call(message.queued, call):
                assert message.meta is not None
                self._pending.rewrite(number, msgspec.structs.replace(message.meta, deadline_ms=1))
                self._core.tell_cancelled(message.envelope)
                return True
        if not any(row[0] == id and is_call(row, call) for row in entry.queue):
            return False
        # It is about to be taken out of the queue: ask again then.
        again = operation_for(entry.typename, id, CancelInvocation(call), call[2], Address(*call[:2]))
        self._delays.schedule_own(again, f"\0cancel {call[2]:x} {call[3]}", self._core.clock_ms + CANCEL_AGAIN_MS)
        return True

    def resume(self, address: Address) -> bool:
        """Run a parked invocation again."""
        found = self.invocation_of(address)
        if found is None or not found[1].parked or found[0] in self._running:
            raise InvalidInput(
                "PEN0269",
                f"Nothing of {address} is parked. What waits, and why, is told by penstock calls list.",
            )
        number, journal = found
        self._parked.discard(number)
        journal.parked = ""
        journal.flush(passive=False)
        self._ready.append((self._core.entries[address.typename], number))
        return True


def _comes_back(journal: InvocationJournal, address: Address, message: QueuedRow) -> bool:
    """Whether a handler waits, directly or through others, for the answer to `message`. Whoever called it next on the
    way waits in that case for something that comes only when this message is done."""
    meta = message[4]
    if meta is None or meta.call is None or address not in meta.chain:
        return False
    following = (*meta.chain, address)[meta.chain.index(address) + 1]
    return journal.waits_for_call(following)


def is_call(row: QueuedRow, call: tuple[str, str, int, int]) -> bool:
    """Whether a message is the call that is meant."""
    caller, meta = row[3], row[4]
    return meta is not None and meta.call is not None and caller is not None and (*caller, *meta.call) == tuple(call)


def _warn_of_raw_await(invocation: Invocation) -> None:
    """Say once what it means to await something that is in no journal."""
    function = invocation.entry.function
    if not function.told_of_raw_await:
        function.told_of_raw_await = True
        log.warning(
            "PEN0276 %s (%s) awaits something that is not journaled: it holds its address meanwhile, and awaits it "
            "again when it is run again after a restart. If that must not be, or has an effect, make it a step: await "
            "ctx.run(...). This is said once for each function.",
            invocation.address,
            function.location,
        )


def timer_token(address: Address, cause: int, index: int) -> str:
    """Names the timer of a wish, as no user names one of theirs."""
    return f"\0{address.typename} {cause:x} {index}"


def operation_for(typename: str, id: str, operation: Operation, cause: int, sender: Address) -> Envelope:
    name, payload = encode_operation(operation)
    return Envelope(typename, id, payload, cause, sender, Meta(operation=name))


def _nothing_to_cancel(address: Address) -> InvalidInput:
    return InvalidInput(
        "PEN0270",
        f"{address} is not busy with anything that can be cancelled: only an async handler that awaits can. What "
        "waits is told by penstock calls list.",
    )


def _journal_too_long(address: Address, lines_max: int) -> InvalidInput:
    return InvalidInput(
        "PEN0266",
        f"{address} has asked for more than {lines_max:,} things in one invocation, all of which are kept and done "
        "again when its handler is run again. Split the work: let the handler send itself a message to go on.",
    )
