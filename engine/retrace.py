"""Runs an application again from a checkpoint, aside from production, and says what comes out differently.

    checkpoint ─> core of each task ─ the turns it took then, with the inputs it got then ─> rows, replies, messages,
                                                                                             states: compared

    All tasks go along together, checkpoint by checkpoint: what one of them sent is what another got.

What always holds: nothing is written, sent or asked outside the scratch stores; each task gets what it got then, so a
message that is sent differently is reported, and does not reach its receiver (PROTOCOL 26); code that did not change
gives no difference. Outputs are matched by their cause, which is that of the input and the number of the output. What a
handler awaited is not recorded: where one waited for something outside, what became of it is not known, and it is said
how often that was so. Rows of eager egresses are in no checkpoint, and not compared.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from heapq import merge
from itertools import compress, repeat
from typing import Any, Literal, NamedTuple

from penstock.checkpoint.control import Manifest
from penstock.engine.build import build_core
from penstock.engine.config import Config
from penstock.engine.differences import Change, compare
from penstock.engine.effects import Batch, Completed, Input
from penstock.engine.entry import Entry
from penstock.engine.invocation import Outcome, Signal
from penstock.engine.letters import gist
from penstock.engine.offline import Recorded, restored_checkpoint
from penstock.engine.recording import Inbox, Ingresses, Interval, Recording
from penstock.engine.regroup import fold_all
from penstock.engine.restore import Restored
from penstock.engine.task import TaskCore
from penstock.engine.views import View, task_view
from penstock.functions.app import App
from penstock.functions.durable import Stepped
from penstock.functions.outlets import outlets_of
from penstock.ids import GOLDEN_64, MASK_64, ODD_64, Address
from penstock.records import COMPLETED, EgressRow, Envelope, QueuedRow, Reply, Turn
from penstock.router.kafka_options import KafkaOptions
from penstock.state.showing import builtins_of

FOLD_ROWS = 100_000
"""Settled rows kept in memory before they go into the scratch store."""

OUTPUTS_SEARCHED = 64
"""Of an invocation, when it is sought which one an output came of."""

Kind = Literal["row", "reply", "message"]


class Output(NamedTuple):
    """Something that left a task: a row of an egress, a reply to a request, a message to a function of another task."""

    kind: Kind
    to: str
    """The egress, the request, or the address."""
    cause: int
    """Names it, together with the kind: the same input gives outputs of the same causes."""
    value: tuple[Any, ...]
    """All that a receiver sees of it."""


class Changed(NamedTuple):
    """An output that is not what it was; None where there is none."""

    checkpoint: int
    task: int
    recorded: Output | None
    replayed: Output | None

    @property
    def output(self) -> Output:
        """The recorded one, else the replayed one: kind and cause are those of both."""
        output = self.recorded or self.replayed
        assert output is not None
        return output


class StateChanged(NamedTuple):
    """An address whose state is not what it was."""

    address: Address
    change: Change
    recorded: Mapping[str, Any] | None = None
    """As `View.state` shows it, of the first of them."""
    replayed: Mapping[str, Any] | None = None


class Step(NamedTuple):
    """One message that a function processed."""

    address: Address
    message: Any
    caller: Address | None
    origin: str
    """Where it entered, if that is known."""


class First(NamedTuple):
    """Where the ways part: the first message of the first task after which something is different."""

    checkpoint: int
    """The first that is different."""
    task: int
    step: Step | None
    """None when it could not be found out."""


class Outcomes(NamedTuple):
    """What a replay came to."""

    first: Manifest
    last: Manifest
    turns: int
    invocations: int
    took_s: float
    states: list[StateChanged]
    outputs: list[Changed]
    """The first of them."""
    outputs_count: int
    diverged: First | None
    awaited: Counter[str]
    """Functions whose handlers waited for something outside, and how often."""

    @property
    def same(self) -> bool:
        return not self.states and not self.outputs_count


async def retrace(
    app: App,
    recorded: Recorded,
    config: Config,
    first: int,
    last: int,
    *,
    kafka: KafkaOptions | None = None,
    only: Address | None = None,
    limit: int = 100,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcomes:
    """Run `app` from checkpoint `first` to checkpoint `last`, and look at what differs: of one address if `only` names
    it, with the states of the first `limit`. `kafka` is the cluster of the application, if it has one.

    Raises Refused where that is impossible, FunctionError for a migration that fails or a handler whose failure halts,
    and what reading an input raises.
    """
    recording = Recording(recorded, first, last)
    order = _Order(
        app, replace(config, parallelism=recording.first.parallelism), recorded, recording, kafka, only, limit
    )
    began = time.monotonic()
    with restored_checkpoint(recorded, first) as restored, restored_checkpoint(recorded, last) as expected:
        async with _ready(order, restored, range(len(restored))) as runs:
            ways = (zip(recording.intervals(run.task), repeat(run)) for run in runs)
            for interval, run in merge(*ways, key=lambda step: step[0].checkpoint):
                await run.take(interval)
                progress(interval.checkpoint - first, last - first)
        states = _states(order, expected, restored)
    diverged = await _first(order, runs)
    outputs = sorted((each for run in runs for each in run.changed), key=lambda each: (each.checkpoint, each.task))
    return Outcomes(
        recording.first,
        recording.last,
        sum(run.turns for run in runs),
        sum(run.invocations for run in runs),
        time.monotonic() - began,
        states,
        outputs[:limit],
        sum(run.changed_count for run in runs),
        diverged,
        sum((run.awaited for run in runs), Counter()),
    )


class _Order(NamedTuple):
    """What is to be done."""

    app: App
    config: Config
    recorded: Recorded
    recording: Recording
    kafka: KafkaOptions | None
    only: Address | None
    limit: int


@asynccontextmanager
async def _ready(order: _Order, restored: Sequence[Restored], tasks: Collection[int]) -> AsyncIterator[list[_Run]]:
    """These tasks, ready to take the first turn of the recording. `restored` are all of them."""
    ingresses = Ingresses(order.app, order.kafka, message_bytes_max=order.config.message_bytes_max)
    inboxes = order.recording.inboxes([each.meta for each in restored], tasks)
    try:
        yield [_Run(order, restored[task], inboxes[task], inboxes, ingresses) for task in tasks]
    finally:
        await ingresses.close()


def _states(order: _Order, expected: Sequence[Restored], replayed: Sequence[Restored]) -> list[StateChanged]:
    """The addresses whose states are not what they were, the first of them with both states."""
    for each in (*expected, *replayed):
        fold_all(each)
    found = compare([each.overlay.backend for each in expected], [each.overlay.backend for each in replayed])
    before, after = _view(order.app, expected), _view(order.app, replayed)
    states: list[StateChanged] = []
    for address, change in found:
        if order.only is not None and address != order.only:
            continue
        shown = len(states) < order.limit and address.typename in order.app.functions
        states.append(StateChanged(address, change, *((before.state(address), after.state(address)) if shown else ())))
    return states


def _view(app: App, tasks: Sequence[Restored]) -> View:
    views = [task_view(app, each.overlay, task=task, tasks=len(tasks)) for task, each in enumerate(tasks)]
    return View(views, max(each.meta.clock_ms for each in tasks))


class _Run:
    """One task on its way through the recording. `restored` is its own, and holds its state at the end afterwards."""

    def __init__(
        self, order: _Order, restored: Restored, own: Inbox, inboxes: Sequence[Inbox], ingresses: Ingresses
    ) -> None:
        self._order = order
        self._only, self._limit = order.only, order.limit
        self.task = own.task
        self._overlay = restored.overlay
        self._ended: dict[int, Outcome] = {}
        self._inputs = order.recording.inputs(own, ingresses)
        self._origin_of = ingresses.origin_of
        self._inboxes = inboxes
        self._sequences = dict(restored.meta.sequences)
        """Task -> number of the last frame that the recording tells was sent to it."""
        self._attempt = order.recording.first.lineage.attempt
        self._meta = restored.meta
        """As of the last cut."""
        self.turns = 0
        self.invocations = 0
        self.awaited: Counter[str] = Counter()
        self.changed: list[Changed] = []
        """The first of them."""
        self.changed_count = 0
        self.state_changed_at: int | None = None
        """The first checkpoint whose delta has other values."""
        self._states_changed: set[Address] = set()
        """The addresses of these."""
        self._core = self._core_of(restored, order.recording.first.of(self.task))
        self._core.resume()

    @property
    def parted_at(self) -> int | None:
        """The first checkpoint at which something is different."""
        found = [each.checkpoint for each in self.changed[:1]]
        if self.state_changed_at is not None:
            found.append(self.state_changed_at)
        return min(found, default=None)

    async def take_until(self, checkpoint: int) -> First:
        """Take the turns up to the delta of `checkpoint`, in which something is different. Returns what it began
        with."""
        for interval in self._order.recording.intervals(self.task):
            await self.take(interval)
            if interval.checkpoint == checkpoint:
                break
        return First(checkpoint, self.task, self._first_step())

    def _first_step(self) -> Step | None:
        """The first message of the last interval whose outputs, or whose address's state, are different there."""
        outputs = (output for each in self.changed for output in (each.recorded, each.replayed) if output is not None)
        causes = {output.cause for output in outputs if output.cause}
        for entry, message in self._core.steps:
            id, payload, cause, caller, meta = message
            address = Address(entry.typename, id)
            answered = meta is not None and any(o.to == meta.request_id for o in self._different("reply"))
            if address in self._states_changed or answered or not causes.isdisjoint(_causes_of(cause)):
                origin = meta.origin if meta is not None else ""
                return Step(
                    address,
                    builtins_of(payload, entry.codec),
                    None if caller is None else Address(*caller),
                    origin or self._origin_of(cause),
                )
        return None

    def _different(self, kind: Kind) -> Iterator[Output]:
        for each in self.changed:
            if each.output.kind == kind:
                yield each.output

    async def take(self, interval: Interval) -> None:
        """Take the turns of one delta, and compare what they gave with what it says."""
        if interval.anew:
            self._begin_anew(interval.attempt)
        self._core.steps.clear()
        sent: list[Envelope] = []
        for turn in interval.frozen.meta.schedule:
            sent += await self._turn(turn)
        frozen = self._core.freeze(interval.checkpoint)
        self._core.settle(interval.checkpoint)
        self._meta = frozen.meta
        dead = self._order.recorded.dead_egress
        recorded = [
            *_rows(interval.frozen.egress, dead),
            *_replies(interval.frozen.replies),
            *_messages(self._recorded_messages(interval)),
        ]
        replayed = [*_rows(frozen.egress, dead), *_replies(frozen.replies), *_messages(sent)]
        changed = [Changed(interval.checkpoint, self.task, *pair) for pair in _unequal(recorded, replayed)]
        if self._only is not None:
            changed = list(filter(self._concerns_only(), changed))
        self.changed_count += len(changed)
        self.changed += changed[: max(0, self._limit - len(self.changed))]
        states = set(_addresses_changed(interval.frozen.values, frozen.values))
        if self._only is not None:
            states &= {self._only}
        if states and self.state_changed_at is None:
            self.state_changed_at, self._states_changed = interval.checkpoint, states
        self._tidy()

    def _concerns_only(self) -> Callable[[Changed], bool]:
        """Whether an output came of the one address that is asked for, as far as its messages just taken tell."""
        causes: set[int] = set()
        requests: set[str] = set()
        for entry, (id, _, cause, _, meta) in self._core.steps:
            if (entry.typename, id) == self._only:
                causes.update(_causes_of(cause))
                requests.update({meta.request_id} if meta is not None else ())

        def concerns(changed: Changed) -> bool:
            output = changed.output
            return output.to in requests if output.kind == "reply" else output.cause in causes

        return concerns

    async def _turn(self, turn: Turn) -> list[Envelope]:
        """Take one turn. Returns the messages that go to other tasks."""
        inputs: list[Input] = []
        for source, reached in turn.taken:
            if source == COMPLETED:
                inputs += self._completed(reached)
            else:
                inputs += await self._inputs.take(source, reached)
        core = self._core
        batch = Batch(turn.clock_ms, inputs, turn.invocations_max)
        effects = core.run(batch, lambda: core.invocations >= turn.invocations)
        self.turns += 1
        self.invocations += effects.invocations
        return [envelope for frame in effects.frames for envelope in frame.messages]

    def _completed(self, number: int) -> list[Input]:
        outcome = self._ended.pop(number, None)
        return [] if outcome is None else [Completed(number, outcome.value, outcome.error)]

    def start(self, number: int, handler: Coroutine[Any, Any, Any]) -> Outcome | None:
        """Run a handler up to where it waits for something outside, if it does; the turn that it ended in is known."""
        try:
            handler.send(None)
        except StopIteration as stopped:
            self._ended[number] = Outcome(stopped.value, None)
        except BaseException as error:  # noqa: BLE001  # As any failure of a handler.
            self._ended[number] = Outcome(None, error)
        else:
            self.awaited[getattr(handler, "__qualname__", repr(handler))] += 1
            handler.close()
        return None

    def perform(self, typename: str, id: str, cause: int, index: int, step: Stepped) -> None:
        """A turn tells what came of the step then."""

    waits_for_cut = False

    def cut(self, checkpoint: int) -> None:
        """No step begins here."""

    def settle(self, checkpoint: int) -> None:
        """As for `cut`."""

    def rested(self, number: int, signal: Signal) -> None:
        self._ended[number] = Outcome(signal, None)

    def began(self, task: asyncio.Task[Any]) -> None:
        """It is of this process, and ends with it."""

    def _begin_anew(self, attempt: int) -> None:
        """The process ended after the last cut, or gave the task away, and another went on: handlers that waited began
        anew."""
        if attempt != self._attempt:
            self._attempt = attempt
            self._sequences.clear()
        self._ended.clear()
        core = self._core
        queues = {
            name: (entry.queue_head, entry.queue_head + len(entry.queue), list(entry.queue))
            for name, entry in core.entries.items()
        }
        self._core = self._core_of(Restored(self._overlay, self._meta, queues), None)

    def _core_of(self, restored: Restored, manifest: Manifest | None) -> _WatchedCore:
        app, config = self._order.app, self._order.config
        outlets = outlets_of(app, config.message_bytes_max)
        # Rows that were decided before are with those who write them.
        restored = Restored(restored.overlay, restored.meta, restored.queues)
        core = build_core(
            app,
            config,
            self.task,
            restored,
            outlets,
            self.start,
            manifest=manifest,
            dead_egress=self._order.recorded.dead_egress,
            attempt_starts=False,
            kind=_WatchedCore,
        )
        assert isinstance(core, _WatchedCore)
        core.origin_of = self._origin_of
        core.outside = self
        return core

    def _recorded_messages(self, interval: Interval) -> Iterator[Envelope]:
        """What the task sent to others before this cut, and behind the one before."""
        for destination, sequence in interval.frozen.meta.sequences.items():
            if sequence > self._sequences.get(destination, 0):
                self._sequences[destination] = sequence
                yield from self._inboxes[destination].sent(self.task, interval.attempt, sequence)

    def _tidy(self) -> None:
        overlay = self._overlay
        overlay.tidy()
        if overlay.settled_rows > FOLD_ROWS:
            fold_all(Restored(overlay))


