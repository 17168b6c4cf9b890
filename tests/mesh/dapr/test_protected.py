"""Sidecars under mutual TLS: who asks is proven, not claimed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from penstock.mesh.identity import Identity
from penstock.mesh.policies.settings import AccessRule, PolicySet, TextMatch, TlsMode
from penstock.mesh.sidecar import policies_of_a_sidecar
from tests.mesh.authorities import authority, identity
from tests.mesh.dapr.world import FakeApplication, world

ITEMS = "/v1.0/invoke/stock/method/items"


def stock_application() -> FakeApplication:
    application = FakeApplication(actors=["Item"])
    application.says("/items", [])
    application.says("/actors/Item/1/method/take", 1)
    return application


def test_a_rule_names_the_identity_of_who_asks(tmp_path: Path) -> None:
    issuer = authority(tmp_path / "ca")
    stock, shop, thief = (Identity(identity(issuer, tmp_path / name, name)) for name in ("stock", "shop", "thief"))
    rules = tuple(
        AccessRule(TextMatch(exact=target), (TextMatch(exact=shop.id),)) for target in ("app/stock", "actor/Item")
    )

    async def check() -> None:
        async with world(tmp_path / "data") as here:
            policies = policies_of_a_sidecar(PolicySet(access=rules))
            await here.sidecar(stock_application(), "stock", identity=stock, policies=policies)
            asking = await here.sidecar(FakeApplication(), "shop", identity=shop)
            claiming = await here.sidecar(FakeApplication(), "shop", identity=thief)
            for path in (ITEMS, "/v1.0/actors/Item/1/method/take"):
                assert (await here.ask(asking, "GET", path)).status == 200
                assert (await here.ask(claiming, "GET", path)).status == 403

    asyncio.run(check())


def test_strict_lets_nobody_in_without_an_identity_and_permissive_does(tmp_path: Path) -> None:
    own = Identity(identity(authority(tmp_path / "ca"), tmp_path / "id"))

    async def status(port: int) -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/items", headers={"dapr-app-id": "stock"}) as response,
        ):
            return response.status

    async def check() -> None:
        async with world(tmp_path / "data") as here:
            strict = await here.sidecar(stock_application(), "stock", identity=own)
            lenient = await here.sidecar(stock_application(), "stock", identity=own, tls_mode=TlsMode.PERMISSIVE)
            assert await status(strict.mesh_port) == 403
            assert await status(lenient.mesh_port) == 200

    asyncio.run(check())


def test_a_sidecar_without_an_identity_is_told_why_it_can_not_ask(tmp_path: Path) -> None:
    own = Identity(identity(authority(tmp_path / "ca"), tmp_path / "id"))

    async def check() -> None:
        async with world(tmp_path / "data") as here:
            await here.sidecar(stock_application(), "stock", identity=own)
            asking = await here.sidecar(FakeApplication(), "shop")
            assert (await here.ask(asking, "GET", ITEMS)).error == (500, "ERR_DIRECT_INVOKE")

    asyncio.run(check())
