"""Who serves what: endpoints under leases, and a view of them that goes on serving when nobody can be asked.

A host registers its endpoint and holds a lease, which renews itself; a caller reads a view, which is kept fresh beside
the requests. What always holds: reading the view waits for nothing and never fails; the number of a view rises with
every change that is seen; an endpoint whose holder has stopped renewing leaves the view when its lease has run out, one
that is released leaves it at the next look. While the registry can't be asked, nothing leaves the view, and when it
can again, every lease runs anew from then, since nobody could renew meanwhile: a registry that dies takes no request
with it.

Whose turn it is and which endpoint is asked is for others to say (`caller`, `policies`). What a host that was taken for
dead still writes is the store's to refuse: a lease says where to ask, never who may write.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from penstock.errors import PenstockError, Unavailable

log = logging.getLogger("penstock")

POLL_S: Final = 0.5
"""Between two looks. With the time of a request this bounds how long a new or released endpoint goes unseen."""
RENEWALS_PER_TTL: Final = 3
"""One renewal may be lost, and one come late, before a lease runs out."""
READ_S: Final = 5.0
"""A look that takes longer counts as failed; it is of no use when the next ones are due."""


class Endpoint(NamedTuple):
    """One incarnation of a host: where it listens and what it serves."""

    name: str
    """Of this incarnation alone: a host that is started again has another."""
    url: str
    """`http://10.0.0.7:8080`, without a slash at the end."""
    version: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    functions: frozenset[str] = frozenset()
    """The typenames served. Empty: every one."""
    ready: bool = False
    session: int = 0
    """Of its store. An outbox is adopted from it when the host is gone."""
    zone: str = ""

    def serves(self, function: str) -> bool:
        return not self.functions or function in self.functions


class View(NamedTuple):
    """The endpoints as they were last seen, by name."""

    number: int
    """Rises with every change, within one process: what is computed from a view may be kept until it differs."""
    endpoints: tuple[Endpoint, ...]

    def serving(self, function: str) -> tuple[Endpoint, ...]:
        """Those that are ready and serve `function`."""
        return tuple(endpoint for endpoint in self.endpoints if endpoint.ready and endpoint.serves(function))

    def hosts(self, functions: Iterable[str]) -> tuple[Endpoint, ...]:
        """Those that serve any of `functions`, ready or not: the others are sidecars and gateways."""
        wanted = frozenset(functions)
        return tuple(each for each in self.endpoints if not each.functions or each.functions & wanted)


class Lease(Protocol):
    """Held by a host. Renews itself until it is released."""

    async def set_ready(self, ready: bool) -> None:
        """Say whether requests are welcome. When the registry can't be asked it is said with the next renewal."""

    async def release(self) -> None:
        """Leave the registry at once. When it can't be asked, the lease runs out by itself."""


class Registry(Protocol):
    """What hosts and callers need. `open` it before anything else."""

    async def open(self) -> None:
        """Look for the first time. One that can't be asked yet is asked again and again; until then the view is empty.
        Raises ConfigurationError for what waiting does not mend."""

    async def register(self, endpoint: Endpoint, ttl_s: float) -> Lease: ...

    async def forget(self, name: str) -> None:
        """Take out an endpoint that is known to be dead, before its lease runs out. Raises Unavailable."""

    def view(self) -> View: ...

    async def changed(self, number: int) -> View:
        """The view, as soon as its number is another than `number`."""

    async def close(self) -> None: ...


class Sighting(NamedTuple):
    """One endpoint in a listing."""

    endpoint: Endpoint
    ttl_s: float = math.inf
    """Without a lease: as long as it is listed."""
    renewal: int = 0
    """Differs from look to look when the lease was renewed between them."""
    age_s: float = 0.0
    """Since the last renewal, by the clock of whoever listed it. Used only the first time it is met."""


class Listing(NamedTuple):
    """What a registry says at one moment."""

    sightings: Sequence[Sighting]
    origin: str = ""
    """Another one says that the registry began anew, empty: what it does not list has not been released."""


class _Known(NamedTuple):
    sighting: Sighting
    renewed_s: float
    """On the clock of the one who looks."""
    carried: bool
    """Whether it is known only from before the registry began anew."""

    def holds(self, now_s: float) -> bool:
        return now_s - self.renewed_s < self.sighting.ttl_s