class _WatchedCore(TaskCore):
    """A core that remembers what it ran."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.steps: list[tuple[Entry, QueuedRow]] = []

    def resume(self) -> None:
        """Begin again what was under way at the first checkpoint: it had begun before, and no turn says so."""
        ready = frozenset(self._meta.ready or ())
        begun = [entry.function.is_async and number not in ready for entry, number in self._ready]
        waiting = list(compress(self._ready, begun))
        following = [each for each, under_way in zip(self._ready, begun, strict=True) if not under_way]
        self._ready.clear()
        self._ready.extend(following)
        for entry, number in waiting:
            self._run_held(entry, number)

    def _run_plain(self, entry: Entry, messages: Iterable[QueuedRow]) -> None:
        super()._run_plain(entry, self._watched(entry, messages))

    def _run_stateless(self, entry: Entry, messages: Iterable[QueuedRow]) -> None:
        super()._run_stateless(entry, self._watched(entry, messages))

    def _attempt(self, entry: Entry, message: QueuedRow, attempt: int, number: int | None) -> None:
        self.steps.append((entry, message))
        super()._attempt(entry, message, attempt, number)

    def _watched(self, entry: Entry, messages: Iterable[QueuedRow]) -> Iterator[QueuedRow]:
        for message in messages:
            self.steps.append((entry, message))
            yield message


# Outputs.


def _rows(egress: Mapping[str, Sequence[EgressRow]], dead: str) -> Iterator[Output]:
    """Rows of egresses; of those of `dead`, which are copies of dead letters, the gist."""
    for name, rows in egress.items():
        for value, cause, *placed in rows:
            yield Output("row", name, cause, (gist(value) if name == dead else value, *placed))


def _replies(replies: Iterable[Reply]) -> Iterator[Output]:
    for request_id, value, error in replies:
        yield Output("reply", request_id, 0, (value, error))


def _messages(envelopes: Iterable[Envelope]) -> Iterator[Output]:
    for typename, id, payload, cause, _, _ in envelopes:
        yield Output("message", f"{typename}/{id}", cause, (payload,))


_Named = tuple[Kind, str, int]


def _unequal(recorded: Sequence[Output], replayed: Sequence[Output]) -> Iterator[tuple[Output | None, Output | None]]:
    """Pairs of what is not the same, in the order in which it was recorded."""
    if recorded == replayed:
        return
    found: defaultdict[_Named, list[Output]] = defaultdict(list)
    for output in replayed:
        found[_named(output)].append(output)
    for output in recorded:
        others = found[_named(output)]
        other = others.pop(0) if others else None
        if other != output:
            yield output, other
    for others in found.values():
        for other in others:
            yield None, other


def _named(output: Output) -> _Named:
    """What the two of a pair have in common. A request has one reply, and a reply no cause."""
    return (output.kind, output.to if output.kind == "reply" else "", output.cause)


# The first message.


def _addresses_changed(
    recorded: Mapping[str, Mapping[str, bytes]], replayed: Mapping[str, Mapping[str, bytes]]
) -> Iterator[Address]:
    for typename in recorded.keys() | replayed.keys():
        before, after = recorded.get(typename, {}), replayed.get(typename, {})
        for id in before.keys() | after.keys():
            if before.get(id) != after.get(id):
                yield Address(typename, id)


def _causes_of(cause: int) -> list[int]:
    """What outputs of an invocation have as theirs (PROTOCOL 6)."""
    return [(cause ^ GOLDEN_64 * number) * ODD_64 & MASK_64 for number in range(1, OUTPUTS_SEARCHED + 1)]


async def _first(order: _Order, runs: Sequence[_Run]) -> First | None:
    """Run the task that was the first to part once more, and see which message it was."""
    parted = [(run.parted_at, run.task) for run in runs if run.parted_at is not None]
    if not parted:
        return None
    checkpoint, task = min(parted)
    with restored_checkpoint(order.recorded, order.recording.first.checkpoint) as restored:
        async with _ready(order, restored, [task]) as (run,):
            return await run.take_until(checkpoint)
