"""Applications of any language ask Penstock's by their sidecars: the gateway is one application among the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.mesh.dapr.peers import CALLER
from penstock.mesh.gateway_door import Door
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import PolicySet, TlsMode
from penstock.mesh.policy_file import read_policies
from penstock.mesh.registry import LocalRegistry
from penstock.mesh.sidecar import Sidecar, policies_of_a_sidecar
from tests.mesh.banking import CLERK, Bank
from tests.mesh.dapr.world import FakeApplication, World, until, world

KEY = {"idempotency_key": "order-7"}


def at_the_bank(
    folder: Path, test: Callable[[Bank, World], Awaitable[None]], *, rules: str = "", protected: bool = False
) -> None:
    async def run() -> None:
        async with world(folder) as here:
            bank = Bank(folder, rules, protected=protected, registry=here.registry)
            async with bank.running():
                await test(bank, here)

    asyncio.run(run())


async def beside(here: World, bank: Bank, name: str, *, protected: bool = False, policies: str = "") -> Sidecar:
    return await here.sidecar(
        FakeApplication(),
        name,
        identity=bank.identity(name) if protected else None,
        policies=policies_of_a_sidecar(read_policies(policies)),
    )


def test_a_sidecar_calls_a_function_by_the_name_of_its_application(tmp_path: Path) -> None:
    async def check(bank: Bank, here: World) -> None:
        shop = await beside(here, bank, "shop")

        first = await here.ask(shop, "POST", "/call/bank/account/ada%2F7", 5, dapr_app_id="bank", **KEY)
        again = await here.ask(shop, "POST", "/v1.0/invoke/bank/method/call/bank/account/ada%2F7", 5, **KEY)

        assert [(each.status, each.json) for each in (first, again)] == [(200, 5), (200, 5)]
        assert (await bank.balance("ada/7")).paid == 5

    at_the_bank(tmp_path, check)


def test_a_sidecar_sends_to_a_function(tmp_path: Path) -> None:
    async def check(bank: Bank, here: World) -> None:
        shop = await beside(here, bank, "shop")

        told = await here.ask(shop, "POST", "/v1.0/invoke/bank/method/send/bank/account/ada", 5)

        assert (told.status, told.json) == (202, {"accepted": True, "address": "bank/account/ada"})
        await bank.wait_paid("ada")

    at_the_bank(tmp_path, check)


def test_what_a_gateway_refuses_is_told_as_programs_are_told(tmp_path: Path) -> None:
    async def check(bank: Bank, here: World) -> None:
        shop = await beside(here, bank, "shop")

        unknown = await here.ask(shop, "POST", "/call/bank/vault/ada", 5, dapr_app_id="bank")
        wrong = await here.ask(shop, "POST", "/call/bank/account/ada", "five", dapr_app_id="bank")
        elsewhere = await here.ask(shop, "GET", "/admin/status", dapr_app_id="bank")

        assert (unknown.status, unknown.json["code"]) == (404, "PEN0105")
        assert (wrong.status, wrong.json["code"]) == (400, "PEN0201")
        assert (elsewhere.status, elsewhere.json["code"]) == (404, "PEN0611")

    at_the_bank(tmp_path, check)


def test_the_policies_of_the_sidecar_hold_for_the_way_there(tmp_path: Path) -> None:
    async def check(bank: Bank, here: World) -> None:
        fault = "fault: {side: client, abort: {percentage: 100, http_status: 418}}"
        shop = await beside(here, bank, "shop", policies=f"routes: [{{match: {{function: app/bank}}, {fault}}}]")

        assert (await here.ask(shop, "POST", "/call/bank/account/ada", 5, dapr_app_id="bank")).status == 418
        assert (await bank.balance("ada")).paid == 0

    at_the_bank(tmp_path, check)


def test_a_copy_of_a_sidecar_leaves_nothing_behind(tmp_path: Path) -> None:
    """Also if it comes first: it does not have the key of the request."""

    async def check(bank: Bank, here: World) -> None:
        policies = "routes: [{match: {function: app/bank}, mirror: {subset: ''}}]"
        shop = await beside(here, bank, "shop", policies=policies)

        for _ in range(3):
            told = await here.ask(shop, "POST", "/call/bank/account/ada", 5, dapr_app_id="bank", **KEY)
            assert told.json == 5
        await until(lambda: sum(node.host.messages["bank/account"] for node in bank.nodes) == 6)

        assert (await bank.balance("ada")).paid == 5

    at_the_bank(tmp_path, check)


def test_nobody_asks_a_gateway_before_which_no_host_is_ready(tmp_path: Path) -> None:
    async def check(bank: Bank, here: World) -> None:
        shop = await beside(here, bank, "shop")
        for node in bank.nodes:
            await node.drain(1.0, notice_s=0)
        await until(lambda: not here.registry.view().serving("app/bank"))

        told = await here.ask(shop, "POST", "/call/bank/account/ada", 5, dapr_app_id="bank")

        assert told.error == (500, "ERR_DIRECT_INVOKE")

    at_the_bank(tmp_path, check)


def test_sidecars_and_gateways_are_no_hosts(tmp_path: Path) -> None:
    """Whoever asks hosts passes them over, and a host that is gone is still seen to be."""

    async def check(bank: Bank, here: World) -> None:
        await beside(here, bank, "shop")
        view = here.registry.view()

        assert len(view.endpoints) == 4
        assert {each.name for each in view.hosts(["bank/account"])} == {node.name for node in bank.nodes}
        assert bank.nodes[0]._sessions_in_view() == frozenset(node.session for node in bank.nodes)

    at_the_bank(tmp_path, check)


# Who asks.

ONLY_THE_CLERK = f"""
access:
  - {{destination: bank/account, sources: ['{CLERK}']}}
