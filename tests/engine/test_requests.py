"""Requests from outside: which log they go to, what their callers get, or are told when none will come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from penstock.engine.operations import Drop
from penstock.engine.requests import Requests
from penstock.errors import InvalidInput, Refused
from penstock.ids import Address, key_group
from penstock.records import Envelope, Reply
from penstock.router.memory import MemoryLog
from penstock.router.requests import decode_request

TASKS = 4
ADDRESS = Address("shop/cart", "anna")
PARTITION = f"requests-{key_group(ADDRESS.id) % TASKS}"


class Fixture:
    """Requests on a log in memory, with an ear for what they ask of their surroundings."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.accepting = True
        self.asked: list[str] = []
        self.requests = Requests(
            "shop",
            TASKS,
            lambda task, record: self.log.append(f"requests-{task}", record),
            flush=self._flush,
            accepting=lambda: self.accepting,
            wake=self._wake,
        )

    async def _flush(self) -> None:
        self.asked.append("flush")

    def _wake(self) -> None:
        self.asked.append("wake")

    def appended(self) -> list[Envelope]:
        records = self.log.read(PARTITION, self.log.start(PARTITION), 100, 1 << 20)
        return [decode_request(record, place="here") for _, record in records]

    async def answer(self, value: bytes = b"", *, error: str = "") -> None:
        """Let the caller go first, then answer the newest request."""
        await asyncio.sleep(0)
        meta = self.appended()[-1].meta
        assert meta is not None
        self.requests.tell(Reply(meta.request_id, value, error))


def run(scene: Callable[[Fixture], Awaitable[None]]) -> Fixture:
    fixture = Fixture()

    async def main() -> None:
        await scene(fixture)

    asyncio.run(main())
    return fixture


def test_a_message_goes_to_the_task_of_its_address_and_is_durable() -> None:
    async def scene(fixture: Fixture) -> None:
        await fixture.requests.send(ADDRESS, b"tea")

    fixture = run(scene)

    (envelope,) = fixture.appended()
    assert (envelope.typename, envelope.id, envelope.payload) == (*ADDRESS, b"tea")
    assert fixture.asked == ["wake", "flush"]


def test_a_call_waits_for_its_own_answer() -> None:
    async def scene(fixture: Fixture) -> None:
        calling = asyncio.ensure_future(fixture.requests.call(ADDRESS, b"tea"))
        await asyncio.sleep(0)
        assert fixture.requests.in_flight == 1
        fixture.requests.tell(Reply("of somebody who went away", b"", ""))
        await fixture.answer(b"done")
        assert (await calling).value == b"done"
        assert fixture.requests.in_flight == 0

    run(scene)


def test_a_refused_operation_raises_what_the_task_said() -> None:
    async def scene(fixture: Fixture) -> None:
        operating = asyncio.ensure_future(fixture.requests.operate(ADDRESS, Drop([7])))
        await fixture.answer(error="PEN0303 There is no dead letter 7.")
        with pytest.raises(InvalidInput) as caught:
            await operating
        assert str(caught.value) == "PEN0303 There is no dead letter 7."

    run(scene)


def test_an_operation_returns_its_decoded_answer() -> None:
    async def scene(fixture: Fixture) -> None:
        operating = asyncio.ensure_future(fixture.requests.operate(ADDRESS, Drop([7])))
        await fixture.answer(msgspec.json.encode(1))
        assert await operating == 1

    run(scene)


def test_nothing_is_accepted_while_the_worker_stops() -> None:
    async def scene(fixture: Fixture) -> None:
        fixture.accepting = False
        with pytest.raises(Refused) as caught:
            await fixture.requests.call(ADDRESS, b"tea")
        assert caught.value.code == "PEN0603"
        assert fixture.requests.in_flight == 0

    assert run(scene).appended() == []


def test_nothing_is_accepted_after_closing() -> None:
    async def scene(fixture: Fixture) -> None:
        fixture.requests.close()

        with pytest.raises(Refused, match="PEN0603"):
            await fixture.requests.call(ADDRESS, b"tea")
        with pytest.raises(Refused, match="PEN0603"):
            await fixture.requests.send(ADDRESS, b"tea")

    assert run(scene).appended() == []


def test_closing_tells_callers_that_no_answer_will_come() -> None:
    async def scene(fixture: Fixture) -> None:
        calling = asyncio.ensure_future(fixture.requests.call(ADDRESS, b"tea"))
        await asyncio.sleep(0)
        fixture.requests.close()
        with pytest.raises(Refused, match="stopped before the answer"):
            await calling

    run(scene)
