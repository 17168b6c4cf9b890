"""Takes a savepoint of an application on Kafka while it goes on, as somebody who takes no part in it.

    newest checkpoint -> pinned by the leader -> its rows are visible, as a later one says -> copied -> let go

What always holds: nobody waits for it: workers take checkpoints as always, and are asked for one more at most while
rows are on their way; what is copied is retained from the first file to the last, also when the leader ends meanwhile,
since every leader hears once a second what is read; the copy holds no row that is not visible where it belongs.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Final, Self

from penstock.checkpoint.blobs import Blobs
from penstock.checkpoint.control import Manifest
from penstock.checkpoint.reports import Changed, Pinned, Report, encode_message
from penstock.checkpoint.savepoint import Savepoint
from penstock.engine.background import Background, in_thread
from penstock.engine.cluster.listening import Listener
from penstock.engine.cluster.looking import read_newest
from penstock.engine.cluster.options import HEARTBEAT_MS
from penstock.engine.cluster.saved import KafkaCheckpoints
from penstock.engine.cluster.topics import Topics
from penstock.engine.savepoints import ROWS_S, Progress, nothing_to_save, rows_waiting, take
from penstock.errors import PenstockError, Refused, Unavailable
from penstock.router.kafka_batches import Record
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_writer import KafkaWriter

PIN_S: Final = 15.0
"""How long a leader has to answer: where one has died, the next one leads by then."""
LOOK_S: Final = 0.02
ROWS_LOOK_S: Final = 0.1
"""Each look reads the newest decisions anew."""
CLOSE_S: Final = 2.0


async def take_running(
    found: KafkaCheckpoints,
    kafka: KafkaOptions,
    application: str,
    blobs: Blobs,
    egresses: Collection[str],
    *,
    progress: Progress = lambda done, total: None,
) -> Savepoint:
    """A savepoint of the newest complete checkpoint of an application that runs. It has all that anybody was told.
    `found` is where that is read; `egresses` are all there are, those of the engine, too.

    Raises Refused when there is no checkpoint, or somebody goes back meanwhile, and Unavailable when nobody leads, or
    an egress takes no rows.
    """
    history, newest = await read_newest(kafka, application)
    if newest is None:
        raise nothing_to_save(found.place)
    number = newest.checkpoint
    async with Hold(kafka, application, history.generation) as hold:
        await hold.pin(number)
        await hold.wait_visible(newest)
        await found.load([number], waiting=True)
        return await in_thread(
            lambda: take(
                found,
                found.retained(number),
                blobs,
                committed=dict.fromkeys(egresses, number),
                now_ms=int(time.time() * 1000),
                progress=progress,
            )
        )


class Hold:
    """Keeps one checkpoint of an application that runs from being forgotten, for `async with`. `generation` is that of
    its topics."""

    def __init__(self, kafka: KafkaOptions, application: str, generation: int) -> None:
        self._kafka = kafka
        self._application = application
        self._reports = Topics.of(application, generation).reports
        self._name = f"savepoint-{uuid.uuid4().hex[:8]}"
        self._writer = KafkaWriter(kafka, failed=self._fail)
        self._listener = Listener(kafka, application, failed=self._fail)
        self._background = Background(self._fail)
        self._failure: BaseException | None = None
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            await self._writer.start()
            opening.push_async_callback(self._writer.close)
            opening.push_async_callback(self._let_go)
            await self._listener.start()
            opening.push_async_callback(self._listener.close)
            self._opened = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    async def pin(self, checkpoint: int) -> None:
        """Return when the leader has said that it retains the checkpoint: whoever leads does so from now on."""
        self._background.spawn(self._beat(checkpoint))
        with suppress(TimeoutError):
            async with asyncio.timeout(PIN_S):
                while checkpoint not in self._listener.pinned:
                    self._raise_failure()
                    await asyncio.sleep(LOOK_S)
                return
        raise Unavailable(
            "PEN0446",
            f"No savepoint was taken: whoever leads {self._application} has not said within {PIN_S:g} s that "
            f"checkpoint {checkpoint} stays. Nobody leads it at present, or an older Penstock does: see penstock "
            "status, and try again.",
        )

    async def wait_visible(self, taken: Manifest) -> None:
        """Return when all rows that the checkpoint has decided are visible: a later one says so, which is asked for."""
        number, waiting = taken.checkpoint, list[int]()
        with suppress(TimeoutError):
            async with asyncio.timeout(ROWS_S):
                while True:
                    self._raise_failure()
                    history, newest = await read_newest(self._kafka, self._application)
                    if newest is None or not newest.lineage.contains(taken.lineage.attempt, number):
                        raise _gone_back(self._application, number)
                    waiting = [part.task for part in newest.parts if part.visible < number]
                    if not waiting:
                        return
                    if history.attempt is not None:
                        self._report(Changed(self._name, history.attempt.lineage.attempt, "savepoint"))
                    await asyncio.sleep(ROWS_LOOK_S)
        raise rows_waiting(number, f"Tasks whose rows wait: {', '.join(map(str, waiting)) or 'not known'}")

    async def _beat(self, checkpoint: int) -> None:
        while True:
            self._report(Pinned(self._name, checkpoint))
            await asyncio.sleep(HEARTBEAT_MS / 1000)

    async def _let_go(self) -> None:
        """Say so, if that is possible: a leader that does not hear it lets go by itself after a while."""
        await self._background.cancel_all()
        self._report(Pinned(self._name, 0))
        with suppress(PenstockError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._writer.flush()

    def _report(self, report: Report) -> None:
        self._writer.append(Record(self._reports, 0, encode_message(report)))

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _gone_back(application: str, checkpoint: int) -> Refused:
    return Refused(
        "PEN0447",
        f"No savepoint was taken: {application} does not continue checkpoint {checkpoint} any more, somebody has gone "
        "back to an earlier one. Take the savepoint again.",
    )
