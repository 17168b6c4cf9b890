"""What every registry that hosts write to promises, as tests that each of them passes."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from penstock.mesh.registry import Endpoint, Registry, View

TTL_S = 30.0


def endpoint(name: str, **changes: Any) -> Endpoint:
    return Endpoint(name, f"http://127.0.0.1:8{name[-1]}00", ready=True)._replace(**changes)


async def seen_within(registry: Registry, number: int) -> View:
    return await asyncio.wait_for(registry.changed(number), 5)


class RegistryContract(ABC):
    """Registered, ready, not ready, released, forgotten: a caller sees it."""

    @abstractmethod
    def registry(self, folder: Path) -> Registry: ...

    def test_what_is_registered_is_seen_as_it_was_said(self, tmp_path: Path) -> None:
        said = endpoint(
            "h1", version="v2", labels={"track": "beta"}, functions=frozenset({"shop/cart"}), session=7, zone="a"
        )

        async def check() -> None:
            registry = await self.opened(tmp_path)
            await registry.register(said, TTL_S)

            assert registry.view().endpoints == (said,)
            assert registry.view().serving("shop/cart") == (said,)
            assert registry.view().serving("shop/stock") == ()
            await registry.close()

        asyncio.run(check())

    def test_readiness_is_said_through_the_lease(self, tmp_path: Path) -> None:
        async def check() -> None:
            registry = await self.opened(tmp_path)
            lease = await registry.register(endpoint("h1", ready=False), TTL_S)
            assert registry.view().serving("shop/cart") == ()
            await lease.set_ready(True)
            assert [one.name for one in registry.view().serving("shop/cart")] == ["h1"]
            await lease.set_ready(False)
            assert registry.view().serving("shop/cart") == ()
            await registry.close()

        asyncio.run(check())

    def test_a_change_wakes_who_waits_for_it_and_has_a_higher_number(self, tmp_path: Path) -> None:
        async def check() -> None:
            registry = await self.opened(tmp_path)
            before = registry.view().number
            waiting = asyncio.create_task(seen_within(registry, before))
            await registry.register(endpoint("h1"), TTL_S)
            after = await waiting
            assert after.number > before
            assert [one.name for one in after.endpoints] == ["h1"]
            await registry.close()

        asyncio.run(check())

    def test_what_is_released_or_forgotten_is_gone(self, tmp_path: Path) -> None:
        async def check() -> None:
            registry = await self.opened(tmp_path)
            lease = await registry.register(endpoint("h1"), TTL_S)
            await registry.register(endpoint("h2"), TTL_S)
            await registry.register(endpoint("h3"), TTL_S)
            await lease.release()
            await registry.forget("h2")
            await registry.forget("h2")
            assert [one.name for one in registry.view().endpoints] == ["h3"]
            await registry.close()

        asyncio.run(check())

    async def opened(self, folder: Path) -> Registry:
        registry = self.registry(folder)
        await registry.open()
        return registry
