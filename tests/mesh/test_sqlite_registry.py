"""The registry in a file: shared by processes, and dispensable at any moment."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from penstock.errors import ConfigurationError, Unavailable
from penstock.mesh.registry import Registry
from penstock.mesh.sqlite_registry import SqliteRegistry
from tests.mesh.registry_contract import TTL_S, RegistryContract, endpoint, seen_within


def registry_in(folder: Path) -> SqliteRegistry:
    return SqliteRegistry(folder / "registry.db", poll_s=0.01)


async def opened(folder: Path) -> SqliteRegistry:
    registry = registry_in(folder)
    await registry.open()
    return registry


def names(registry: Registry) -> list[str]:
    return [one.name for one in registry.view().endpoints]


class TestSqliteRegistry(RegistryContract):
    def registry(self, folder: Path) -> Registry:
        return registry_in(folder)


def test_another_process_sees_what_is_registered_and_released(tmp_path: Path) -> None:
    async def check() -> None:
        host, caller = await opened(tmp_path), await opened(tmp_path)
        lease = await host.register(endpoint("h1"), TTL_S)
        assert (await seen_within(caller, 0)).endpoints == (endpoint("h1"),)
        await lease.release()
        assert (await seen_within(caller, 1)).endpoints == ()
        await host.close()
        await caller.close()

    asyncio.run(check())


def test_a_lease_is_renewed_for_as_long_as_it_is_held_and_then_runs_out(tmp_path: Path) -> None:
    async def check() -> None:
        host, caller = await opened(tmp_path), await opened(tmp_path)
        await host.register(endpoint("h1"), ttl_s=0.15)
        held = await seen_within(caller, 0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(caller.changed(held.number), 0.4)
        await host.close()
        assert (await seen_within(caller, held.number)).endpoints == ()
        await caller.close()

    asyncio.run(check())


def test_what_is_long_dead_is_deleted_when_another_registers(tmp_path: Path) -> None:
    async def check() -> None:
        now_s = 1e9
        old = SqliteRegistry(tmp_path / "registry.db", wall=lambda: now_s)
        await old.open()
        await old.register(endpoint("h1"), TTL_S)
        await old.close()
        new = SqliteRegistry(tmp_path / "registry.db", wall=lambda: now_s + 3600)
        await new.open()
        await new.register(endpoint("h2"), TTL_S)
        await new.close()

    asyncio.run(check())
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        assert connection.execute("SELECT name FROM endpoints").fetchall() == [("h2",)]
    connection.close()


def test_a_locked_registry_takes_no_view_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.mesh.sqlite_registry.BUSY_S", 0.01)

    async def check() -> None:
        registry = await opened(tmp_path)
        lease = await registry.register(endpoint("h1"), ttl_s=0.05)
        held = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
        held.execute("BEGIN EXCLUSIVE")
        await lease.set_ready(False)
        await asyncio.sleep(0.2)
        assert registry.view().endpoints == (endpoint("h1"),)
        with pytest.raises(Unavailable, match="PEN0870"):
            await registry.forget("h1")
        held.execute("ROLLBACK")
        held.close()
        view = await seen_within(registry, registry.view().number)
        assert view.endpoints == (endpoint("h1", ready=False),), "what could not be said is said with the next renewal"
        await registry.close()

    asyncio.run(check())


def test_a_registry_that_is_deleted_takes_no_view_away_and_comes_back(tmp_path: Path) -> None:
    async def check() -> None:
        host, caller = await opened(tmp_path), await opened(tmp_path)
        lease = await host.register(endpoint("h1"), TTL_S)
        await host.register(endpoint("h2"), TTL_S)
        before = await seen_within(caller, 0)
        before = before if len(before.endpoints) == 2 else await seen_within(caller, before.number)
        (tmp_path / "registry.db").unlink()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(caller.changed(before.number), 0.1)
        await lease.set_ready(False)
        after = await seen_within(caller, before.number)
        assert after.endpoints == (endpoint("h1", ready=False), endpoint("h2")), "h2 is kept until its lease ends"
        await host.close()
        await caller.close()

    asyncio.run(check())


def test_a_file_that_becomes_garbage_takes_no_view_away(tmp_path: Path) -> None:
    async def check() -> None:
        registry = await opened(tmp_path)
        await registry.register(endpoint("h1"), TTL_S)
        (tmp_path / "garbage").write_bytes(b"garbage " * 1000)
        (tmp_path / "garbage").replace(tmp_path / "registry.db")
        await asyncio.sleep(0.05)
        assert names(registry) == ["h1"]
        await registry.close()

    asyncio.run(check())


def test_another_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        connection.execute("CREATE TABLE mine (n)")
    connection.close()
    before = (tmp_path / "registry.db").read_bytes()

    with pytest.raises(ConfigurationError, match=r"PEN0871 .* is not a registry: its application id is 0x0"):
        asyncio.run(opened(tmp_path))
    assert (tmp_path / "registry.db").read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_text("orders = 1\n" * 100)

    with pytest.raises(ConfigurationError, match=r"PEN0871 .*is not a registry: file is not a database"):
        asyncio.run(opened(tmp_path))


def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "registry.db").mkdir()

    with pytest.raises(ConfigurationError, match="PEN0871 There can be no registry at"):
        asyncio.run(opened(tmp_path))


def test_many_that_begin_at_once_make_one_registry(tmp_path: Path) -> None:
    async def check() -> None:
        registries = [registry_in(tmp_path) for _ in range(8)]
        await asyncio.gather(*(registry.open() for registry in registries))
        await asyncio.gather(
            *(registry.register(endpoint(f"h{n}"), TTL_S) for n, registry in enumerate(registries)),
        )
        while len(registries[0].view().endpoints) < 8:
            await seen_within(registries[0], registries[0].view().number)
        for registry in registries:
            await registry.close()

    asyncio.run(check())
