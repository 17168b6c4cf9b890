"""What the policy file says about TLS, done for one process: its identity, its mode, what others need to know of it.

What always holds: a process without certificates does not start where the file wants them of everybody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from penstock.errors import ConfigurationError
from penstock.mesh.identity import TLS_LABEL, Identity
from penstock.mesh.policies.settings import PolicySet, TlsMode


@asynccontextmanager
async def identity_of(folder: Path | None, policies: PolicySet) -> AsyncIterator[Identity | None]:
    """The certificates of a process, which follow their files while the block runs. Raises ConfigurationError."""
    if folder is None:
        if tls_mode(policies) is TlsMode.STRICT:
            raise ConfigurationError(
                "PEN0808",
                "The policy file says tls: {mode: STRICT}, and this process has no certificate. Give it one with "
                "--identity DIR; penstock mesh ca issues them.",
            )
        yield None
        return
    identity = Identity(folder, trust_domain=policies.tls.trust_domain if policies.tls is not None else "")
    await identity.start()
    try:
        yield identity
    finally:
        await identity.close()


def tls_mode(policies: PolicySet) -> TlsMode:
    """Of connections between processes that have certificates."""
    return policies.tls.mode if policies.tls is not None else TlsMode.PERMISSIVE


def tls_labels(identity: Identity | None, mode: TlsMode) -> dict[str, str]:
    """Of an endpoint: what callers without certificates need to know."""
    permissive = identity is not None and mode is TlsMode.PERMISSIVE
    return {TLS_LABEL: mode.value} if permissive else {}


def scheme(identity: Identity | None, mode: TlsMode) -> str:
    """Of the URL of a host."""
    return "http" if identity is None or mode is TlsMode.DISABLE else "https"
