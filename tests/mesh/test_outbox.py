"""What is committed is delivered: in order, again when it fails, by others when its process is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from penstock.errors import Fenced, Unavailable
from penstock.ids import Address
from penstock.mesh import outbox as module
from penstock.mesh.outbox import Outbox, Refusal
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.store import Commit, Kept, Outgoing, Store
from tests.mesh.stores import ALICE, CART, message, quick_directory

NOW_S = 1_000.0


@pytest.fixture
def directory() -> Iterator[Path]:
    with quick_directory() as made:
        yield made


class Receiver:
    """Where messages go. `refuse` is asked for each."""

    def __init__(self, refuse: Callable[[Kept], Refusal | None] = lambda _: None) -> None:
        self.taken: list[bytes] = []
        self.tries = 0
        self._refuse = refuse
        self._changed = asyncio.Event()
        self.held = asyncio.Event()
        """Set: nobody waits in `deliver`."""
        self.held.set()

    async def deliver(self, kept: Kept) -> Refusal | None:
        self.tries += 1
        self._changed.set()
        await self.held.wait()
        refusal = self._refuse(kept)
        if refusal is None:
            self.taken.append(kept.outgoing.payload)
            self._changed.set()
        return refusal

    async def wait(self, condition: Callable[[Receiver], bool]) -> None:
        while not condition(self):
            self._changed.clear()
            async with asyncio.timeout(10):
                await self._changed.wait()


class Sender:
    """A process: its store, its session and its outbox."""

    def __init__(self, store: Store, session: int, outbox: Outbox) -> None:
        self.store, self.session, self.outbox = store, session, outbox
        self.now_s = NOW_S

    async def send(self, *outgoing: Outgoing, sender: Address = ALICE, told: bool = True) -> None:
        committed = await self.store.commit(Commit(self.session, *sender, outgoing=outgoing))
        if told:
            self.outbox.add(committed.kept)
            for each in outgoing:
                if each.due_ms:
                    self.outbox.wake(each.due_ms)


@asynccontextmanager
async def sending(
    directory: Path,
    receiver: Receiver,
    *,
    run: bool = True,
    unseen_s: float = 0.0,
    alive: Callable[[], Collection[int] | None] = lambda: None,
) -> AsyncIterator[Sender]:
    store = SqliteStore(directory, clock=lambda: NOW_S)
    session = await store.begin_session("test")
    sender: Sender
    outbox = Outbox(
        store, session, receiver.deliver, alive=alive, unseen_s=unseen_s, clock=lambda: sender.now_s, draw=lambda: 1.0
    )
    sender = Sender(store, session, outbox)
    running = asyncio.create_task(outbox.run() if run else asyncio.sleep(0))
    try:
        yield sender
    finally:
        await outbox.close()
        with suppress(Fenced):
            await running
        await store.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110  # Nobody tells of what is in a store.
            await asyncio.sleep(0.01)


def texts(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


def test_messages_are_delivered_in_order_and_forgotten(directory: Path) -> None:
    async def main() -> None:
        receiver = Receiver()
        async with sending(directory, receiver) as sender:
            await sender.send(*map(message, texts(1, 2)))
            await sender.send(*map(message, texts(3)))
            await receiver.wait(lambda it: len(it.taken) == 3)
            assert receiver.taken == texts(1, 2, 3)

            async def is_empty() -> bool:
                return await sender.store.pending() == (0, 0, 0)

            await until(is_empty)

    asyncio.run(main())


def test_what_nobody_told_of_is_found_in_the_store(directory: Path) -> None:
    async def main() -> None:
        receiver = Receiver()
        async with sending(directory, receiver) as sender:
            await sender.send(message(b"1"), told=False)
            await sender.send(message(b"2"))
            await receiver.wait(lambda it: len(it.taken) == 2)
            assert receiver.taken == texts(1, 2)

    asyncio.run(main())


def test_more_than_can_be_held_wait_in_the_store(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_MAX", 10)

    async def main() -> None:
        receiver = Receiver()
        receiver.held.clear()
        async with sending(directory, receiver) as sender:
            for number in range(50):
                await sender.send(message(b"%d" % number, to=f"to-{number % 3}"))
            assert sender.outbox.statistics.held <= 20
            receiver.held.set()
            await receiver.wait(lambda it: len(it.taken) == 50)
            for lane in range(3):
                of_lane = [int(text) for text in receiver.taken if int(text) % 3 == lane]
                assert of_lane == sorted(of_lane)

    asyncio.run(main())


def test_a_message_that_is_not_taken_is_tried_again_and_holds_its_lane_up(directory: Path) -> None:
    async def main() -> None:
        refused = Refusal("PEN0804 not now", final=False)
        receiver = Receiver(lambda kept: refused if kept.outgoing.payload == b"1" and kept.attempts < 2 else None)
        async with sending(directory, receiver) as sender:
            await sender.send(message(b"1"), message(b"2"), message(b"3", to="other"))
            await receiver.wait(lambda it: len(it.taken) == 3)
            assert receiver.taken == texts(3, 1, 2)
            assert sender.outbox.statistics.failed == 2

    asyncio.run(main())


def test_whatever_a_delivery_raises_it_is_tried_again(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        errors: list[Exception] = [Unavailable("PEN0000", "gone"), ZeroDivisionError()]

        def refuse(_: Kept) -> None:
            if errors:
                raise errors.pop()

        receiver = Receiver(refuse)
        async with sending(directory, receiver) as sender:
            await sender.send(message(b"1"))
            await receiver.wait(lambda it: it.taken == [b"1"])

    asyncio.run(main())
    assert "Delivering message" in caplog.text


def test_a_message_that_is_refused_for_good_is_a_dead_letter_and_its_lane_goes_on(directory: Path) -> None:
    async def main() -> None:
        bad = Refusal("PEN0211 it raised", final=True)
        receiver = Receiver(lambda kept: bad if kept.outgoing.payload == b"1" else None)
        async with sending(directory, receiver) as sender:
            await sender.send(message(b"1"), message(b"2"))
            await receiver.wait(lambda it: it.taken == [b"2"])
            (letter,) = await sender.store.dead_letters()
            assert (letter.what, letter.reason, letter.attempts) == (message(b"1"), "PEN0211 it raised", 1)
            assert letter.died_ms == int(NOW_S * 1000)

    asyncio.run(main())


def test_a_dead_letter_that_is_redriven_is_delivered(directory: Path) -> None:
    async def main() -> None:
        refusals = [Refusal("PEN0211 it raised", final=True)]
        receiver = Receiver(lambda _: refusals.pop() if refusals else None)
        async with sending(directory, receiver) as sender:
            await sender.send(message(b"1"))

            async def is_dead() -> bool:
                return bool(await sender.store.dead_letters())

            await until(is_dead)
            (letter,) = await sender.store.dead_letters()
            await sender.store.redrive(sender.session, [letter.number])
            await receiver.wait(lambda it: it.taken == [b"1"])

    asyncio.run(main())


def test_delayed_messages_are_delivered_in_their_time(directory: Path) -> None:
    async def main() -> None:
        receiver = Receiver()
        async with sending(directory, receiver) as sender:
            due_ms = int(NOW_S * 1000) + 50
            await sender.send(message(b"late", due_ms=due_ms + 3_600_000), message(b"soon", due_ms=due_ms))
            await sender.send(message(b"now"))
            await receiver.wait(lambda it: it.taken == [b"now"])
            sender.now_s += 0.05
            await receiver.wait(lambda it: it.taken == [b"now", b"soon"])

            async def is_forgotten() -> bool:
                return await sender.store.pending() == (0, 1, 0)

            await until(is_forgotten)

    asyncio.run(main())


def test_what_a_process_left_is_delivered_by_another_when_it_is_gone(directory: Path) -> None:
    async def main() -> None:
        receiver = Receiver()
        alive: set[int] = set()
        async with sending(directory, receiver, run=False) as dead:
            await dead.send(message(b"1"), message(b"2"), told=False)
            async with sending(directory, receiver, alive=lambda: alive) as other:
                await other.send(message(b"3"))
                alive.update({dead.session, other.session})
                await asyncio.sleep(0.6)
                assert receiver.taken == []

                alive.discard(dead.session)
                await receiver.wait(lambda it: len(it.taken) == 3)
                assert receiver.taken == texts(1, 2, 3)
                assert other.outbox.statistics.adopted == 3

    asyncio.run(main())


def test_a_session_that_is_new_is_given_the_time_to_be_seen(directory: Path) -> None:
    async def main() -> None:
        async with (
            sending(directory, Receiver(), run=False) as new,
            sending(directory, Receiver(), alive=lambda: {new.session + 1}, unseen_s=10.0) as one,
        ):
            await asyncio.sleep(0.1)
            assert not any(session.fenced for session in await one.store.sessions())
            one.now_s += 10

            async def is_fenced() -> bool:
                return (await one.store.sessions())[0].fenced

            await until(is_fenced)

    asyncio.run(main())


def test_who_does_not_know_itself_alive_fences_nobody(directory: Path) -> None:
    async def main() -> None:
        async with (
            sending(directory, Receiver(), run=False) as other,
            sending(directory, Receiver(), alive=lambda: {other.session + 100}) as one,
        ):
            await asyncio.sleep(0.1)
            assert [session.fenced for session in await one.store.sessions()] == [False, False]

    asyncio.run(main())


def test_an_outbox_that_was_fenced_stops(directory: Path) -> None:
    async def main() -> None:
        receiver = Receiver()
        receiver.held.clear()
        store = SqliteStore(directory)
        session = await store.begin_session("one")
        outbox = Outbox(store, session, receiver.deliver)
        running = asyncio.create_task(outbox.run())
        committed = await store.commit(Commit(session, CART, "alice", outgoing=[message(b"1")]))
        outbox.add(committed.kept)
        await receiver.wait(lambda it: it.tries == 1)
        await store.fence(session)
        receiver.held.set()
        with pytest.raises(Fenced):
            async with asyncio.timeout(10):
                await running
        await outbox.close()
        await store.close()

    asyncio.run(main())


def test_an_outbox_that_has_nothing_to_write_notices_that_it_was_fenced(directory: Path) -> None:
    async def main() -> None:
        store = SqliteStore(directory)
        session = await store.begin_session("one")
        outbox = Outbox(store, session, Receiver().deliver)
        running = asyncio.create_task(outbox.run())
        await store.fence(session)
        with pytest.raises(Fenced):
            async with asyncio.timeout(10):
                await running
        await store.close()

    asyncio.run(main())


def test_what_is_under_way_at_the_end_is_waited_for(directory: Path) -> None:
    async def main() -> None:
        receiver = Receiver()
        receiver.held.clear()
        async with sending(directory, receiver) as sender:
            await sender.send(message(b"1"), message(b"2"))
            await receiver.wait(lambda it: it.tries == 1)
            closing = asyncio.create_task(sender.outbox.close())
            await asyncio.sleep(0)
            receiver.held.set()
            await closing
            assert receiver.taken == [b"1"]
            assert (await sender.store.pending()).messages == 1

    asyncio.run(main())
