"""Authorities and identities for tests, made in a moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from penstock.mesh.certificates import issue, make_authority

LONG = timedelta(days=1)


def authority(folder: Path, trust_domain: str = "demo.local", lifetime: timedelta = timedelta(days=365)) -> Path:
    make_authority(folder, trust_domain, lifetime, datetime.now(UTC) - timedelta(days=30))
    return folder


def identity(authority: Path, folder: Path, name: str = "shop", *, expired: bool = False) -> Path:
    now = datetime.now(UTC)
    issue(authority, folder, namespace="default", name=name, lifetime=LONG, now=now - 2 * LONG if expired else now)
    return folder
