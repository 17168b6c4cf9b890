"""Who is at the other end: certificates with SPIFFE ids, mutual TLS, rotation without a restart.

An identity is a folder with `tls.crt`, `tls.key` and `ca.crt` (the names of a Kubernetes secret), as
`penstock mesh ca issue` writes them. What always holds: credentials are used only after a handshake with themselves has
succeeded, the same check that every peer makes, so a certificate that does not fit its key, its authority, its trust
domain or its time is found here and not by them; a connection is made only with a peer whose certificate is of the
same authority and trust domain; new connections use the files as they are now, and connections that are open go on
with what they began with. Files that do not fit together, as while they are being replaced, change nothing.

Host names are not compared: a host is found by its address of the moment, and who it is says its certificate. What an
identity may ask for is the policies' to decide.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from penstock.errors import ConfigurationError, PenstockError, Unavailable
from penstock.mesh.policies.host import Host
from penstock.mesh.policies.settings import TlsMode

log = logging.getLogger("penstock")

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
AUTHORITIES: Final = "ca.crt"

POLL_S: Final = 1.0
SAY_AGAIN_S: Final = 60.0
TLS_LABEL: Final = "tls"
"""Of an endpoint: the mode of its host, when that takes plain requests as well."""
WARN_LEFT: Final = 0.2
"""Of its life. A certificate that has so little left should have been replaced: most are at a half or a third."""
_FLIGHTS_MAX: Final = 8
"""Of a handshake with oneself. TLS 1.3 needs three."""
_OUT_OF_TIME: Final = frozenset({9, 10})
"""What OpenSSL calls a certificate that is not valid yet, or no longer."""

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")


def spiffe_id(trust_domain: str, namespace: str, name: str) -> str:
    """Raises ConfigurationError for parts that can't be in one."""
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        raise ConfigurationError(
            "PEN0872",
            f"{trust_domain!r} can't be a trust domain. Use lower-case letters, digits, '.', '-' and '_', as in "
            "'demo.local'.",
        )
    for part in (namespace, name):
        if not _SEGMENT.fullmatch(part) or part in (".", ".."):
            raise ConfigurationError(
                "PEN0872", f"{part!r} can't be part of a SPIFFE id. Use letters, digits, '.', '-' and '_'."
            )
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{name}"


def trust_domain_of(identity: str) -> str:
    return identity.removeprefix("spiffe://").partition("/")[0]


def peer_of(transport: asyncio.BaseTransport | None) -> str:
    """The SPIFFE id of who is at the other end of a connection; empty without TLS."""
    certificate = None if transport is None else transport.get_extra_info("peercert")
    return _identity_in(certificate) if certificate else ""


def url_of(endpoint: Host, identity: Identity | None) -> str:
    """Where to ask: who has no certificate asks a host that takes plain requests as well by one of those."""
    if identity is None and endpoint.labels.get(TLS_LABEL) == TlsMode.PERMISSIVE.value:
        return endpoint.url.replace("https://", "http://", 1)
    return endpoint.url


class Credentials(NamedTuple):
    """What was in the folder at one moment, and proved to fit together."""

    identity: str
    begins_s: float
    ends_s: float
    server: ssl.SSLContext
    client: ssl.SSLContext


def load_credentials(folder: Path, trust_domain: str = "") -> Credentials:
    """Raises ConfigurationError for what no peer would take. Without `trust_domain` it is that of the certificate."""
    try:
        server, client = _context(folder, ssl.PROTOCOL_TLS_SERVER), _context(folder, ssl.PROTOCOL_TLS_CLIENT)
        certificate = _shake_hands(server, client)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _OUT_OF_TIME:
            raise ConfigurationError(
                "PEN0873",
                f"The certificate {folder / CERTIFICATE}, or one of {AUTHORITIES}, is out of its time: "
                f"{error.verify_message}. Issue another with penstock mesh ca issue.",
            ) from error
        raise _unusable(folder, reason(error)) from error
    except ssl.SSLError as error:
        raise _unusable(folder, reason(error)) from error
    except OSError as error:
        raise _unusable(folder, f"{error.strerror} ({error.filename})") from error
    identity = _identity_in(certificate)
    if not identity:
        raise _unusable(folder, f"{CERTIFICATE} has no SPIFFE id, or more than one")
    if trust_domain and trust_domain_of(identity) != trust_domain:
        raise _unusable(folder, f"{identity} is not of the trust domain {trust_domain}")
    for context in (server, client):
        context.sslobject_class = _verifying(trust_domain_of(identity))
    begins_s = ssl.cert_time_to_seconds(certificate["notBefore"])
    return Credentials(identity, begins_s, ssl.cert_time_to_seconds(certificate["notAfter"]), server, client)


