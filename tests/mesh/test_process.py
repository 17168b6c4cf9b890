"""What a process of the mesh holds while it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.errors import ConfigurationError
from penstock.mesh import process
from penstock.mesh.options import MeshOptions
from penstock.mesh.process import opened_registry
from penstock.mesh.registry import LocalRegistry


class Forbidden(LocalRegistry):
    """One that may not be asked."""

    closed = False

    async def open(self) -> None:
        raise ConfigurationError("PEN0871", "The service account may not list endpoints.")

    async def close(self) -> None:
        self.closed = True


def test_a_registry_that_can_not_be_opened_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Forbidden()
    monkeypatch.setattr(process, "registry_of", lambda place, environment: registry)

    async def open_it() -> None:
        async with opened_registry(MeshOptions(app="shop:app", folder=str(tmp_path))):
            pass

    with pytest.raises(ConfigurationError, match="PEN0871"):
        asyncio.run(open_it())
    assert registry.closed