class Sightings:
    """Judges leases by what one observer saw. Its own clock alone counts: those of hosts may be wrong, or jump."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._origin: str | None = None
        self._blind = False

    def failed(self) -> None:
        """A look saw nothing: until the next one that does, no lease can run out."""
        self._blind = True

    def seen(self, listing: Listing, now_s: float) -> tuple[Endpoint, ...]:
        """The endpoints whose leases hold, by name."""
        if self._blind:
            self._known = {name: known._replace(renewed_s=now_s) for name, known in self._known.items()}
            self._blind = False
        began_anew = self._origin is not None and listing.origin != self._origin
        self._origin = listing.origin
        listed = {sighting.endpoint.name: self._met(sighting, now_s) for sighting in listing.sightings}
        for name, known in self._known.items():
            if name not in listed and (known.carried or began_anew) and known.holds(now_s):
                listed[name] = known._replace(carried=True)
        self._known = listed
        return tuple(listed[name].sighting.endpoint for name in sorted(listed) if listed[name].holds(now_s))

    def _met(self, sighting: Sighting, now_s: float) -> _Known:
        known = self._known.get(sighting.endpoint.name)
        if known is None:
            renewed_s = now_s - max(0.0, sighting.age_s)
        elif known.sighting.renewal != sighting.renewal:
            renewed_s = now_s
        else:
            renewed_s = known.renewed_s
        return _Known(sighting, renewed_s, carried=False)


class Watch:
    """Keeps a view fresh by looking again and again. The part that registries, whatever they are, have in common."""

    def __init__(
        self,
        look: Callable[[], Awaitable[Listing]],
        *,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._poll_s = poll_s
        self._clock = clock
        self._sightings = Sightings()
        self._view = View(0, ())
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()
        self._warned = False

    async def start(self) -> None:
        assert self._task is None, "a watch is started once"
        await self.refresh()
        self._task = asyncio.create_task(self._run())

    def view(self) -> View:
        return self._view

    async def changed(self, number: int) -> View:
        while self._view.number == number:
            await self._changed.wait()
        return self._view

    async def refresh(self) -> None:
        """Look now. A registry that can't be asked leaves the view as it is, with one warning for as long as that
        lasts; ConfigurationError goes to whoever starts the watch, and counts as such an outage afterwards."""
        async with self._looking:
            try:
                async with asyncio.timeout(READ_S):
                    listing = await self._look()
            except TimeoutError:
                self._missed(Unavailable("PEN0870", f"The registry has not answered for {READ_S:g} s."))
                return
            except PenstockError as error:
                if self._task is None and not isinstance(error, Unavailable):
                    raise
                self._missed(error)
                return
            if self._warned:
                self._warned = False
                log.info("The registry answers again.")
            self._show(self._sightings.seen(listing, self._clock()))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self.refresh()

    def _missed(self, error: PenstockError) -> None:
        self._sightings.failed()
        if not self._warned:
            self._warned = True
            log.warning("%s The last view goes on serving: %d endpoints.", error, len(self._view.endpoints))

    def _show(self, endpoints: tuple[Endpoint, ...]) -> None:
        if endpoints != self._view.endpoints:
            self._view = View(self._view.number + 1, endpoints)
            self._changed.set()
            self._changed = asyncio.Event()


class RenewingLease:
    """A lease over a place that endpoints are written to. What it could not write it writes with the next renewal."""

    def __init__(
        self,
        endpoint: Endpoint,
        ttl_s: float,
        *,
        write: Callable[[Endpoint, float], Awaitable[None]],
        remove: Callable[[str], Awaitable[None]],
    ) -> None:
        self._endpoint = endpoint
        self._ttl_s = ttl_s
        self._write = write
        self._remove = remove
        self._writing = asyncio.Lock()
        self._warned = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._renew()
        self._task = asyncio.create_task(self._run())

    async def set_ready(self, ready: bool) -> None:
        self._endpoint = self._endpoint._replace(ready=ready)
        await self._renew()

    async def release(self) -> None:
        await self.stop()
        async with self._writing:
            try:
                await self._remove(self._endpoint.name)
            except Unavailable as error:
                log.warning("%s %s leaves it when its lease runs out.", error, self._endpoint.name)

    async def stop(self) -> None:
        """Renew no more. What is written stays until it runs out."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / RENEWALS_PER_TTL)
            await self._renew()

    async def _renew(self) -> None:
        async with self._writing:
            try:
                await self._write(self._endpoint, self._ttl_s)
            except Unavailable as error:
                if not self._warned:
                    log.warning("%s %s goes on serving and is renewed when it can be.", error, self._endpoint.name)
                self._warned = True
            else:
                self._warned = False


class LocalRegistry:
    """Endpoints of this process, or known beforehand: nothing to ask, nothing that runs out."""

    def __init__(self, endpoints: Iterable[Endpoint] = ()) -> None:
        self._endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self._watch = Watch(self._listing)

    async def open(self) -> None:
        await self._watch.refresh()

    async def register(self, endpoint: Endpoint, ttl_s: float) -> Lease:
        lease = RenewingLease(endpoint, ttl_s, write=self._write, remove=self.forget)
        await lease.set_ready(endpoint.ready)
        return lease

    async def forget(self, name: str) -> None:
        self._endpoints.pop(name, None)
        await self._watch.refresh()

    def view(self) -> View:
        return self._watch.view()

    async def changed(self, number: int) -> View:
        return await self._watch.changed(number)

    async def close(self) -> None:
        await self._watch.close()

    async def _write(self, endpoint: Endpoint, _: float) -> None:
        self._endpoints[endpoint.name] = endpoint
        await self._watch.refresh()

    async def _listing(self) -> Listing:
        return Listing([Sighting(endpoint) for endpoint in self._endpoints.values()])
