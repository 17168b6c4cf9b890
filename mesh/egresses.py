"""Writes the rows that invocations have committed, each egress by one process at a time.

    committed rows --> batch, with a number --> sink: rows and that number in one step --> forgotten
                             ^                              |
                             +------- after a crash --------+  the sink says which number it has

What always holds: what is in a batch does not change once its number has been given to the sink, but for rows that the
sink refuses, which become dead letters before; a batch is written when the sink has not seen its number, and forgotten
when it has. So a sink that keeps a marker has every row once, and one that can't has a row again when its process was
killed at that moment. The process that writes an egress has claimed it; when its session is fenced, another goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from penstock.errors import ConfigurationError, Fenced, Unavailable
from penstock.functions.app import Egress
from penstock.functions.kafka_egress import KafkaEgress
from penstock.logs import logger
from penstock.mesh.store import Batch, Store
from penstock.records import EgressRow
from penstock.router.egress import sink_for
from penstock.router.sink import RowsRefused, Sink

ROWS_MAX: Final = 1_000
"""In one batch: one write of a file, one transaction of a database."""
POLL_S: Final = 0.25
"""Between two looks for rows of other processes. Rows of this one do not wait for it."""
CLAIM_S: Final = 1.0
"""Between two attempts to claim what another has."""
TICK_S: Final = 1.0
BACKOFF_S: Final = 1.0
_ATTEMPT: Final = 1
"""Markers name the attempt that a checkpoint belongs to. There are no attempts here: batches are numbered for ever."""

T = TypeVar("T")


def check_egress(egress: Egress) -> None:
    """Raise ConfigurationError for one that can't be written here."""
    if isinstance(egress.spec, KafkaEgress):
        raise ConfigurationError(
            "PEN0826",
            f"Egress {egress.name} writes to Kafka in transactions that belong to checkpoints, and the mesh has none. "
            "Use FileEgress, PostgresEgress or HttpEgress, or run the application with penstock run --kafka.",
        )


class EgressWriter:
    """Writes one egress as long as its session has the claim."""

    def __init__(self, egress: Egress, store: Store, session: int, *, application: str) -> None:
        self.name = egress.name
        self._spec = egress.spec
        self._store = store
        self._session = session
        self._application = application
        self._sink: Sink | None = None
        self._written: dict[int, int] = {}
        """Lane -> number of the last batch that the sink is known to have."""
        self._event = asyncio.Event()
        self._closing = False
        self._ticked_s = 0.0
        self.rows = 0
        """Written since the start."""
        self.unavailable = ""
        """Why the sink takes nothing at present; empty when it does."""

    def wake(self) -> None:
        """There may be rows."""
        self._event.set()

    async def run(self) -> None:
        """Write until `close`. Raises Fenced when the session was, and ConfigurationError for a sink that can't be."""
        while not self._closing:
            pause_s = POLL_S
            try:
                if not await self._store.claim(self._session, f"egress {self.name}"):
                    pause_s = CLAIM_S
                    await self._give_up(final=False)
                elif await self._write_next():
                    continue
                await self._tick()
                self.unavailable = ""
            except Unavailable as error:
                self._tell(error)
                self._written.clear()
                pause_s = BACKOFF_S
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._event.wait()
            self._event.clear()

    async def close(self, task: asyncio.Task[None]) -> None:
        """End `task`, which is `run`, and finish what was written."""
        self._closing = True
        self._event.set()
        await asyncio.wait([task])
        await self._give_up(final=not task.cancelled() and task.exception() is None)

    # One batch.

    async def _write_next(self) -> bool:
        """Whether there was anything to write."""
        batches = await self._store.open_batch(self._session, self.name, ROWS_MAX)
        for batch in batches:
            await self._write(batch)
            await self._store.close_batch(self._session, self.name, batch)
        return bool(batches)

    async def _write(self, batch: Batch) -> None:
        sink = await self._opened()
        if batch.lane not in self._written:
            marker = await self._of_sink(sink.read_marker(batch.lane))
            self._written[batch.lane] = marker.get(_ATTEMPT, 0)
        if self._written[batch.lane] >= batch.number:
            return
        rows = list(batch.rows)
        while True:
            try:
                await self._of_sink(sink.commit(batch.lane, [row for _, row in rows], {_ATTEMPT: batch.number}))
                break
            except RowsRefused as error:
                rows = await self._refused(rows, error)
        self._written[batch.lane] = batch.number
        self.rows += len(rows)

    async def _refused(self, rows: list[tuple[int, EgressRow]], error: RowsRefused) -> list[tuple[int, EgressRow]]:
        """Make dead letters of what the sink does not take; returns the others."""
        reasons = {rows[index][0]: f"{error.code} {reason}" for index, reason in error.refused}
        assert reasons, "an error of rows names them"
        logger.error("Egress %s: %s", self.name, error)
        await self._store.refuse_rows(self._session, reasons, time.time_ns() // 1_000_000)
        return [(number, row) for number, row in rows if number not in reasons]

    # The sink.

    async def _opened(self) -> Sink:
        if self._sink is None:
            sink = sink_for(
                self._spec,
                Path(),
                application=self._application,
                egress=self.name,
                instance=await self._store.instance(),
            )
            await self._of_sink(sink.open())
            self._sink = sink
        return self._sink

    async def _of_sink(self, work: Awaitable[T]) -> T:
        """What a sink does. Another process that still has it is the one that had the claim: it will go."""
        try:
            return await work
        except Fenced as error:
            await self._give_up(final=False)
            raise Unavailable(error.code, error.message) from error

    async def _tick(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._sink is not None and now_s >= self._ticked_s + TICK_S:
            self._ticked_s = now_s
            await self._of_sink(self._sink.tick())

    async def _give_up(self, *, final: bool) -> None:
        sink, self._sink = self._sink, None
        self._written.clear()
        if sink is not None:
            await sink.close(final)

    def _tell(self, error: Unavailable) -> None:
        if self.unavailable != str(error):
            logger.warning("Egress %s: %s", self.name, error)
        self.unavailable = str(error)
