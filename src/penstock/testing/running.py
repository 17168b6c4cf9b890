"""The harness: the real task core and the real codecs, in virtual time, without files or network.

What always holds: nothing runs between two calls of the harness; every message, state, frame and row is encoded and
decoded; time moves only by `advance`, by `run_until_idle` and while `call` waits for its answer. Asking for a state, a
row or a dead letter first runs whatever can run now. `restart` is a planned one: a checkpoint, and everything built
anew from its bytes; it loses nothing, and tests that nothing lives outside the state. With `faults` the application
also ends without one, anywhere; what makes the trouble is in `penstock.testing.faults`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec

from penstock.checkpoint.control import FORMAT, Manifest, Part
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.sinks import Restored as RowsRestored
from penstock.checkpoint.snapshot import SnapshotTask
from penstock.durations import parse_duration
from penstock.engine.build import build_core, build_ingress
from penstock.engine.config import Config
from penstock.engine.effects import DeadLetter
from penstock.engine.feeds import Completions, Feed, InboxFeed, IngressFeed, RequestFeed, request_envelope
from penstock.engine.journal import Journal
from penstock.engine.migrate import check_shapes
from penstock.engine.operations import Drop, Redrive, encode_operation
from penstock.engine.restore import Restored, restore_task
from penstock.engine.sinks import EagerDriver, SinkDriver
from penstock.engine.task import TaskCore
from penstock.engine.unit import INVOCATIONS_MAX, LogChannels, Suspended, TaskUnit
from penstock.errors import ConfigurationError, FunctionError, InvalidInput
from penstock.functions.answers import decode_answer
from penstock.functions.app import App, Egress, Ingress
from penstock.functions.codecs import MsgspecCodec
from penstock.functions.context import Outlet
from penstock.functions.function import Function
from penstock.functions.io import EgressSpec, FileEgress, FileIngress, GeneratorIngress, MemoryEgress, MemoryIngress
from penstock.functions.kafka import KafkaIngress
from penstock.functions.kafka_egress import KafkaEgress
from penstock.functions.outlets import outlets_of, resolve_function
from penstock.functions.trial import START
from penstock.functions.types import codec_for
from penstock.functions.virtual_loop import VirtualLoop
from penstock.ids import KEY_GROUPS_MAX, Address, cause_of, key_group
from penstock.records import EgressRow, Envelope, Reply
from penstock.router.egress import MemorySink
from penstock.router.ingress import reader_for
from penstock.router.memory import MemoryLog
from penstock.router.requests import encode_request
from penstock.state.backend import Backend
from penstock.state.memory import MemoryBackend
from penstock.testing.comparing import Outcome, Row, first_difference
from penstock.testing.faults import Crashed, Fault, Trouble
from penstock.testing.kafka import FedTopic, emitted_value, fed_record

M = TypeVar("M")
R = TypeVar("R")

BASE_DELTAS: Final = 16
"""Deltas after which a restart makes a base of them, so that restarting often stays cheap, and bases are tried too."""

INVOCATIONS_RUN_MAX: Final = 1_000_000
"""Handler runs in one go. More is a function that sends to itself for ever, as no test takes so long otherwise."""

JUMPS_MAX: Final = 100_000
"""Steps of time in one `run_until_idle`. More is a handler that sleeps in an endless loop."""


class Harness:
    """See the module. Use it as a context manager, from a plain `def`: it runs an event loop of its own.

    With `parallelism` tasks, a power of two, messages between them travel as frames. With `restart_every=3` the
    application is restarted after every third message, which must make no difference to any result. With
    `always_replay` a handler that awaits is dropped at each await and run again from its start, which finds code that
    does not do the same twice. Egresses are kept in memory, whatever they are; ingresses are fed by hand. With a
    `seed`, tasks take turns in another order for each seed, and `faults` are possible.

    Raises ConfigurationError when the application can't run.
    """

    def __init__(
        self,
        app: App,
        *,
        parallelism: int = 1,
        restart_every: int = 0,
        start: datetime = START,
        message_bytes_max: int = 1 << 20,
        seed: int | None = None,
        always_replay: bool = False,
    ) -> None:
        app.check()
        self.app = self._first_app = app
        self._options: dict[str, Any] = {
            "parallelism": parallelism,
            "start": start,
            "message_bytes_max": message_bytes_max,
        }
        self._given: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        """What was called so far: name, arguments, and those with names."""
        self._answers: list[tuple[str, Any]] = []
        self._trouble = Trouble(seed)
        self._config = Config(
            parallelism=parallelism,
            message_bytes_max=message_bytes_max,
            check_state=True,
            always_replay=always_replay,
        )
        self._restart_every = restart_every
        self._start_ms = int(start.timestamp() * 1000)
        self._loop = VirtualLoop()
        self._log = MemoryLog()
        self._journal = Journal(self._log, Path())  # Its index is for processes that start without knowing anything.
        self._fed = {name: MemoryIngress() for name in app.ingresses}
        self._sunk = {name: MemoryEgress(delivery=each.spec.delivery) for name, each in app.egresses.items()}
        self._emitted_types: dict[tuple[str, bytes], type] = {}
        self._bases: dict[str, MemoryBackend] = {}
        self._manifest: Manifest | None = None
        self._lineage = Lineage(1)
        self._checkpoint_id = 0
        self._requests = 0
        self._replies: dict[str, Reply] = {}
        self._unrestarted = 0
        """Handler runs since the last restart."""
        self._run_invocations = 0
        self._failure: BaseException | None = None
        self._exposed = False
        """Whether what runs now may be killed."""
        self._loop.run(self._build(self._parts))

    def faults(self, *faults: Fault) -> Self:
        """Let these faults happen from now on, where the seed says: `Harness(app, seed=3).faults(Crash(every=5))`.

        They must not be seen in any result; `assert_exactly_once` makes sure of it.
        """
        self._trouble = Trouble(self._trouble.seed or 0, faults)
        self._loop.run(self._restart(self.app))
        return self

    @property
    def crashes(self) -> int:
        """How often the application was killed so far."""
        return self._trouble.crashes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way. Harmless when repeated."""
        if not self._loop.is_closed():
            self._loop.run(self._tear_down())
            self._loop.close()

    # Giving.

    def send(
        self,
        to: Function[M, Any] | str,
        id: str,
        message: M,
        *,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> None:
        """Give a message to an address, from outside. It runs with whatever runs next.

        Raises InvalidInput for a message the function does not take, an empty id, or a message that is too large.
        """
        self._note("send", to, id, message, headers=headers, idempotency_key=idempotency_key)
        self._request(self._envelope(to, id, message, "", headers, idempotency_key))

    def call(
        self,
        to: Function[M, R],
        id: str,
        message: M,
        *,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> R:
        """Send a message and return the answer, letting time pass as far as handlers and retries need.

        Raises FunctionError with the code and text a caller would get when the message became a dead letter, or when
        nothing is under way any more and there is no answer.
        """
        self._note("call", to, id, message, headers=headers, idempotency_key=idempotency_key)
        self._requests += 1
        request_id = f"call {self._requests}"
        envelope = self._envelope(to, id, message, request_id, headers, idempotency_key)
        address = Address(envelope.typename, envelope.id)
        self._request(envelope)
        try:
            reply = self._wait_reply(request_id, address)
        except FunctionError as error:
            self._answers.append((f"The call of {address}", str(error)))
            raise
        value: R = decode_answer(reply.value, self._function(to).reply_codec)
        self._answers.append((f"The call of {address}", value))
        return value

    def feed(self, ingress: Ingress | str, records: Iterable[Any]) -> None:
        """Let `records` arrive at an ingress: as its reader would give them, or values of its type.

        Those of a `KafkaIngress` are `(key, value)` or `(key, value, headers)`; the value alone is a record without a
        key. What can't be routed becomes a dead letter, as it would from a file.
        """
        name = ingress if isinstance(ingress, str) else ingress.name
        declared = self.app.ingresses.get(name)
        if declared is None:
            raise ConfigurationError(
                "PEN0123", f"{name} is no ingress of {self.app.name}. Declared: {_names(self.app.ingresses)}."
            )
        given = list(records)
        self._note("feed", name, given)
        self._fed[name].feed(*(self._raw_record(declared, record) for record in given))

    # Time.

    @property
    def now(self) -> datetime:
        """The present time of handlers, in UTC."""
        return datetime.fromtimestamp(self._clock_ms / 1000, UTC)

    def advance(
        self, duration: str | float | timedelta = 0, *, days: float = 0, hours: float = 0, minutes: float = 0
    ) -> None:
        """Let time pass, and run what becomes due, each at its own time: `advance("1h")`, `advance(hours=1)`.

        Without a duration it runs what can run now.
        """
        self._note("advance", duration, days=days, hours=hours, minutes=minutes)
        named = timedelta(days=days, hours=hours, minutes=minutes)
        target_ms = self._clock_ms + parse_duration(duration) + parse_duration(named)
        self._run_due()
        while (next_ms := self._next_ms()) is not None and self._start_ms + next_ms <= target_ms:
            self._loop.jump(next_ms)
            self._run_due()
        self._loop.jump(target_ms - self._start_ms)
        self._run_due()

    def run_until_idle(self) -> None:
        """Run until nothing is under way, letting time pass as far as sleeping handlers and retries need.

        What lies in the future stays there: delayed messages and expirations wait for `advance`. A handler that waits
        for something besides time is left waiting.
        """
        self._note("run_until_idle")
        self._run_due()
        for _ in range(JUMPS_MAX):
            if not self._jump():
                return
            self._run_due()
        raise FunctionError(
            "PEN0231",
            f"{self.app.name} is still busy after {JUMPS_MAX:,} steps of time: a handler sleeps in an endless loop. "
            "Use ctx.send_after for what recurs, and h.advance to let it happen.",
        )

    def restart(self, app: App | None = None) -> None:
        """Take a checkpoint, drop everything else, and continue from its bytes; with `app`, as changed code would.

        Suspended handlers begin again. Raises Refused when state does not fit `app` and no migration is declared.
        """
        self._note("restart", app)
        self._run_due()
        if app is not None:
            app.check()
            assert self._manifest is not None
            self._loop.run(self._checkpoint())
            check_shapes(app, self._manifest)
        self._loop.run(self._restart(app or self.app))

    # Asking.

    def state(self, function: Function[Any, Any] | str, id: str) -> Any:
        """The state of one address, with its tables and logs; that of a fresh address when it has none.

        For a function with `storage`, its values. It is a copy: changing it changes nothing.
        """
        self._run_now()
        return self._read_state(self._function(function), id)

    def states(self, function: Function[Any, Any] | str) -> dict[str, Any]:
        """The states of all addresses of a function that have one, by id."""
        self._run_now()
        declared = self._function(function)
        ids = [id for unit in self._units for id in unit.overlay.ids(declared.typename)]
        return {id: self._read_state(declared, id) for id in sorted(ids)}

    def egress(self, egress: Egress | str) -> list[Any]:
        """What was emitted, in the order of the commits: as values of the type they had, where a row holds enough."""
        rows = self.egress_rows(egress)
        name = egress if isinstance(egress, str) else egress.name
        spec = self.app.egresses[name].spec
        return [_value_of(spec, row.value, self._emitted_types.get((name, row.value))) for row in rows]

    def egress_rows(self, egress: Egress | str) -> list[EgressRow]:
        """The same as rows: the bytes that are written, with key, topic and headers."""
        self._run_now()
        name = egress if isinstance(egress, str) else egress.name
        if name not in self._sunk:
            raise ConfigurationError(
                "PEN0106", f"{name} is no egress of {self.app.name}. Declared: {_names(self._sunk)}."
            )
        return list(self._sunk[name].rows)

    def dead_letters(self) -> list[DeadLetter]:
        """What was given up, oldest first for each task."""
        self._run_now()
        letters = [letter for unit in self._units for letter in unit.core.letters.all()]
        return sorted(letters, key=lambda letter: letter.number)

    def redrive(self, *numbers: int) -> int:
        """Send dead letters again: these, or all. Returns how many there were."""
        self._note("redrive", *numbers)
        return self._operate(Redrive, numbers)

    def drop(self, *numbers: int) -> int:
        """Delete dead letters: these, or all. Returns how many there were."""
        self._note("drop", *numbers)
        return self._operate(Drop, numbers)

    # Comparing with a run without faults.

    def assert_exactly_once(self) -> None:
        """Give the same inputs to a second harness, without faults, and compare states, rows, answers and dead letters.

        Inputs that are given with nothing run between them may arrive in any order, unless they are of one ingress.
        Raises AssertionError, which says what is different first, and how to see it again.
        """
        self._run_now()
        with Harness(self._first_app, **self._options) as undisturbed:
            for name, arguments, named in self._given:
                with suppress(FunctionError):  # A call that failed: what it was answered is compared.
                    getattr(undisturbed, name)(*arguments, **named)
            difference = first_difference(self._outcome(), undisturbed._outcome())
        if difference:
            raise AssertionError(
                f"{difference} Seed {self._trouble.seed}, {self.crashes} crashes. A handler runs again when its first "
                "run was rolled back, so what it keeps outside its state (a global variable, a cache, an iterator) or "
                "takes from chance counts twice or differs. Keep it in the state, or emit it. What depends on the "
                "order in which messages of different senders come may differ, too: nobody promises that order."
            )

    def _outcome(self) -> Outcome:
        return Outcome(
            self._answers,
            {
                name: self.states(name)
                for name, function in self.app.functions.items()
                if function.state is not None or function.storage
            },
            {name: self._rows(name) for name in self.app.egresses},
            frozenset(name for name, egress in self.app.egresses.items() if egress.spec.delivery != "exactly-once"),
            self.dead_letters(),
        )

    def _rows(self, egress: str) -> list[Row]:
        rows = self.egress_rows(egress)
        contents = ((row.value, row.key, row.topic, row.headers) for row in rows)
        return [Row(content, value) for content, value in zip(contents, self.egress(egress), strict=True)]

    def _note(self, name: str, *arguments: Any, **named: Any) -> None:
        self._given.append((name, arguments, named))

    # Building, and building anew.

    @property
    def _parts(self) -> Sequence[Part]:
        """Where each task goes on from: from nothing before the first checkpoint."""
        if self._manifest is not None:
            return self._manifest.parts
        return [Part(task, "", 0, -1, 0, -1, 0, 0) for task in range(self._config.parallelism)]

    async def _build(self, parts: Iterable[Part]) -> None:
        app, config = self.app, self._config
        self._suspended: list[Suspended] = []
        self._feeds: list[IngressFeed] = []
        self._units: list[TaskUnit] = []
        outlets = outlets_of(app, config.message_bytes_max, self._remember)
        for part in parts:
            self._units.append(self._build_unit(part, outlets))

    def _build_unit(self, part: Part, outlets: Mapping[Any, Outlet]) -> TaskUnit:
        app, config = self.app, self._config
        restored = restore_task(
            part, self._journal, self._open_base, cache_bytes_max=config.cache_bytes, progress=lambda done, total: None
        )
        completions = Completions()
        suspended = Suspended(completions, lambda: None, _at_once)
        self._suspended.append(suspended)
        core = build_core(app, config, part.task, restored, outlets, suspended.start, manifest=self._manifest)
        core.outside = suspended
        snapshot = SnapshotTask(
            part.task,
            self._lineage,
            self._checkpoint_id,
            base=restored.base,
            head=restored.head,
            checksum=restored.checksum,
        )
        unit = TaskUnit(
            part.task,
            core,
            restored.overlay,
            snapshot,
            completions,
            self._feeds_of(part.task, core, snapshot),
            {},
            LogChannels(self._log),
            lambda: 0.0,
            invocations_max=self._trouble.batch_max(self._restart_every or INVOCATIONS_MAX),
        )
        unit.adopt(restored)
        self._attach_sinks(unit, restored)
        return unit

    def _feeds_of(self, task: int, core: TaskCore, snapshot: SnapshotTask) -> list[Feed]:
        requests = RequestFeed(self._log, task)
        requests.seek(core.meta.ingress_positions.get(RequestFeed.SOURCE))
        inbox = InboxFeed(self._log, task, snapshot)
        inbox.seek(core.meta.inbox_position)
        feeds: list[Feed] = [requests, inbox]
        for number, ingress in enumerate(self.app.ingresses.values()):
            if number % self._config.parallelism == task:
                feed = self._ingress_feed(ingress)
                feed.seek(core.meta.ingress_positions.get(ingress.name))
                feeds.append(feed)
                self._feeds.append(feed)
        return feeds

    def _ingress_feed(self, ingress: Ingress) -> IngressFeed:
        reader = reader_for(self._fed.setdefault(ingress.name, MemoryIngress()))
        bytes_max = self._config.message_bytes_max
        if isinstance(ingress.spec, KafkaIngress):
            topic = FedTopic(self.app, ingress, ingress.spec, bytes_max)
            return IngressFeed(self.app.name, ingress, reader, topic, lambda: None)
        return build_ingress(self.app, ingress, reader, message_bytes_max=bytes_max, wake=lambda: None)

    def _attach_sinks(self, unit: TaskUnit, restored: Restored) -> None:
        for name, egress in self.app.egresses.items():
            memory = MemorySink(self._sunk.setdefault(name, MemoryEgress(delivery=egress.spec.delivery)))
            sink = self._trouble.around(memory)
            if egress.spec.delivery == "eager":
                unit.sinks[name] = EagerDriver(name, unit.task, sink, failed=self._fail)
                continue
            driver = SinkDriver(
                name,
                unit.task,
                sink,
                discard=lambda checkpoint, name=name: unit.committed(name, checkpoint),  # type: ignore[misc]
                bury=_never_refuses,
                failed=self._fail,
            )
            unit.sinks[name] = driver
            driver.retain(self._lineage.attempts)
            driver.handle(RowsRestored(restored.staged.get(name, ())))

    async def _restart(self, app: App) -> None:
        """The next attempt: from a checkpoint of now."""
        manifest = await self._checkpoint()
        held = sum(unit.core.statistics().pending for unit in self._units)
        await self._tear_down()
        self.app = app
        self._lineage = self._lineage.descend(self._lineage.attempt + 1, manifest.checkpoint)
        await self._build(manifest.parts)
        # What was under way begins again and is counted again, which shall not be a reason for the next restart.
        self._unrestarted = -held

    async def _recover(self) -> None:
        """The next attempt: from the last checkpoint. Of what the log was not sure of yet, something may be left."""
        await self._tear_down()
        self._log.crash({partition: self._trouble.survivors() for partition in self._log.partitions()})
        attempt, manifest = self._lineage.attempt + 1, self._manifest
        self._lineage = Lineage(attempt) if manifest is None else manifest.lineage.descend(attempt, manifest.checkpoint)
        await self._build(self._parts)
        # As of a restart: what begins again is not a reason for the next crash, or nothing would ever be done.
        self._trouble.ran(-sum(unit.core.statistics().pending for unit in self._units))

    async def _checkpoint(self) -> Manifest:
        """All tasks at once, as in one process; complete as soon as it is durable."""
        if self._manifest is not None and any(unit.counters.deltas >= BASE_DELTAS for unit in self._units):
            self._make_bases()
        self._checkpoint_id += 1
        number, parts = self._checkpoint_id, []
        for unit in self._units:
            self._strike()
            writing = unit.cut(number, self.app.name, 1)
            while not writing.encoder.done:
                record = writing.encoder.step()
                if record is not None:
                    offset = self._journal.append_delta(record)
                    writing.offset = offset if writing.offset < 0 else writing.offset
            parts.append(unit.written(writing))
            for driver in unit.sinks.values():
                if isinstance(driver, EagerDriver):
                    await driver.wait_quiet()  # No snapshot holds these rows.
        self._strike()
        self._log.flush_nowait()
        self._manifest = Manifest(
            FORMAT,
            self.app.name,
            number,
            self._lineage,
            self._clock_ms,
            KEY_GROUPS_MAX,
            self._config.parallelism,
            1,
            self.app.fingerprints(),
            tuple(parts),
        )
        self._trouble.checkpointed()
        for unit in self._units:
            self._replies.update((reply.request_id, reply) for reply in unit.completed(self._manifest))
        self._strike()
        if not self._trouble:
            await self._wait_quiet()
        return self._manifest

    async def _wait_quiet(self) -> None:
        """Until all rows that are decided are visible."""
        for unit in self._units:
            for driver in unit.sinks.values():
                self._strike()
                await driver.wait_quiet()

    def _make_bases(self) -> None:
        """Fold everything settled into the store of each task, and let later deltas build on a copy of it."""
        for unit in self._units:
            while unit.begin_fold():
                while unit.overlay.fold_slice():
                    pass
            checkpoint = unit.overlay.folded_checkpoint
            name = f"{checkpoint}-{unit.task}"
            self._bases[name] = _copy(unit.overlay.backend)
            unit.rebase(name, checkpoint)

    def _open_base(self, name: str) -> Backend:
        return _copy(self._bases[name]) if name else MemoryBackend()

    async def _tear_down(self) -> None:
        for unit in self._units:
            unit.core.close()
        for suspended in self._suspended:
            await suspended.cancel_all()
        for feed in self._feeds:
            await feed.close()
        for unit in self._units:
            for driver in unit.sinks.values():
                await driver.stop()

    # Running.

    @property
    def _clock_ms(self) -> int:
        return self._start_ms + self._loop.now_ms

    def _run_now(self) -> None:
        """Run what can run, because somebody asks for what has become of it."""
        self._note("advance")
        self._run_due()

    def _run_due(self) -> None:
        """Run what can run at the present time, then checkpoint, which makes rows and answers visible."""
        self._run_invocations = 0
        self._loop.run_ready()
        began_ms = self._loop.now_ms
        self._exposed = True
        while True:
            try:
                self._settle()
                break
            except Crashed:
                self._exposed = False
                self._loop.run(self._recover())
                self._exposed = True
        self._exposed = False
        # Sinks that fail cost time, which would not have passed without them.
        self._start_ms -= self._loop.now_ms - began_ms
        if self._failure is not None:
            raise self._failure

    def _settle(self) -> None:
        """Run until there is nothing to do. Raises Crashed."""
        going_on = True
        while going_on:
            while self._loop.run(self._turn_all()):
                pass
            going_on = any(unit.core.changed for unit in self._units)
            if going_on:
                self._loop.run(self._checkpoint())  # Steps that have waited for it may begin.
            began_ms = self._loop.now_ms
            self._loop.run(self._wait_quiet())
            going_on |= self._loop.now_ms > began_ms  # Handlers that slept meanwhile may go on.

    async def _turn_all(self) -> bool:
        """One turn of every task. Whether there was anything to do."""
        worked = False
        for unit in self._trouble.shuffled(self._units):
            self._strike()
            behind_ms = self._trouble.clock_behind_ms()
            effects = unit.turn(self._clock_ms - behind_ms, paused=False)
            worked = worked or behind_ms > 0  # Something may be due by the true time.
            if effects is not None:
                worked = True
                self._count(effects.invocations)
                if self._restart_every and self._unrestarted >= self._restart_every:
                    await self._restart(self.app)
                    return True
                self._trouble.ran(effects.invocations)
                self._strike()
                if self._trouble.wants_checkpoint():
                    await self._checkpoint()
        return worked

    def _strike(self) -> None:
        """Here the application may be killed."""
        if self._exposed:
            self._trouble.strike()

    def _count(self, invocations: int) -> None:
        self._unrestarted += invocations
        self._run_invocations += invocations
        if self._run_invocations > INVOCATIONS_RUN_MAX:
            _, busiest = max((count, name) for unit in self._units for name, count in unit.core.messages.items())
            raise FunctionError(
                "PEN0231",
                f"{self.app.name} is still busy after {INVOCATIONS_RUN_MAX:,} messages, most of them for {busiest}: a "
                "function sends to itself without end. Use ctx.send_after for what recurs.",
            )

    def _next_ms(self) -> int | None:
        """When the next thing happens by the clock alone, in milliseconds of the loop."""
        due = [at - self._start_ms for unit in self._units if (at := unit.core.next_due_ms()) is not None]
        if self._loop.next_ms is not None:
            due.append(self._loop.next_ms)
        return max(self._loop.now_ms, min(due)) if due else None

    def _jump(self) -> bool:
        """Go to when the next thing happens, if something that is under way waits for time."""
        next_ms = self._next_ms()
        if next_ms is None or not (self._loop.next_ms is not None or any(map(_waits_for_time, self._units))):
            return False
        self._loop.jump(next_ms)
        return True

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error

    # Requests.

    def _envelope(
        self,
        to: Function[Any, Any] | str,
        id: str,
        message: Any,
        request_id: str,
        headers: Mapping[str, str] | None,
        idempotency_key: str,
    ) -> Envelope:
        function = self._function(to)
        codec = function.message_codec
        if codec.types and type(message) not in codec.types:
            raise InvalidInput(
                "PEN0107", f"{function.typename} cannot receive {type(message).__name__}; it takes {codec.name}."
            )
        if not id:
            raise InvalidInput(
                "PEN0203",
                f"A message to {function.typename} has an empty id. An id names one instance: give it some text.",
            )
        payload = codec.encode(message)
        if len(payload) > self._config.message_bytes_max:
            raise InvalidInput(
                "PEN0204",
                f'Message of {len(payload):,} bytes to {function.typename} "{id}" exceeds message_bytes_max = '
                f"{self._config.message_bytes_max:,}.",
            )
        envelope = request_envelope(
            Address(function.typename, id),
            payload,
            request_id=request_id,
            idempotency_key=idempotency_key,
            headers=dict(headers or {}),
            origin="test",
        )
        if request_id or idempotency_key:
            return envelope
        self._requests += 1
        return envelope._replace(cause=cause_of(f"send {self._requests}"))  # The same in every run of the test.

    def _request(self, envelope: Envelope) -> None:
        owner = key_group(envelope.id) % self._config.parallelism
        self._log.append(f"requests-{owner}", encode_request(envelope))
        if envelope.meta is not None and envelope.meta.idempotency_key and self._trouble.repeats_request():
            again = msgspec.structs.replace(envelope.meta, request_id=f"{envelope.meta.request_id}, again")
            self._log.append(f"requests-{owner}", encode_request(envelope._replace(meta=again)))
        self._log.flush_nowait()

    def _wait_reply(self, request_id: str, address: Address) -> Reply:
        self._run_due()
        while request_id not in self._replies and self._jump():
            self._run_due()
        reply = self._replies.pop(request_id, None)
        if reply is None:
            raise FunctionError(
                "PEN0230",
                f"{address} did not answer, and nothing is under way any more: its handler waits for something besides "
                "time. Let the test provide that first.",
                address=str(address),
            )
        if reply.error:
            code, _, message = reply.error.partition(" ")
            raise FunctionError(code, message, address=str(address))
        return reply

    def _operate(self, operation: type[Redrive] | type[Drop], numbers: Iterable[int]) -> int:
        """Ask each task to do something with those of the letters that are its own."""
        wanted = list(numbers) or [letter.number for letter in self.dead_letters()]
        done = 0
        for unit in self._units:
            own = [number for number in wanted if number % self._config.parallelism == unit.task]
            if own:
                name, payload = encode_operation(operation(own))
                self._requests += 1
                request_id = f"call {self._requests}"
                address = Address("", self._id_of(unit.task))
                self._request(request_envelope(address, payload, request_id=request_id, operation=name))
                done += msgspec.json.decode(self._wait_reply(request_id, address).value, type=int)
        return done

    def _id_of(self, task: int) -> str:
        """Some id that the task owns: how an operation is addressed to a task and not to an instance."""
        tasks = self._config.parallelism
        return next(id for number in range(1 << 16) if key_group(id := f"task-{number}") % tasks == task)

    # Details.

    def _function(self, function: Function[Any, Any] | str) -> Function[Any, Any]:
        return self.app.functions[resolve_function(self.app, function)[0]]

    def _read_state(self, function: Function[Any, Any], id: str) -> Any:
        if function.state is None and not function.storage:
            raise ConfigurationError("PEN0307", f"{function.typename} has no state: its Context names none.")
        unit = self._units[key_group(id) % self._config.parallelism]
        entry = unit.core.entries[function.typename]
        context = entry.new_context()
        context.id = id
        entry.open(context, self._clock_ms)
        return context.storage if function.storage else context.state

    def _raw_record(self, ingress: Ingress, record: Any) -> Any:
        """A record as the reader of the ingress would give it, made of a value of its type where it is one."""
        spec = ingress.spec
        if isinstance(spec, KafkaIngress):
            return fed_record(spec, record)
        if isinstance(spec, GeneratorIngress) and spec.format == "msgpack":
            id, message = record
            encoded = (
                message if isinstance(message, bytes) else resolve_function(self.app, ingress.to)[1].encode(message)
            )
            return id, encoded
        if isinstance(spec, FileIngress | GeneratorIngress) and spec.format in ("json", "jsonl"):
            if isinstance(record, str):
                return record.encode()
            return record if isinstance(record, bytes) else codec_for(type(record)).encode_json(record)
        if isinstance(spec, FileIngress) and not isinstance(record, Mapping):
            return codec_for(type(record)).to_builtins(record)
        return record

    def _remember(self, egress: Egress) -> Callable[[Any], bytes]:
        """What encodes the rows of an egress, and notes of which type they were made."""

        def encode(value: Any) -> bytes:
            data = egress.spec.encode(value)
            self._emitted_types[egress.name, data] = type(value)
            return data

        return encode


harness = Harness
"""The same in lower case, for `with penstock.testing.harness(app) as h`."""


def _value_of(spec: EgressSpec, data: bytes, emitted: type | None) -> Any:
    """The value a row was made of; as much of it as the row holds, in builtin types, when that is not all."""
    if isinstance(spec, MemoryEgress):
        loose = msgspec.msgpack.decode(data, type=spec.type)
    elif isinstance(spec, FileEgress) and spec.columns is not None:
        (cells,) = csv.reader([data.decode()])
        loose = dict(zip(spec.columns, cells, strict=True))
    elif isinstance(spec, KafkaEgress):
        if spec.tombstones and not data:
            return None
        loose = emitted_value(spec.format, data)
    else:
        try:
            loose = msgspec.json.decode(data)
        except msgspec.DecodeError:
            return data  # Bytes, written as they are.
    if emitted is None or type(loose) is emitted:
        return loose
    try:
        codec = codec_for(emitted)
        if isinstance(codec, MsgspecCodec) and not (isinstance(spec, FileEgress) and spec.columns):
            return msgspec.convert(loose, emitted, str_keys=True)
        return codec.convert(loose)  # Cells are texts, whatever they were.
    except Exception:  # noqa: BLE001  # Codecs raise what is quickest. The row has lost what the type needs.
        return loose


def _copy(backend: Backend) -> MemoryBackend:
    copy = MemoryBackend()
    copy.write(backend.scan(b"", b"\xff\xff"))
    return copy


def _never_refuses(rows: Any) -> Any:
    raise AssertionError("a sink in memory takes every row")


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


async def _at_once(work: Callable[..., Any], *arguments: Any) -> Any:
    """A step that would run in a thread: time stands still meanwhile."""
    return work(*arguments)


def _waits_for_time(unit: TaskUnit) -> bool:
    """Whether a message is to be tried again, or a handler sleeps."""
    return unit.core.next_retry_ms() is not None or unit.core.next_wake_ms() is not None
