"""The pods of a Kubernetes service, from its endpoint slices: a small client for one request.

What always holds: the list is asked for anew at every look and answered from the memory of the API server
(`resourceVersion=0`), so it may be a little old, and a watch that has to be kept alive and resumed is not needed; the
token is read anew as well, since the kubelet replaces it; a pod that is in two slices is one endpoint.

A service account needs `list` of `endpointslices` in `discovery.k8s.io`. What an endpoint slice does not say is not
known: every pod of the service serves every function, and its version is that of the service.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec

from penstock.errors import ConfigurationError, Unavailable
from penstock.mesh.registry import READ_S, Endpoint, Listing, Sighting

POLL_S: Final = 1.0
ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
VERSION_LABELS: Final = ("app.kubernetes.io/version", "version")


class Cluster(NamedTuple):
    """Where the API server is, and how it is spoken to."""

    url: str
    token: Path | None
    authorities: Path | None
    namespace: str


class Service(NamedTuple):
    namespace: str
    name: str
    port: str
    """By name or number; empty: the first there is."""


class _Conditions(msgspec.Struct):
    ready: bool | None = None


class _Target(msgspec.Struct):
    name: str = ""
    uid: str = ""


class _Endpoint(msgspec.Struct, rename="camel"):
    addresses: list[str] = []
    conditions: _Conditions = msgspec.field(default_factory=_Conditions)
    target_ref: _Target | None = None
    zone: str | None = None


class _Port(msgspec.Struct):
    name: str | None = None
    port: int | None = None


class _Metadata(msgspec.Struct):
    labels: dict[str, str] | None = None


class _Slice(msgspec.Struct, rename="camel"):
    metadata: _Metadata
    address_type: str = "IPv4"
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _SliceList(msgspec.Struct):
    items: list[_Slice]


_decoder: Final = msgspec.json.Decoder(_SliceList)


class EndpointSlices:
    """A `Source` of the endpoints of `service`."""

    def __init__(self, cluster: Cluster, service: Service, *, scheme: str = "http") -> None:
        self._cluster = cluster
        self._scheme = scheme
        self._service = service
        self._session: aiohttp.ClientSession | None = None

    async def look(self) -> Listing:
        body = await self._asked()
        try:
            slices = _decoder.decode(body).items
        except msgspec.DecodeError as error:
            raise Unavailable(
                "PEN0870", f"{self._cluster.url} answers with something else than endpoint slices: {error}."
            ) from error
        found: dict[str, Endpoint] = {}
        for endpoint in _endpoints(slices, self._service.port, self._scheme):
            # While a slice is split, a pod is in both, and may be ready in one alone.
            if endpoint.ready or endpoint.name not in found:
                found[endpoint.name] = endpoint
        return Listing([Sighting(endpoint) for endpoint in found.values()])

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _asked(self) -> bytes:
        service, cluster = self._service, self._cluster
        url = f"{cluster.url}/apis/discovery.k8s.io/v1/namespaces/{service.namespace}/endpointslices"
        query = {"labelSelector": f"kubernetes.io/service-name={service.name}", "resourceVersion": "0"}
        try:
            session = self._opened()
            async with session.get(url, params=query, headers=self._authorization()) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable("PEN0870", f"{cluster.url} can't be asked for endpoint slices: {error!r}.") from error
        if response.status in (401, 403):
            raise ConfigurationError(
                "PEN0871",
                f"{cluster.url} refuses to list endpoint slices of {service.namespace} ({response.status}). Allow the "
                "service account of this pod to list endpointslices of discovery.k8s.io there.",
            )
        if response.status != 200:
            raise Unavailable("PEN0870", f"{cluster.url} answers {response.status} when asked for endpoint slices.")
        return body

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            authorities = self._cluster.authorities
            tls = ssl.create_default_context(cafile=authorities) if authorities else True
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls), timeout=aiohttp.ClientTimeout(total=READ_S)
            )
        return self._session

    def _authorization(self) -> dict[str, str]:
        token = self._cluster.token
        return {} if token is None else {"Authorization": f"Bearer {token.read_text(encoding='ascii').strip()}"}


def cluster_of_this_pod(environment: Mapping[str, str], account: Path = ACCOUNT) -> Cluster:
    """Raises ConfigurationError outside of a pod."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
    if not host or not port or not (account / "token").exists():
        raise ConfigurationError(
            "PEN0871",
            "This is no pod of Kubernetes, or one without a service account: KUBERNETES_SERVICE_HOST or "
            f"{account / 'token'} is missing. Use another registry here.",
        )
    host = f"[{host}]" if ":" in host else host
    namespace = (account / "namespace").read_text(encoding="ascii").strip()
    return Cluster(f"https://{host}:{port}", account / "token", account / "ca.crt", namespace)


def service_of(url: str, namespace: str) -> Service:
    """What `kubernetes://[NAMESPACE/]SERVICE[:PORT]` means. Raises ConfigurationError."""
    parts = urlsplit(url)
    first, second = parts.netloc, parts.path.strip("/")
    place, service = (first, second) if second else (namespace, first)
    name, _, port = service.partition(":")
    if not place or not name or "/" in service:
        raise ConfigurationError(
            "PEN0871", f"{url} names no service. Write kubernetes://SERVICE or kubernetes://NAMESPACE/SERVICE:PORT."
        )
    return Service(place, name, port)


def _endpoints(slices: Sequence[_Slice], wanted: str, scheme: str) -> Iterator[Endpoint]:
    for one in slices:
        port = _port(one.ports or (), wanted)
        if port is None:
            continue
        labels = one.metadata.labels or {}
        version = next((labels[label] for label in VERSION_LABELS if label in labels), "")
        for endpoint in one.endpoints or ():
            if not endpoint.addresses:
                continue
            # The others, where there are several, are the same pod once more.
            address = f"[{endpoint.addresses[0]}]" if one.address_type == "IPv6" else endpoint.addresses[0]
            target = endpoint.target_ref
            yield Endpoint(
                name=(target.uid or target.name if target else "") or f"{address}:{port}",
                url=f"{scheme}://{address}:{port}",
                version=version,
                labels=labels,
                ready=endpoint.conditions.ready is not False,  # Not said means ready.
                zone=endpoint.zone or "",
            )


def _port(ports: Sequence[_Port], wanted: str) -> int | None:
    for port in ports:
        if port.port is not None and wanted in ("", port.name, str(port.port)):
            return port.port
    return None
