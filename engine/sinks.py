"""Drives the second phase for one task and one egress: performs what `TwoPhaseSink` decides on a real sink.

Actions run one after the other in a task of their own, so that a slow sink delays neither handlers nor checkpoints.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from penstock.checkpoint.sinks import (
    Action,
    Buried,
    Bury,
    Commit,
    CommitFailed,
    Committed,
    Discard,
    Event,
    MarkerFailed,
    MarkerRead,
    ReadMarker,
    RowsRejected,
    Staged,
    Statistics,
    TwoPhaseSink,
    no_replay,
)
from penstock.errors import Fenced, FunctionError, PenstockError, Unavailable
from penstock.faults import fault
from penstock.logs import logger
from penstock.records import EgressRow, rows_of_replay
from penstock.router.sink import RowsRefused, Sink

EAGER_ROWS_MAX = 1_000
EAGER_RETRY_S = 0.1
ROWS_SAMPLED = 16
ROW_OVERHEAD_BYTES = 200
"""Of a row beside its value: a tuple, a cause, and the bytes object."""


class _Worked:
    """Work that runs in at most one task of the event loop at a time."""

    _running: asyncio.Task[None] | None = None

    async def wait_quiet(self) -> None:
        """Return when nothing is under way."""
        while self._running is not None:
            await asyncio.shield(self._running)

    async def stop(self, timeout_s: float | None = None) -> None:
        """Give up what is under way, and return when nothing of it goes on, or after that time, if there is one."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running}, timeout=timeout_s)


