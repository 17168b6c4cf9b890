"""The application at work in one process: its life, and the loop of its turns.

    start   data directory -> checkpoint restored -> sinks opened -> units built -> attempt begun
    serve   every unit in turn -> checkpoint, upkeep, if due -> yield to the event loop, or wait for something to do
    finish  last checkpoint -> output committed -> everything closed

What always holds: units take turns and are frozen by this loop alone, so nothing happens to one during its turn; a
failure that could lose data ends the process, and the next start restores. Decisions are made by the cores
(`TaskCore`, `SnapshotTask`, `Coordinator`, `TwoPhaseSink`). What is done about them is left to the parts made here,
which report to the worker by the callbacks it gives them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from penstock.checkpoint.control import AttemptBegun, Manifest
from penstock.checkpoint.coordinator import Coordinator
from penstock.checkpoint.retention import Retained
from penstock.checkpoint.savepoint import Savepoint
from penstock.engine.background import Background
from penstock.engine.build import Assembly, LogWiring, origin_of_attempt
from penstock.engine.checkpoints import GENERATION, CheckpointDriver
from penstock.engine.clock import SteadyClock
from penstock.engine.config import Config
from penstock.engine.copying import copy_aside
from penstock.engine.data import DataDirectory, Progress
from penstock.engine.feeds import InputFeed
from penstock.engine.forgetting import Forgetting
from penstock.engine.interpreter import prepare_interpreter, release_interpreter
from penstock.engine.looks import Question, answer
from penstock.engine.requests import Requests
from penstock.engine.restore import Restored, staged_attempts
from penstock.engine.rota import Rota
from penstock.engine.savepoints import ROWS_S, open_place_of, rows_waiting
from penstock.engine.serving import CheckpointStatistics, Recovery, SharedStatistics
from penstock.engine.sinks import SinkDriver
from penstock.engine.totals import Totals
from penstock.engine.unit import TaskUnit
from penstock.engine.upkeep import CROWDED, Upkeep
from penstock.errors import CorruptSnapshot, Unavailable
from penstock.faults import fault
from penstock.functions.app import App
from penstock.logs import logger
from penstock.records import Reply
from penstock.state.backend import Backend


class Worker:
    """See the module. `await run()` does everything; `stop()` ends it in an orderly way."""

    data: DataDirectory
    requests: Requests
    checkpoint_driver: CheckpointDriver
    """These three exist from `start` on."""

    def __init__(
        self,
        app: App,
        config: Config,
        *,
        clock: Callable[[], float] = time.time,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.app = app
        self.config = config
        self._clock = SteadyClock(clock)
        self.started_at = self._clock()
        self.ready = False
        self.stopping = False
        """Whether `stop` was called."""
        self.recovery = Recovery(0, 0, 0, 0.0)
        self.last_checkpoint: Manifest | None = None
        self.last_checkpoint_ms = 0.0
        self._progress = progress
        self._wake_event = asyncio.Event()
        self._fatal: BaseException | None = None
        self._rota = Rota()
        self._worked_at = 0.0
        self._background = Background(self._fail)
        self._assembly = Assembly(app, config, wake=self._wake, failed=self._fail)
        self._stores: list[Backend] = []

    # The life of a worker.

    async def run(self, started: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Start, run until `stop` is called or the work is done, and stop. Raises what made it fail.

        `started` runs before the first turn, and before anything is changed for good: there a caller opens what serves
        this worker.
        """
        await self.start(started)
        try:
            await self.serve()
        except BaseException as error:
            if isinstance(error, CorruptSnapshot):
                self.data.distrust()
            await self._abort()
            raise
        await self.finish()

    async def start(self, started: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Restore and get ready.

        Raises ConfigurationError, Refused, Fenced, Unavailable or CorruptSnapshot, with nothing changed.
        """
        self.app.check()
        began = time.monotonic()
        started_at = datetime.fromtimestamp(self._clock(), UTC).astimezone()
        self.data = DataDirectory(self.config, command="penstock run", started=started_at)
        self.requests = Requests(
            self.app.name,
            self.config.parallelism,
            lambda task, record: self.data.log.append(f"requests-{task}", record),
            flush=self.data.flush,
            accepting=lambda: self.ready and not self.stopping,
            wake=self._wake,
        )
        try:
            attempt, restored = await self._restore(began)
            if started is not None:
                await started()
            # Last, because it can't be taken back: an attempt that goes back to an older checkpoint and then can't
            # start would leave the next one nothing newer to continue from.
            self.data.begin_attempt(attempt)
            for unit, each in zip(self.units, restored, strict=True):
                self._assembly.resume(unit, each)
            self._background.spawn(self._assembly.tick_sinks())
            self.data.journal.write_index(self.data.history)
        except BaseException:
            await self._abort()
            raise
        prepare_interpreter()
        self.ready = True

    async def _restore(self, began: float) -> tuple[AttemptBegun, list[Restored]]:
        """Build the units. Returns the attempt that is to begin, and what it continues from."""
        data = self.data
        manifest, restored = data.restore(self.app, self._progress)
        self._stores = [each.overlay.backend for each in restored]
        self._clock.not_before(max(each.meta.clock_ms for each in restored) / 1000)
        # An attempt must not share its number with one in a marker, or the marker would cover rows it never saw.
        await self._assembly.open_sinks()
        await self._assembly.open_inputs()
        data.history.pass_attempt(await self._assembly.highest_attempt())
        attempt = data.next_attempt(manifest, int(self._clock() * 1000), staged=staged_attempts(restored))
        retained = data.retained_attempts()
        origin, wiring = origin_of_attempt(attempt, manifest), LogWiring(data.log, self.config.parallelism)
        for task, each in enumerate(restored):
            self._assembly.add(task, each, origin, wiring, retained=retained, bury=self.requests.bury)
        self.checkpoint_driver = CheckpointDriver(
            self.app,
            self.config,
            attempt,
            self.units,
            data,
            generation=manifest.generation if manifest is not None else GENERATION,
            clock=self._clock,
            spawn=self._background.spawn,
            wake=self._wake,
            announced=self._announced,
        )
        self._upkeep = Upkeep(
            self.config,
            self.units,
            data.store,
            data.task_path,
            rebased=Forgetting(self.config, self.units, data, clock=self._clock).run,
            spawn=self._background.spawn,
        )
        fault("restore.done")
        deltas, took_s = sum(each.deltas for each in restored), time.monotonic() - began
        self.recovery = Recovery(attempt.lineage.attempt, attempt.restored, deltas, took_s, tuple(data.notes))
        for note in data.notes:
            logger.warning("%s", note)
        return attempt, restored

    def stop(self) -> None:
        """Stop taking input, take a last checkpoint, commit, and return from `run`."""
        self.stopping = True
        self._wake()

    async def finish(self) -> None:
        """Stop in an orderly way: what is done is checkpointed and committed, what is not stays in the snapshot.

        Raises what failed for good meanwhile, and Unavailable when it took too long: then something is missing that the
        next start will do.
        """
        unfinished: Unavailable | None = None
        try:
            async with asyncio.timeout(self.config.stop_timeout_ms / 1000):
                await self._drain()
        except TimeoutError:
            unfinished = self._unfinished()
        if self._fatal is not None:
            await self._abort()
            raise self._fatal
        try:
            await self._close(final=True)
        except Unavailable as error:
            if unfinished is None:
                raise
            logger.error("%s", error)
        if unfinished is not None:
            raise unfinished

    def _unfinished(self) -> Unavailable:
        missing = self._assembly.unwritten() or "The last checkpoint is not complete"
        last = self.last_checkpoint.checkpoint if self.last_checkpoint else self.recovery.restored
        return Unavailable(
            "PEN0604",
            f"Stopping took longer than stop_timeout = {self.config.stop_timeout_ms / 1000:g} s. {missing}. Nothing is "
            f"lost: the next start continues from checkpoint {last or 'none'}, and writes what is missing.",
        )

    async def _drain(self) -> None:
        """Checkpoint and commit until all is visible that was done. Turns are taken only for rows that a sink refuses:
        they become dead letters before the others of their commit go out."""
        while self._fatal is None and not self._all_told():
            if self.requests.burying:
                self._take_turns(int(self._clock() * 1000), pressure=math.inf)
            if not self.checkpoint_driver.quiet:
                self.checkpoint_driver.hurry("stop")
                self.checkpoint_driver.tick(self._clock() * 1000)
            await asyncio.sleep(0.001)

    def _all_told(self) -> bool:
        """Whether everything that was done is visible, and the last checkpoint says so. The next start may not be able
        to ask a sink: its egress may be gone by then."""
        if not (self.checkpoint_driver.quiet and self._assembly.quiet):
            return False
        for unit in self.units:
            unit.core.tell_commits()
        return self.checkpoint_driver.quiet

    async def _abort(self) -> None:
        """End at once, keeping what is durable."""
        with suppress(Exception):
            await self._close(final=False)

    async def _close(self, *, final: bool) -> None:
        self.ready = False
        try:
            await self._assembly.cancel()
            await self._background.cancel_all()
            try:
                await self._assembly.close(final=final)
            finally:
                if final:
                    self.data.journal.write_index(self.data.history)
                for store in self._stores:
                    store.close()
                self.requests.close()
        finally:
            release_interpreter()
            if hasattr(self, "checkpoint_driver"):
                self.checkpoint_driver.close()
            self.data.close()

    # Turns.

    async def serve(self) -> None:
        """Take turns until `stop` is called, the work is done, or something fails for good, which is raised."""
        while self._fatal is None and not self.stopping:
            now_ms = int(self._clock() * 1000)
            worked = self._take_turns(now_ms, pressure=self._upkeep.pressure)
            self.checkpoint_driver.tick(now_ms)
            self._upkeep.start_due(self._clock() - self._worked_at)
            if worked:
                self._worked_at = now_ms / 1000
                await asyncio.sleep(0)
            elif self.config.until_done and self._assembly.done:
                break
            else:
                await self._wait(now_ms)
        if self._fatal is not None:
            raise self._fatal

    def _take_turns(self, now_ms: int, *, pressure: float) -> bool:
        """A turn of each unit whose turn it is. Returns whether any had something to do."""
        burying = self.requests.burying

        def turn(unit: TaskUnit) -> bool:
            effects = unit.turn(now_ms, paused=pressure >= 1, crowded=pressure >= CROWDED, burying=burying)
            if effects is not None and effects.replies:
                self.checkpoint_driver.hurry("request")
            elif unit.core.has_steps:
                self.checkpoint_driver.hurry("step")
            return effects is not None

        return self._rota.take_turns(self.units, turn)

    async def _wait(self, now_ms: int) -> None:
        """Sleep until something is due or `_wake` is called."""
        due: list[float] = [at - now_ms for unit in self.units if (at := unit.core.next_due_ms()) is not None]
        checkpoint_ms, upkeep_ms = self.checkpoint_driver.due_in_ms(now_ms), self._upkeep.due_in_ms()
        if checkpoint_ms is not None:
            due.append(int(checkpoint_ms) + 1)
        if upkeep_ms is not None:
            due.append(upkeep_ms)
        timeout_s = max(0, min(due)) / 1000 if due else None
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake_event.wait()
        self._wake_event.clear()

    # What the parts report.

    def _wake(self) -> None:
        self._wake_event.set()

    def _fail(self, error: BaseException) -> None:
        """Something ended the application that no retry can mend."""
        self._fatal = self._fatal or error
        self._wake()

    def _announced(self, manifest: Manifest, replies: Sequence[Reply]) -> None:
        self.last_checkpoint = manifest
        self.last_checkpoint_ms = self._clock() * 1000
        for reply in replies:
            self.requests.tell(reply)

    # What people ask.

    @property
    def units(self) -> Sequence[TaskUnit]:
        return self._assembly.units

    @property
    def ingresses(self) -> Sequence[InputFeed]:
        return self._assembly.ingresses

    @property
    def coordinator(self) -> Coordinator:
        return self.checkpoint_driver.coordinator

    # As `Served`: this process has every task, so it answers everything itself.

    shared: SharedStatistics | None = None

    @property
    def problem(self) -> str:
        return self.data.storage_error if self.ready else "starting"

    @property
    def restoring(self) -> Mapping[int, int]:
        return {}  # It is over when there is somebody to ask.

    def totals(self) -> Totals:
        return self._assembly.totals()

    def checkpoint_statistics(self) -> CheckpointStatistics:
        driver, coordinator = self.checkpoint_driver, self.coordinator
        return CheckpointStatistics(
            coordinator.completed,
            coordinator.abandoned,
            coordinator.trying_since_ms,
            coordinator.completed,
            driver.duration_ms_sum,
            driver.durations_ms,
            len(self.data.history.checkpoints),
        )

    async def checkpoints(self) -> Sequence[Retained]:
        return list(self.data.history.checkpoints.values())

    async def manifest(self, retained: Retained) -> Manifest:
        return self.data.journal.manifest(retained)

    async def take_checkpoint(self) -> int:
        return await self.checkpoint_driver.wait_checkpoint("request")

    async def take_savepoint(self, place: str) -> Savepoint:
        open_place_of(place, self.config)  # Which refuses what is no place.
        number = await self.checkpoint_driver.wait_checkpoint("savepoint")
        self.data.pinned.add(number)
        try:
            await self._await_rows(number)
            committed = dict.fromkeys(self._assembly.sinks, number)
            return await copy_aside(self.config, number, place, committed)
        finally:
            self.data.pinned.discard(number)

    async def _await_rows(self, checkpoint: int) -> None:
        """Return when all rows that the checkpoint decided are visible."""
        drivers = [each for unit in self.units for each in unit.sinks.values() if isinstance(each, SinkDriver)]
        with suppress(TimeoutError):
            async with asyncio.timeout(ROWS_S):
                while not all(driver.has_written(checkpoint) for driver in drivers):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                return
        raise rows_waiting(checkpoint, self._assembly.unwritten())

    async def look(self, task: int, question: Question) -> Any:
        return answer(question, self.units[task].core.view())

    def announce(self, url: str) -> None:
        self.data.lock.announce(url)
