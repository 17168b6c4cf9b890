"""Leads when nobody does: the role of the leader, taken by a worker.

What always holds: whoever takes the role fences whoever had it; a candidate waits until the leader has been silent for
longer than a session's third, each a little differently, so that few try at once.
"""

from __future__ import annotations

import asyncio
import random
import time

from penstock.checkpoint.leader import LeaderOptions
from penstock.checkpoint.store import BaseStore
from penstock.engine.cluster.leading import LeaderService
from penstock.engine.cluster.link import LeaderLink
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.trimming import Trimming
from penstock.engine.logs import logger
from penstock.errors import Fenced, Unavailable

LOOK_S = 0.5
FIRST_S = 1.2
"""Where nobody was ever heard to lead: a little longer than a leader is silent."""


class Candidate:
    """See the module."""

    def __init__(self, cluster: ClusterOptions, options: LeaderOptions, link: LeaderLink, store: BaseStore) -> None:
        self._cluster = cluster
        self._options = options
        self._link = link
        self._store = store
        self.service: LeaderService | None = None
        """While this worker leads."""

    async def run(self) -> None:
        """Lead whenever nobody does. Never returns; raises what no leader can get over."""
        while True:
            patience_s = (self._cluster.session_ms / 3000 if self._link.leader else FIRST_S) * (1 + random.random() / 4)
            if asyncio.get_running_loop().time() - self._link.leader_heard_s < patience_s:
                await asyncio.sleep(min(LOOK_S, patience_s / 4))
                continue
            await self._lead()

    async def _lead(self) -> None:
        self.service = LeaderService(
            self._cluster.kafka,
            self._options,
            clock=time.time,
            trimming=Trimming(
                self._cluster.kafka, self._options.application, collect=lambda bases: collect(self._store, bases)
            ),
        )
        try:
            await self.service.run()
        except (Fenced, Unavailable) as error:
            logger.warning("%s leads no longer: %s", self._options.name, error)
        finally:
            self.service = None
        self._link.leader_heard_s = asyncio.get_running_loop().time()


def collect(store: BaseStore, bases: frozenset[str]) -> None:
    """Delete the bases that are old and that no retained checkpoint builds on."""
    from penstock.checkpoint.store import UNREFERENCED_S

    store.collect(bases, time.time() - UNREFERENCED_S)