class SinkDriver(_Worked):
    """See the module. `discard` learns which checkpoint's rows are visible; `bury` gets rows the sink refuses, and
    returns when they are durable as dead letters; `failed` gets what must stop the application. `contested`: several
    processes may believe for a while that the task is theirs; a sink that was taken over is asked again then, since it
    is not for sinks to say whose the task is. `replay_of` tells which replay rows of an attempt come of."""

    def __init__(
        self,
        name: str,
        task: int,
        sink: Sink,
        *,
        discard: Callable[[int], None],
        bury: Callable[[Sequence[tuple[EgressRow, str]]], asyncio.Future[None]],
        failed: Callable[[BaseException], None],
        contested: bool = False,
        replay_of: Callable[[int], int] = no_replay,
    ) -> None:
        self._name = name
        self._task = task
        self._sink = sink
        self._passing = (Unavailable, Fenced) if contested else (Unavailable,)
        """What a sink raises when it may take the rows another time."""
        self._core = TwoPhaseSink(replay_of)
        self._discard = discard
        self._bury = bury
        self._failed = failed
        self._actions: deque[Action] = deque()
        self._row_bytes = 0
        """The largest row seen of late: what waits is taken to be like it."""
        self.unavailable = ""
        """Why the sink does not answer at present; empty when it does."""

    @property
    def waiting_bytes(self) -> int:
        """About what the rows hold that are not visible yet."""
        statistics = self._core.statistics()
        return (statistics.rows_undecided + statistics.rows_decided) * self._row_bytes

    @property
    def quiet(self) -> bool:
        """Whether everything decided is visible."""
        return self._core.quiet and self._running is None

    @property
    def oldest(self) -> int | None:
        """The oldest checkpoint with rows that are not known to be visible; None when there are none."""
        return self._core.oldest

    def has_written(self, checkpoint: int) -> bool:
        """Whether all rows that were emitted before the cut of `checkpoint` are visible."""
        oldest = self.oldest
        return oldest is None or oldest > checkpoint

    @property
    def unwritten(self) -> int:
        """Rows that are not known to be visible."""
        statistics = self._core.statistics()
        return statistics.rows_undecided + statistics.rows_decided

    def statistics(self) -> Statistics:
        return self._core.statistics()

    def retain(self, attempts: frozenset[int]) -> None:
        self._core.retain(attempts)

    def handle(self, event: Event) -> None:
        """Tell the core what happened, and perform what follows from it."""
        if isinstance(event, Staged) and event.rows:
            sample = event.rows[:: max(1, len(event.rows) // ROWS_SAMPLED)]
            self._row_bytes = ROW_OVERHEAD_BYTES + max(len(row.value) for row in sample)
        self._actions.extend(self._core.handle(event))
        if self._actions and self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._perform_all())

    async def _perform_all(self) -> None:
        try:
            while self._actions:
                event = await self._perform(self._actions.popleft())
                if event is not None:
                    self._actions.extend(self._core.handle(event))
        except Exception as error:  # noqa: BLE001  # Whatever it is, rows no longer go out: the application must not go on.
            self._failed(_coded(self._name, error))
        finally:
            self._running = None

    async def _perform(self, action: Action) -> Event | None:
        match action:
            case ReadMarker(delay_s):
                return await self._read_marker(delay_s)
            case Commit(rows, marker):
                return await self._commit(rows, dict(marker))
            case Bury(rows, number):
                await self._bury(rows)
                return Buried(number)
            case Discard(_, checkpoint):
                self._discard(checkpoint)
                return None

    async def _read_marker(self, delay_s: float) -> Event:
        if delay_s:
            await asyncio.sleep(delay_s)
        try:
            marker = await self._sink.read_marker(self._task)
            fault("egress.marked")
        except self._passing as error:
            self._complain(error)
            return MarkerFailed()
        self._recovered()
        return MarkerRead(marker)

    async def _commit(self, rows: Sequence[EgressRow], marker: dict[int, int]) -> Event:
        try:
            fault("egress.committing")
            await self._sink.commit(self._task, rows, marker)
            fault("egress.committed")
        except self._passing as error:
            self._complain(error)
            return CommitFailed()
        except RowsRefused as error:
            return RowsRejected(error.refused)
        self._recovered()
        return Committed()

    def _complain(self, error: PenstockError) -> None:
        if error.code not in self.unavailable:
            logger.warning("egress %s waits: %s", self._name, error)
        self.unavailable = str(error)

    def _recovered(self) -> None:
        if self.unavailable:
            logger.warning("egress %s answers again", self._name)
        self.unavailable = ""


class EagerDriver(_Worked):
    """Writes rows as soon as they are emitted, in order, before any checkpoint decides them: at least once.

    No snapshot holds these rows, so a checkpoint may be complete only when all emitted before its cut are written or
    refused (`settled` has reached what `sent` was then): otherwise a crash would lose them.
    """

    def __init__(
        self,
        name: str,
        task: int,
        sink: Sink,
        *,
        failed: Callable[[BaseException], None],
        attempt: int = 0,
        replay_of: Callable[[int], int] = no_replay,
    ) -> None:
        """`attempt` is that of the rows that will be sent; `replay_of` as of `SinkDriver`."""
        self._replay = replay_of(attempt)
        self._replay_of = replay_of
        self._name = name
        self._task = task
        self._sink = sink
        self._failed = failed
        self._rows: deque[EgressRow] = deque()
        self._inherited: Sequence[Staged] = ()
        """The first of the rows, as long as it is not known which of them are written."""
        self.waiting_bytes = 0
        """What the rows hold that are not written yet."""
        self.unavailable = ""
        """As of `SinkDriver`."""
        self.sent = 0
        self.refused = 0
        self.written = 0

    @property
    def unwritten(self) -> int:
        """Rows that are neither written nor refused."""
        return self.sent - self.settled

    @property
    def settled(self) -> int:
        """How many of the rows sent, from the first, need no more care."""
        return self.written + self.refused

    @property
    def quiet(self) -> bool:
        return self._running is None

    def send(self, rows: Sequence[EgressRow]) -> None:
        self.sent += len(rows)
        self.waiting_bytes += _held_bytes(rows)
        self._rows.extend(rows_of_replay(rows, self._replay))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._write_all())

    def inherit(self, batches: Sequence[Staged]) -> None:
        """Rows that were emitted while the egress was exactly-once, and decided: they are written before all others,
        but for those whose marker says that they are written."""
        self._inherited = batches
        rows = [row for batch in batches for row in rows_of_replay(batch.rows, self._replay_of(batch.attempt))]
        self.sent += len(rows)
        self.waiting_bytes += _held_bytes(rows)
        self._rows.extendleft(reversed(rows))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._write_all())

    def _leave_out_inherited(self, marker: Mapping[int, int]) -> None:
        missing: list[EgressRow] = []
        for batch in self._inherited:
            rows = [self._rows.popleft() for _ in batch.rows]
            if marker.get(batch.attempt, -1) >= batch.checkpoint:
                self._count_written(rows)
            else:
                missing += rows
        self._rows.extendleft(reversed(missing))
        self._inherited = ()

    def _count_written(self, rows: Sequence[EgressRow]) -> None:
        self.written += len(rows)
        self.waiting_bytes -= _held_bytes(rows)

    async def _write_all(self) -> None:
        delay_s = EAGER_RETRY_S
        try:
            while self._rows:
                rows: list[EgressRow] = []
                try:
                    if self._inherited:
                        self._leave_out_inherited(await self._sink.read_marker(self._task))
                    rows = [self._rows.popleft() for _ in range(min(len(self._rows), EAGER_ROWS_MAX))]
                    if rows:
                        await self._sink.commit(self._task, rows, {})
                except Unavailable as error:
                    logger.warning("egress %s waits %.1f s: %s", self._name, delay_s, error)
                    self.unavailable = str(error)
                    self._rows.extendleft(reversed(rows))
                    await asyncio.sleep(delay_s)
                    delay_s = min(2 * delay_s, 10.0)
                except RowsRefused as error:
                    self._drop(rows, error)
                else:
                    self._count_written(rows)
                    self.unavailable = ""
                    delay_s = EAGER_RETRY_S
        except Exception as error:  # noqa: BLE001  # As above.
            self._failed(_coded(self._name, error))
        finally:
            self._running = None

    def _drop(self, rows: list[EgressRow], error: RowsRefused) -> None:
        """Rows that can never be written. An eager egress promises them to nobody: they are counted and said."""
        refused = {index for index, _ in error.refused}
        self.refused += len(refused)
        self.waiting_bytes -= sum(len(rows[index].value) + ROW_OVERHEAD_BYTES for index in refused)
        logger.error("egress %s dropped %d rows: %s", self._name, len(refused), error)
        self._rows.extendleft(row for index, row in reversed(list(enumerate(rows))) if index not in refused)


def _held_bytes(rows: Sequence[EgressRow]) -> int:
    """About what the rows hold in memory."""
    return sum(len(row.value) for row in rows) + ROW_OVERHEAD_BYTES * len(rows)


def _coded(egress: str, error: Exception) -> PenstockError:
    """The error that ends the application when a sink raises `error`."""
    if isinstance(error, PenstockError):
        return error
    failure = FunctionError(
        "PEN0529",
        f"Egress {egress} failed with {type(error).__name__}: {error}. Correct what it names and start again: "
        "rows that are not visible are written then.",
    )
    failure.__cause__ = error
    return failure
