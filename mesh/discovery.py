"""Registries that somebody else keeps: names in DNS, endpoint slices of Kubernetes; and which one a URL means.

    registry.db, sqlite:/run/shop/registry.db   an embedded one, which hosts put themselves into
    dns://shop.internal:8080                    every address of a name, at one port
    kubernetes://shop                           the pods of a service, in the namespace of this pod
    kubernetes://eu/shop:http                   ... of the namespace eu, at the port named http
    ...?tls                                     whose hosts have certificates, which nobody but the hosts could say

What always holds: a host that registers where somebody else keeps the list changes nothing there, and is not refused
either: whether it is ready, its probes say. A name that can't be resolved is an outage like any other, which takes
nothing out of the view: addresses that are no longer right cost a connection each, and no addresses cost every request.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from penstock.errors import ConfigurationError, Unavailable
from penstock.mesh.registry import Endpoint, Lease, Listing, Registry, Sighting, View, Watch
from penstock.mesh.sqlite_registry import SqliteRegistry

DNS_POLL_S: Final = 2.0
"""Resolvers keep answers for at least so long; those of Kubernetes for five seconds or thirty."""


class Source(Protocol):
    """A list that is kept elsewhere."""

    async def look(self) -> Listing:
        """Raises Unavailable, or ConfigurationError for what waiting does not mend."""

    async def close(self) -> None: ...


class PlatformRegistry:
    """A `Registry` over a `Source`."""

    def __init__(self, source: Source, poll_s: float) -> None:
        self._source = source
        self._watch = Watch(source.look, poll_s=poll_s)

    async def open(self) -> None:
        await self._watch.start()

    async def register(self, endpoint: Endpoint, ttl_s: float) -> Lease:
        return _Kept()

    async def forget(self, name: str) -> None:
        """Nothing: the platform finds out by itself."""

    def view(self) -> View:
        return self._watch.view()

    async def changed(self, number: int) -> View:
        return await self._watch.changed(number)

    async def close(self) -> None:
        await self._watch.close()
        await self._source.close()


class _Kept:
    """The lease of a host whose place the platform keeps."""

    async def set_ready(self, ready: bool) -> None:
        """Nothing: the probe of the platform asks /actuator/health/readiness."""

    async def release(self) -> None:
        """Nothing: the platform ends the host, so it knows."""


class DnsNames:
    """Every address that a name has, as the resolver of this machine says."""

    def __init__(self, host: str, port: int, *, scheme: str = "http") -> None:
        self._host = host
        self._port = port
        self._scheme = scheme

    async def look(self) -> Listing:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unavailable(
                "PEN0870", f"The name {self._host} of the registry can't be resolved: {error.strerror}."
            ) from error
        places = {_place(str(address[0]), self._port) for _, _, _, _, address in found}
        return Listing([Sighting(Endpoint(place, f"{self._scheme}://{place}", ready=True)) for place in sorted(places)])

    async def close(self) -> None:
        """Nothing is open between two looks."""


def registry_of(url: str, environment: Mapping[str, str]) -> Registry:
    """The registry that `url` means; see the module. Raises ConfigurationError."""
    scheme, separator, rest = url.partition(":")
    if not separator or not scheme.isalpha():
        return SqliteRegistry(Path(url))
    match scheme:
        case "sqlite":
            return SqliteRegistry(Path(rest))
        case "dns":
            return PlatformRegistry(DnsNames(*_host_and_port(url), scheme=_scheme(url)), DNS_POLL_S)
        case "kubernetes":
            from penstock.mesh.kubernetes import POLL_S, EndpointSlices, cluster_of_this_pod, service_of

            cluster = cluster_of_this_pod(environment)
            service = service_of(url, cluster.namespace)
            return PlatformRegistry(EndpointSlices(cluster, service, scheme=_scheme(url)), POLL_S)
        case _:
            raise ConfigurationError(
                "PEN0871",
                f"There is no registry of the kind {scheme!r}: {url}. Name a file, dns://NAME:PORT or "
                "kubernetes://SERVICE.",
            )


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ConfigurationError(
            "PEN0871", f"{url} names no registry: a name and a port are needed. Write dns://shop.internal:8080."
        )
    return host, port


def _scheme(url: str) -> str:
    query = urlsplit(url).query
    if query not in ("", "tls"):
        raise ConfigurationError("PEN0871", f"{url} says {query!r}, and only ?tls can be said there.")
    return "https" if query else "http"


def _place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
