"""Leads when nobody does: the role of the leader, taken by a worker.

What always holds: whoever takes the role fences whoever had it; a candidate waits until the leader has been silent for
longer than a session's third, and than a slow machine may make it, each a little differently, so that few try at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import replace
from typing import Protocol

from penstock.checkpoint.leader import LeaderOptions
from penstock.checkpoint.reports import Ended
from penstock.checkpoint.store import UNREFERENCED_S, BaseStore
from penstock.engine.cluster.leading import LeaderService
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.trimming import Trimming
from penstock.engine.config import Config
from penstock.errors import Fenced, Unavailable
from penstock.functions.app import App
from penstock.logs import logger
from penstock.router.kafka_topics import Ensured

LOOK_S = 0.5
PATIENCE_MIN_S = 2.5
"""A leader shows itself every second. Where a session is short, one that is late must not lose the role for that: the
next would be late, too, and nobody would lead for long enough to miss a worker."""
FIRST_S = 1.2
"""Where nobody was ever heard to lead: a little longer than a leader is silent."""
ENDED_MAX = 100
"""Ends of processes that are remembered for the next leader: more than one machine has workers."""


class Hears(Protocol):
    """Who listens to the leader there is."""

    leader: str
    """Who was heard to lead last; "" when nobody ever was."""
    leader_heard_s: float
    """When, by the clock of the event loop."""


class Candidate:
    """See the module. `at_once`: it takes the role first, and looks for others only when somebody takes it away."""

    def __init__(
        self,
        cluster: ClusterOptions,
        options: LeaderOptions,
        link: Hears,
        store: BaseStore,
        *,
        at_once: bool = False,
    ) -> None:
        self._cluster = cluster
        self._options = options
        self._link = link
        self._store = store
        self._at_once = at_once
        self.service: LeaderService | None = None
        """While this one leads."""
        self._written = 0
        self._ended: deque[Ended] = deque(maxlen=ENDED_MAX)

    def hear(self, ended: Ended) -> None:
        """A process has ended that this one was told of. Every leader here learns it, also one that begins later: what
        is in the reports by then it does not read."""
        self._ended.append(ended)
        if self.service is not None:
            self.service.hear(ended)

    async def run(self) -> None:
        """Lead whenever nobody does. Never returns; raises what no leader can get over."""
        while not _cancelled():
            usual_s = max(self._cluster.session_ms / 3000, PATIENCE_MIN_S)
            patience_s = (usual_s if self._link.leader else FIRST_S) * (1 + random.random() / 4)
            silent_s = asyncio.get_running_loop().time() - self._link.leader_heard_s
            if silent_s < patience_s and not self._at_once:
                await asyncio.sleep(min(LOOK_S, patience_s / 4))
                continue
            self._at_once = False
            await self._lead()
        raise asyncio.CancelledError

    @property
    def written(self) -> int:
        """Decisions of this process, each in a transaction."""
        return self._written + (self.service.written if self.service is not None else 0)

    async def _lead(self) -> None:
        service = self.service = LeaderService(
            self._cluster.kafka,
            self._options,
            clock=time.time,
            trimming=Trimming(
                self._cluster.kafka,
                self._options.application,
                collect=self._collect,
                generation=self._options.generation,
            ),
        )
        for ended in self._ended:
            service.hear(ended)
        try:
            await service.run()
        except (Fenced, Unavailable) as error:
            logger.warning("%s leads no longer: %s", self._options.name, error)
        finally:
            self.service = None
            self._written += service.written
        if service.leader is not None and service.leader.attempt is not None:
            # What a person chose to go back to was gone back to: the next time would undo what was done since.
            self._options = replace(self._options, from_checkpoint=None, fresh=False)
        self._link.leader_heard_s = asyncio.get_running_loop().time()

    def _collect(self, bases: frozenset[str], decided_s: float) -> None:
        self._store.collect(bases, decided_s - UNREFERENCED_S)


def _cancelled() -> bool:
    """Whether somebody wants this task to end. The client library, while it closes, may not let that through."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def leader_options(
    app: App, config: Config, cluster: ClusterOptions, name: str, ensured: Ensured, generation: int
) -> LeaderOptions:
    """How an application is led, with topics of this generation."""
    return LeaderOptions(
        name=name,
        application=app.name,
        tasks=config.parallelism,
        fingerprints=app.fingerprints(),
        interval_ms=config.interval_ms,
        timeout_ms=config.checkpoint_timeout_ms,
        session_ms=cluster.session_ms,
        settle_ms=cluster.settle_ms,
        workers_expected=cluster.workers_expected,
        from_checkpoint=config.from_checkpoint,
        fresh=config.fresh,
        until_done=config.until_done,
        topics=dict(ensured.incarnations),
        retention=config.retention,
        generation=generation,
    )