class Identity:
    """The credentials in force. Replaced when the files are."""

    def __init__(
        self,
        folder: Path,
        *,
        trust_domain: str = "",
        poll_s: float = POLL_S,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Raises ConfigurationError, as `load_credentials` does."""
        self._folder = folder
        self._poll_s = poll_s
        self._wall = wall
        self._stamp = self._stamped()
        self._credentials = load_credentials(folder, trust_domain)
        self._trust_domain = trust_domain_of(self._credentials.identity)
        self._said: set[str] = set()
        """Of the credentials and files in force: each is worth one line."""
        self._warned_s: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self._credentials.identity

    @property
    def server(self) -> ssl.SSLContext:
        """For the next connection that is accepted."""
        return self._credentials.server

    @property
    def client(self) -> ssl.SSLContext:
        """For the next connection that is made. Another object after a rotation, so that pools tell them apart."""
        return self._credentials.client

    @property
    def ends_s(self) -> float:
        """When the certificate in force runs out, in seconds since 1970."""
        return self._credentials.ends_s

    async def start(self) -> None:
        """Look at the files from now on."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def explain(self, error: BaseException, place: str) -> Unavailable | None:
        """What a failed connection to `place` has to do with certificates, if it has."""
        if self.ends_s <= self._wall():
            # The other end merely hangs up: what it thinks of us, asyncio does not tell it to say.
            return Unavailable(
                "PEN0873",
                f"The certificate of {self.id} has expired, so {place} takes no connection from it. Put another into "
                f"{self._folder}; no restart is needed.",
            )
        failures = [cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)]
        if not failures:
            return None
        failure = failures[-1]  # The innermost: those around it have lost its details.
        code = "PEN0873" if getattr(failure, "verify_code", 0) in _OUT_OF_TIME else "PEN0874"
        return Unavailable(
            code,
            f"No TLS connection to {place}: {reason(failure)}. Compare its certificate with the authority and trust "
            f"domain of {self._folder}.",
        )

    def warn(self, error: BaseException, place: str) -> None:
        """Say what keeps us from `place`, if it is a certificate; not at every attempt."""
        reason = self.explain(error, place)
        now_s = self._wall()
        if reason is not None and now_s - self._warned_s.get(place, 0.0) >= SAY_AGAIN_S:
            self._warned_s = {one: said_s for one, said_s in self._warned_s.items() if now_s - said_s < SAY_AGAIN_S}
            self._warned_s[place] = now_s
            log.warning("%s", reason)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self.refresh()

    async def refresh(self) -> None:
        """Look now: take new files, and say when those in force are about to run out."""
        stamp = self._stamped()
        if stamp != self._stamp:
            try:
                credentials = await asyncio.to_thread(load_credentials, self._folder, self._trust_domain)
            except PenstockError as error:
                # Tried again at every look: of files that are replaced one by one, the last may be the same second's.
                self._say(f"bad {stamp}", logging.WARNING, f"{error} {self.id} goes on with the certificate it has.")
            else:
                self._stamp, self._credentials = stamp, credentials
                self._said.clear()
                log.info("The certificate of %s was replaced; new connections use it.", self.id)
        self._warn_of_the_end()

    def _warn_of_the_end(self) -> None:
        left_s = self._credentials.ends_s - self._wall()
        if left_s <= 0:
            self._say(
                "ended",
                logging.ERROR,
                f"PEN0873 The certificate of {self.id} has expired: nobody takes a new connection from it. Put another "
                f"into {self._folder}; no restart is needed.",
            )
        elif left_s < WARN_LEFT * (self._credentials.ends_s - self._credentials.begins_s):
            self._say(
                "ending",
                logging.WARNING,
                f"PEN0873 The certificate of {self.id} expires in {left_s / 60:,.0f} minutes. Put another into "
                f"{self._folder}; no restart is needed.",
            )

    def _say(self, what: str, level: int, line: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.log(level, "%s", line)

    def _stamped(self) -> tuple[object, ...]:
        """Differs when a file was replaced, also by a file of the same size and second."""
        return tuple(_stamp(self._folder / name) for name in (CERTIFICATE, KEY, AUTHORITIES))


def _context(folder: Path, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # A session that is resumed is not verified again.
    context.load_verify_locations(folder / AUTHORITIES)
    context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    return context


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> Mapping[str, Any]:
    """Let the two meet, and return the certificate that the client has seen. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
    for _ in range(_FLIGHTS_MAX):
        waiting = 0
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
        if not waiting:
            certificate = sides[0].getpeercert()
            assert certificate, "a client that verifies has seen a certificate"
            return certificate
    raise AssertionError("a handshake in memory has an end")


def _verifying(trust_domain: str) -> type[ssl.SSLObject]:
    """Connections whose handshake succeeds only with a peer of `trust_domain`."""

    class OfTrustDomain(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            identity = _identity_in(self.getpeercert() or {})
            if trust_domain_of(identity) != trust_domain:
                who = identity or "a certificate without a SPIFFE id"
                raise ssl.SSLCertVerificationError(1, f"{who} is not of the trust domain {trust_domain}")

    return OfTrustDomain


def _identity_in(certificate: Mapping[str, Any]) -> str:
    """Its SPIFFE id. One with several is nobody: which of them would be meant?"""
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    return uris[0] if len(uris) == 1 and uris[0].startswith("spiffe://") else ""


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it wraps, also in the ways of its own that aiohttp has."""
    found: BaseException | None = error
    while found is not None:
        yield found
        inner = getattr(found, "certificate_error", None) or getattr(found, "os_error", None)
        found = inner if isinstance(inner, BaseException) else found.__cause__


def reason(error: ssl.SSLError) -> str:
    """What it says, without what is for those who maintain OpenSSL."""
    said = getattr(error, "verify_message", None) or getattr(error, "reason", None)
    return said.replace("_", " ").lower() if said else str(error)


def _unusable(folder: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        "PEN0872",
        f"The identity in {folder} can't be used: {why}. It needs {CERTIFICATE}, {KEY} and {AUTHORITIES} that belong "
        "together, as penstock mesh ca issue writes them.",
    )
