"""Which of the endpoints that may be used takes the next attempt.

    ROUND_ROBIN     one after the other
    LEAST_REQUEST   of `choice_count` drawn by chance, the one with the fewest requests under way
    PEAK_EWMA       of two drawn by chance, the one with the least latency times requests under way
    RING_HASH       the owner of the id; the next one of the ring while the owner can't be used or has its bounded load
    RANDOM          by chance

What always holds: the draws of one choice are different endpoints, and up to four endpoints are all looked at, because
two draws with repetition pick the busier one of two in every fourth choice. What a calling process knows of an endpoint
is what it saw itself: requests of others don't count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from math import ceil, exp
from typing import Final

from penstock.mesh.policies.backoff import Draw
from penstock.mesh.policies.host import Host
from penstock.mesh.policies.ring import Ring
from penstock.mesh.policies.settings import Balance, LoadBalancing

FULL_SCAN_MAX: Final = 4
EWMA_DECAY_S: Final = 10.0
"""After this time a latency counts for a third. Linkerd's default."""


class Load:
    """What one calling process knows of one endpoint."""

    __slots__ = ("_ewma_s", "_seen_s", "active")

    def __init__(self) -> None:
        self.active = 0
        self._ewma_s = 0.0
        self._seen_s = 0.0

    def observe(self, latency_s: float, now_s: float) -> None:
        """One attempt took so long. A peak counts at once and in full; what is better than the average, slowly."""
        if latency_s > self._ewma_s:
            self._ewma_s = latency_s
        else:
            weight = exp((self._seen_s - now_s) / EWMA_DECAY_S)
            self._ewma_s = self._ewma_s * weight + latency_s * (1 - weight)
        self._seen_s = now_s

    def cost(self, now_s: float) -> float:
        """What one more request would wait, about. One that was slow long ago gets another chance."""
        return self._ewma_s * exp((self._seen_s - now_s) / EWMA_DECAY_S) * (self.active + 1)


class Balancer:
    """Chooses for one function, and knows the load of its endpoints."""

    def __init__(self, settings: LoadBalancing, draw: Draw) -> None:
        self._settings = settings
        self._draw = draw
        self._turn = -1
        self._loads: dict[str, Load] = {}
        self._rings: dict[tuple[str, ...], Ring] = {}

    def change(self, settings: LoadBalancing) -> None:
        """Choose in another way from now on; what is known of the endpoints stays."""
        if settings.minimum_ring_size != self._settings.minimum_ring_size:
            self._rings.clear()
        self._settings = settings

    def load(self, name: str) -> Load:
        """Of one endpoint."""
        found = self._loads.get(name)
        if found is None:
            found = self._loads[name] = Load()
        return found

    def keep_only(self, names: frozenset[str]) -> None:
        """Forget the endpoints that are gone."""
        self._loads = {name: load for name, load in self._loads.items() if name in names or load.active}

    def choose(self, usable: Sequence[Host], endpoints: Sequence[Host], id: str, now_s: float) -> Host:
        """One of `usable`, which are not none. The ring is that of all `endpoints`, so that one that is avoided for a
        while owns the same ids when it is back."""
        if len(usable) == 1:
            return usable[0]
        match self._settings.policy:
            case Balance.ROUND_ROBIN:
                self._turn += 1
                return usable[self._turn % len(usable)]
            case Balance.RANDOM:
                return usable[int(self._draw() * len(usable))]
            case Balance.LEAST_REQUEST:
                return self._least(usable, self._settings.choice_count, lambda load: load.active)
            case Balance.PEAK_EWMA:
                return self._least(usable, 2, lambda load: load.cost(now_s))
            case Balance.RING_HASH:
                return self._next_on_ring(usable, endpoints, id)

    def _least(self, usable: Sequence[Host], count: int, cost: Callable[[Load], float]) -> Host:
        drawn = self._drawn(usable, len(usable) if len(usable) <= FULL_SCAN_MAX else count)
        return min(drawn, key=lambda host: cost(self.load(host.name)))

    def _drawn(self, usable: Sequence[Host], count: int) -> Sequence[Host]:
        """`count` of them, all different, in an order by chance: of equals, the first one is taken."""
        pool = list(usable)
        for place in range(min(count, len(pool))):
            other = place + int(self._draw() * (len(pool) - place))
            pool[place], pool[other] = pool[other], pool[place]
        return pool[:count]

    def _next_on_ring(self, usable: Sequence[Host], endpoints: Sequence[Host], id: str) -> Host:
        by_name = {host.name: host for host in usable}
        ring = self._ring(tuple(sorted(host.name for host in endpoints)))
        candidates = (by_name[name] for name in ring.order(id) if name in by_name)
        if not self._settings.hash_balance_factor:
            return next(candidates)
        ordered = list(candidates)
        under_way = sum(self.load(name).active for name in by_name)
        bound = ceil((under_way + 1) * self._settings.hash_balance_factor / 100 / len(ordered))
        # Someone is below the bound: it is no less than the average with this request.
        return next(host for host in ordered if self.load(host.name).active < bound)

    def _ring(self, names: tuple[str, ...]) -> Ring:
        ring = self._rings.get(names)
        if ring is None:
            # Subsets have rings of their own; what falls out is what was built first.
            for old in list(islice(self._rings, max(0, len(self._rings) - 7))):
                del self._rings[old]
            ring = self._rings[names] = Ring(names, self._settings.minimum_ring_size)
        return ring
