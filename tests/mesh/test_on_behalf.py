"""Who asked for a message stays with it: access rules judge the one who sent it, not the host that delivers it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import pytest

from penstock.ids import Address
from penstock.mesh.delivery import refusal_of, request_of
from penstock.mesh.identity import Identity
from penstock.mesh.registry import Endpoint
from penstock.mesh.store import Kept, Outgoing, decode_outgoing
from penstock.mesh.transport import HttpTransport, LocalTransport
from penstock.mesh.wire import Kind, Reply, Request, error_of, failure
from tests.mesh.authorities import authority, identity
from tests.mesh.banking import ADA, CLERK, HOSTS, THIEF, Bank

IDS = tuple("abcdef")
"""Some of them are owned by the one host, some by the other."""


def sent(id: str, **fields: object) -> Request:
    return Request(Address("bank/account", id), b"\x05", Kind.SEND, f"key-{id}", **fields)  # type: ignore[arg-type]


ONLY_THE_CLERK = f"access: [{{destination: bank/account, sources: ['{CLERK}']}}]"


def test_a_message_is_delivered_under_the_identity_that_sent_it(tmp_path: Path) -> None:
    """The hosts themselves may not ask for it, and deliver it all the same."""

    async def run() -> None:
        bank = Bank(tmp_path, ONLY_THE_CLERK, protected=True)
        async with bank.running():
            for id in IDS:
                assert (await bank.ask(sent(id), by="clerk")).status == 200
            await bank.wait_paid(*IDS)

            refused = await bank.ask(sent("x"), by="hosts")
            assert (refused.status, error_of(refused, "x").code) == (403, "PEN0846")

    asyncio.run(run())


def test_what_a_handler_sends_has_the_identity_of_its_host(tmp_path: Path) -> None:
    rules = f"""
access:
  - {{destination: bank/account, sources: ['{HOSTS}']}}
  - {{destination: bank/teller, sources: ['{CLERK}']}}
"""

    async def run() -> None:
        bank = Bank(tmp_path, rules, protected=True)
        async with bank.running():
            told = Request(Address("bank/teller", "t"), msgspec.msgpack.encode("ada"), Kind.SEND, "key")
            assert (await bank.ask(told, by="clerk")).status == 200
            await bank.wait_paid("ada")

            assert (await bank.balance("ada")).told_by == "bank/teller/t"

    asyncio.run(run())


@pytest.mark.parametrize("kind", [Kind.CALL, Kind.DELIVER, Kind.SEND])
@pytest.mark.parametrize("rules", [ONLY_THE_CLERK, ""])
def test_nobody_else_may_ask_on_behalf_of_others(tmp_path: Path, kind: Kind, rules: str) -> None:
    async def run() -> None:
        bank = Bank(tmp_path, rules, protected=True)
        async with bank.running():
            forged = Request(ADA, b"\x05", kind, "key", behalf=CLERK)
            refused = await bank.ask(forged, by="thief")

            assert (refused.status, refused.refused) == (403, True)
            assert error_of(refused, "ada").code == "PEN0811"
            assert THIEF in error_of(refused, "ada").message
            assert await bank.store.load(*ADA) == (b"", 0, None, {})
            assert await bank.store.pending() == (0, 0, 0)

    asyncio.run(run())


def test_without_certificates_rules_go_by_the_name_of_the_caller(tmp_path: Path) -> None:
    """As it says itself; and who claims an identity has none."""
    rules = "access: [{destination: bank/account, sources: [bank/teller]}]"

    async def run() -> None:
        bank = Bank(tmp_path, rules, protected=False)
        async with bank.running():
            assert (await bank.ask(sent("ada", caller=Address("bank/teller", "t")))).status == 200
            await bank.wait_paid("ada")
            assert (await bank.balance("ada")).told_by == "bank/teller/t"

            refused = await bank.ask(sent("bob"))
            assert (refused.status, error_of(refused, "bob").code) == (403, "PEN0846")

    asyncio.run(run())


def test_a_host_without_certificates_believes_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        bank = Bank(tmp_path, "", protected=False)
        async with bank.running():
            host = bank.endpoints[0]
            transport = HttpTransport()
            try:
                await transport.send(host, Request(ADA, b"\x05", behalf=CLERK), 10.0)
                assert (await bank.balance("ada")).paid == 5, "who proves nothing does not send the claim"
                forged = {"penstock-behalf": CLERK}
                url = f"{host.url}/invoke/bank/account/bob"
                async with (
                    aiohttp.ClientSession() as stranger,
                    stranger.post(url, data=b"\x05", headers=forged) as response,
                ):
                    assert (response.status, (await response.json())["code"]) == (403, "PEN0811")
                assert (await bank.balance("bob")).paid == 0
            finally:
                await transport.close()

    asyncio.run(run())


class Asked:
    """A host that remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def handle(self, request: Request) -> Reply:
        self.requests.append(request)
        return Reply(200, b"")


@pytest.mark.parametrize("own", [HOSTS, ""])
def test_within_a_process_it_is_the_same(tmp_path: Path, own: str) -> None:
    async def run() -> None:
        known = Identity(identity(authority(tmp_path / "ca"), tmp_path / "hosts", "hosts")) if own else None
        transport, host = LocalTransport(identity=known), Asked()
        transport.hosts["here"] = host

        await transport.send(Endpoint("here", ""), Request(ADA, b"", behalf=CLERK), None)

        assert [(each.identity, each.behalf) for each in host.requests] == [(own, CLERK if own else "")]

    asyncio.run(run())


def test_a_message_waits_for_who_may_deliver_it() -> None:
    """It is no fault of the message that hosts of one store have different identities."""
    refused = refusal_of(failure(403, "PEN0811", "not you"), "ada")
    denied = refusal_of(failure(403, "PEN0846", "nobody"), "ada")

    assert refused is not None
    assert denied is not None
    assert (refused.final, denied.final) == (False, True)


def test_a_message_that_was_stored_before_is_delivered_by_the_host(tmp_path: Path) -> None:
    earlier = msgspec.msgpack.encode(["bank/account", "ada", b"\x05", "key", 0, "", {}, True])

    request = request_of(Kept(1, ADA, decode_outgoing(earlier)))

    assert decode_outgoing(earlier) == Outgoing(*ADA, b"\x05", "key", outside=True)
    assert (request.caller, request.behalf, request.identity) == (None, "", "")