"""


@pytest.mark.parametrize("how", ["call", "send"])
def test_hosts_judge_who_asks_the_gateway(tmp_path: Path, how: str) -> None:
    async def check(bank: Bank, here: World) -> None:
        clerk, thief = [await beside(here, bank, name, protected=True) for name in ("clerk", "thief")]

        taken = await here.ask(clerk, "POST", f"/{how}/bank/account/ada", 5, dapr_app_id="bank")
        refused = await here.ask(thief, "POST", f"/{how}/bank/account/bob", 5, dapr_app_id="bank")

        assert taken.status == {"call": 200, "send": 202}[how]
        assert (refused.status, refused.json["code"]) == (403, "PEN0846")
        await bank.wait_paid("ada")
        assert (await bank.balance("bob")).paid == 0
        assert await bank.store.dead_letters() == []

    at_the_bank(tmp_path, check, rules=ONLY_THE_CLERK, protected=True)


def test_rules_may_name_applications_by_what_they_say(tmp_path: Path) -> None:
    async def check(bank: Bank, here: World) -> None:
        shop, thief = await beside(here, bank, "shop"), await beside(here, bank, "thief")

        assert (await here.ask(shop, "POST", "/call/bank/account/ada", 5, dapr_app_id="bank")).status == 200
        refused = await here.ask(thief, "POST", "/call/bank/account/ada", 5, dapr_app_id="bank")

        assert (refused.status, refused.json["code"]) == (403, "PEN0846")
        assert (await bank.balance("ada")).paid == 5

    at_the_bank(tmp_path, check, rules="access: [{destination: app/bank, sources: [app/shop]}]")


def test_programs_at_the_gateway_are_nobody_else(tmp_path: Path) -> None:
    """Its own port takes nothing of what sidecars say."""

    async def check(bank: Bank, here: World) -> None:
        claimed = {
            "Authorization": "Bearer secret",
            CALLER: "clerk",
            "penstock-behalf": CLERK,
            "penstock-shadow": "1",
        }
        async with aiohttp.ClientSession(headers=claimed) as session:
            async with session.post(f"{bank.url}/call/bank/account/ada", json=5) as response:
                assert (response.status, (await response.json())["code"]) == (403, "PEN0846")
            async with session.post(f"{bank.url}/call/bank/teller/t", json="ada") as response:
                assert response.status == 200

    at_the_bank(tmp_path, check, rules=ONLY_THE_CLERK, protected=True)


def test_an_application_with_the_name_of_a_function_is_not_found(caplog: pytest.LogCaptureFixture) -> None:
    """Its hosts would be taken for it, and it for them."""
    app = App("shop")

    @app.function("app/shop")
    def shop(ctx: Context[None], message: int) -> None:
        """It is not asked."""

    async def run() -> None:
        registry = LocalRegistry()
        await registry.open()
        door = Door(
            app,
            [],
            registry,
            Policies(PolicySet(), draw=lambda: 0.5),
            host="127.0.0.1",
            body_bytes_max=1_000,
            identity=None,
            tls=TlsMode.DISABLE,
        )
        await door.start("127.0.0.1")
        assert registry.view().endpoints == ()
        await door.leave()
        await door.close()

    asyncio.run(run())

    assert "PEN0812 app/shop" in caplog.text
