"""What every store of the mesh promises, for each that there is."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from penstock.errors import Fenced
from penstock.ids import Address
from penstock.mesh.store import (
    PURGED_AT_ONCE,
    Answer,
    Commit,
    Committed,
    Emitted,
    Loaded,
    Outgoing,
    Past,
    Pending,
    RejectedRecord,
    VersionMismatch,
)
from penstock.records import EgressRow
from tests.mesh.stores import ALICE, CART, Opened, Stores, message, quick_directory, with_stores


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def where(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an empty store."""
    if request.param == "sqlite":
        with quick_directory() as directory:
            yield str(directory)
    else:
        yield request.getfixturevalue("empty_database")


# Etags.


@with_stores
async def test_an_address_without_state_has_version_0(stores: Stores) -> None:
    one = await stores.open()

    assert await one.store.load(CART, "alice") == Loaded(b"", 0, None, {})


@with_stores
async def test_what_is_committed_is_loaded_by_every_process(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()

    version = await one.put("alice", b"\0state\xff")

    assert version > 0
    assert await other.store.load(CART, "alice") == Loaded(b"\0state\xff", version, None, {})


@with_stores
async def test_a_commit_that_can_not_be_encoded_keeps_nobody_from_theirs(stores: Stores) -> None:
    one = await stores.open()
    wrong = message(b"1")._replace(headers={"x-name": "\udcff"})

    first, refused, last = await asyncio.gather(
        one.store.commit(one.commit_of("first", 0, b"1")),
        one.store.commit(one.commit_of("wrong", 0, b"1", outgoing=(wrong,))),
        one.store.commit(one.commit_of("last", 0, b"1")),
        return_exceptions=True,
    )

    assert isinstance(first, Committed)
    assert isinstance(refused, UnicodeEncodeError)
    assert isinstance(last, Committed)
    assert await one.store.ids(CART) == ["first", "last"]


@with_stores
async def test_the_right_version_is_taken_and_changes(stores: Stores) -> None:
    one = await stores.open()
    first = await one.put("alice", b"1")

    committed = await one.store.commit(one.commit_of("alice", first, b"2"))

    assert committed.version > first
    assert (await one.store.load(CART, "alice")).value == b"2"


@pytest.mark.parametrize("value", [b"2", b""], ids=["write", "delete"])
def test_a_wrong_version_is_refused_and_changes_nothing(where: str, value: bytes) -> None:
    @with_stores
    async def test(stores: Stores) -> None:
        one = await stores.open()
        stale = await one.put("alice", b"0")
        current = await one.put("alice", b"1")
        commit = one.commit_of("alice", stale, value, answered=("key", b"a"), outgoing=(message(b"m"),))

        with pytest.raises(VersionMismatch) as refused:
            await one.store.commit(commit)

        assert refused.value.address == ALICE
        assert str(stale) in str(refused.value)
        assert await one.store.load(CART, "alice", "key") == Loaded(b"1", current, None, {})
        assert await one.waiting() == []

    test(where)


@with_stores
async def test_a_version_of_an_address_that_is_gone_is_refused(stores: Stores) -> None:
    one = await stores.open()
    version = await one.put("alice", b"1")
    await one.put("alice", b"")

    with pytest.raises(VersionMismatch):
        await one.store.commit(one.commit_of("alice", version, b"2"))


@with_stores
async def test_a_version_is_never_used_again(stores: Stores) -> None:
    """Otherwise who loaded the first state could overwrite the second."""
    one = await stores.open()
    first = await one.put("alice", b"1")
    await one.put("alice", b"")
    second = await one.put("alice", b"2")

    assert second > first
    with pytest.raises(VersionMismatch):
        await one.store.commit(one.commit_of("alice", first, b"3"))


@with_stores
async def test_deleting_with_the_right_version_leaves_nothing(stores: Stores) -> None:
    one = await stores.open()
    version = await one.put("alice", b"1")

    assert await one.store.commit(one.commit_of("alice", version, b"")) == Committed(0, [])
    assert await one.store.load(CART, "alice") == Loaded(b"", 0, None, {})
    assert await one.store.ids(CART) == []


@with_stores
async def test_deleting_what_is_not_there_does_no_harm(stores: Stores) -> None:
    one = await stores.open()

    assert (await one.store.commit(one.commit_of("alice", 0, b""))).version == 0


@with_stores
async def test_version_0_only_creates(stores: Stores) -> None:
    one = await stores.open()
    await one.put("alice", b"1")

    with pytest.raises(VersionMismatch):
        await one.store.commit(one.commit_of("alice", 0, b"2"))


@with_stores
async def test_without_a_version_the_last_write_wins(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()

    await asyncio.gather(one.put("alice", b"1"), other.put("alice", b"2"))
    await one.put("alice", b"3")

    assert (await other.store.load(CART, "alice")).value == b"3"


@with_stores
async def test_of_concurrent_creators_one_wins(stores: Stores) -> None:
    opened = [await stores.open() for _ in range(3)]
    commits = [each.store.commit(each.commit_of("alice", 0, b"%d" % each.session)) for each in opened * 5]

    outcomes = await asyncio.gather(*commits, return_exceptions=True)

    won = [outcome for outcome in outcomes if isinstance(outcome, Committed)]
    assert len(won) == 1
    assert sum(isinstance(outcome, VersionMismatch) for outcome in outcomes) == 14
    assert (await opened[0].store.load(CART, "alice")).version == won[0].version


@with_stores
async def test_of_concurrent_writers_none_is_lost(stores: Stores) -> None:
    opened = [await stores.open() for _ in range(2)]

    async def add(each: Opened, times: int) -> None:
        while times:
            loaded = await each.store.load(CART, "alice")
            value = b"%d" % (int(loaded.value or b"0") + 1)
            try:
                await each.store.commit(each.commit_of("alice", loaded.version, value))
                times -= 1
            except VersionMismatch:
                await asyncio.sleep(0)

    await asyncio.gather(*(add(each, 5) for each in opened * 2))

    assert (await opened[0].store.load(CART, "alice")).value == b"20"


@with_stores
async def test_a_commit_that_changes_no_state_compares_and_keeps_the_version(stores: Stores) -> None:
    one = await stores.open()
    version = await one.put("alice", b"1")

    assert (await one.store.commit(one.commit_of("alice", version))).version == version
    await one.put("alice", b"2")
    with pytest.raises(VersionMismatch):
        await one.store.commit(one.commit_of("alice", version))


@with_stores
async def test_function_types_have_nothing_in_common(stores: Stores) -> None:
    one = await stores.open()

    await one.put("alice", b"1")
    await one.put("alice", b"2", typename="shop/sub/stock %")

    assert (await one.store.load(CART, "alice")).value == b"1"
    assert (await one.store.load("shop/sub/stock %", "alice")).value == b"2"
    assert await one.store.typenames() == [CART, "shop/sub/stock %"]


# Collections.


@with_stores
async def test_rows_change_with_the_state_and_its_version(stores: Stores) -> None:
    one = await stores.open()
    first = await one.store.commit(Commit(one.session, CART, "alice", 0, b"v", {b"a\0": b"1", b"b": b"2"}))
    second = await one.store.commit(Commit(one.session, CART, "alice", first.version, None, {b"a\0": None, b"c": b""}))

    loaded = await one.store.load(CART, "alice", rows=True)

    assert loaded == Loaded(b"v", second.version, None, {b"b": b"2", b"c": b""})
    assert (await one.store.load(CART, "alice")).rows == {}
    with pytest.raises(VersionMismatch):
        await one.store.commit(Commit(one.session, CART, "alice", first.version, None, {b"b": None}))


@with_stores
async def test_an_address_with_rows_alone_has_a_version(stores: Stores) -> None:
    one = await stores.open()

    committed = await one.store.commit(Commit(one.session, CART, "alice", 0, b"", {b"a": b"1"}))
    assert committed.version == (await one.store.load(CART, "alice")).version > 0

    await one.store.commit(Commit(one.session, CART, "alice", committed.version, b"", {b"a": None}))
    assert await one.store.load(CART, "alice", rows=True) == Loaded(b"", 0, None, {})


# Bulk, transactions, prefixes.


@with_stores
async def test_of_many_at_once_only_the_wrong_one_is_refused(stores: Stores) -> None:
    one = await stores.open()
    await one.put("id-7", b"there")

    outcomes = await asyncio.gather(
        *(one.store.commit(one.commit_of(f"id-{n}", 0, b"%d" % n)) for n in range(20)), return_exceptions=True
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert [error.address.id for error in refused if isinstance(error, VersionMismatch)] == ["id-7"]
    loaded = await asyncio.gather(*(one.store.load(CART, f"id-{n}") for n in range(20)))
    assert [each.value for each in loaded] == [b"there" if n == 7 else b"%d" % n for n in range(20)]


@with_stores
async def test_of_many_at_once_a_fenced_session_is_refused_alone(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()
    ended = await one.store.begin_session("ended")
    await other.store.fence(ended)
    commits = [Commit(one.session if n % 2 else ended, CART, f"id-{n}", 0, b"1") for n in range(10)]

    outcomes = await asyncio.gather(*map(one.store.commit, commits), return_exceptions=True)

    assert [isinstance(outcome, Fenced) for outcome in outcomes] == [True, False] * 5
    assert await one.store.ids(CART) == ["id-1", "id-3", "id-5", "id-7", "id-9"]


@with_stores
async def test_of_many_at_once_those_that_meet_are_told_apart(stores: Stores) -> None:
    """The same address, the same key and the same token: what comes first is first."""
    one = await stores.open()
    await one.put("somebody", b"1")
    commit_of = one.commit_of

    outcomes = await asyncio.gather(
        one.store.commit(commit_of("alice", 0, b"1")),
        one.store.commit(commit_of("alice", 0, b"2")),
        one.store.commit(commit_of("alice", 0, b"")),
        one.store.commit(commit_of("bob", None, answered=("key", b"first"))),
        one.store.commit(commit_of("bob", None, answered=("key", b"second"))),
        one.store.commit(commit_of("carol", None, outgoing=(message(b"m", due_ms=100, token="t"),))),
        one.store.commit(commit_of("carol", None, cancelled=("t",))),
        return_exceptions=True,
    )

    refused = [isinstance(outcome, VersionMismatch) for outcome in outcomes]
    assert refused == [False, True, True, False, True, False, False]
    assert (await one.store.load(CART, "alice")).value == b"1"
    assert (await one.store.load(CART, "bob", "key")).answer == Answer(200, b"first")
    assert await one.waiting(100) == []


@with_stores
async def test_of_many_at_once_each_message_knows_who_is_before_it_in_its_lane(stores: Stores) -> None:
    one = await stores.open()
    await one.put("somebody", b"1")
    texts = [b"%d" % n for n in range(6)]

    committed = await asyncio.gather(
        *(one.store.commit(one.commit_of(version=None, outgoing=(message(text), message(text, to=f"id-{n}"))))
          for n, text in enumerate(texts))
    )  # fmt: skip

    lane = [each.kept[0] for each in committed]
    assert [kept.outgoing.payload for kept in lane] == texts
    assert [kept.previous for kept in lane] == [0, *(kept.number for kept in lane[:-1])]
    assert [each.kept[1].previous for each in committed] == [0] * 6


@with_stores
async def test_several_addresses_change_together_or_not_at_all(stores: Stores) -> None:
    one = await stores.open()
    there = await one.put("bob", b"1")

    with pytest.raises(VersionMismatch):
        await one.store.commit_all([one.commit_of("alice", 0, b"2"), one.commit_of("bob", 0, b"2")])
    assert (await one.store.load(CART, "alice")).version == 0

    await one.store.commit_all([one.commit_of("alice", 0, b"2"), one.commit_of("bob", there, b"2")])
    assert [(await one.store.load(CART, id)).value for id in ("alice", "bob")] == [b"2", b"2"]


@with_stores
async def test_a_transaction_is_carried_out_in_its_order(stores: Stores) -> None:
    one = await stores.open()
    values = (b"1", b"", b"2", b"3")

    committed = await one.store.commit_all([one.commit_of("alice", None, value) for value in values])

    assert await one.store.load(CART, "alice") == Loaded(b"3", committed[-1].version, None, {})


@with_stores
async def test_ids_are_listed_in_order_page_by_page(stores: Stores) -> None:
    one = await stores.open()
    for id in ("b", "a", "a%", "a_", "aé", "B", "a\U0010ffff", "ab"):
        await one.put(id, b"1")

    assert await one.store.ids(CART) == ["B", "a", "a%", "a_", "ab", "aé", "a\U0010ffff", "b"]
    assert await one.store.ids(CART, prefix="a", limit=2) == ["a", "a%"]
    assert await one.store.ids(CART, prefix="a", after="a%", limit=2) == ["a_", "ab"]
    assert await one.store.ids(CART, prefix="a\U0010ffff") == ["a\U0010ffff"]
    assert await one.store.ids(CART, prefix="a_") == ["a_"]
    assert await one.store.ids("shop/unknown") == []


# Answers.


@with_stores
async def test_an_answer_is_kept_under_its_key(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()
    await one.store.commit(one.commit_of("alice", 0, b"1", answered=("key", b"body")))

    assert (await other.store.load(CART, "alice", "key")).answer == Answer(200, b"body")
    assert (await other.store.load(CART, "alice", "other")).answer is None
    assert (await other.store.load(CART, "bob", "key")).answer is None


@with_stores
async def test_a_key_is_answered_once(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()
    await one.store.commit(one.commit_of(answered=("key", b"first")))

    with pytest.raises(VersionMismatch, match="key 'key' is answered already"):
        await other.store.commit(other.commit_of(answered=("key", b"second"), outgoing=(message(b"m"),)))

    assert (await one.store.load(CART, "alice", "key")).answer == Answer(200, b"first")
    assert await other.waiting() == []


@with_stores
async def test_an_answer_is_forgotten_when_its_time_is_over(stores: Stores) -> None:
    one = await stores.open()
    await one.store.commit(one.commit_of(answered=("short", b""), until_ms=1_000))
    await one.store.commit(one.commit_of(answered=("long", b""), until_ms=2_000))

    assert await one.store.purge(Past(1_000, 0, 0)) == 0
    assert await one.store.purge(Past(1_001, 0, 0)) == 1

    assert (await one.store.load(CART, "alice", "short")).answer is None
    assert (await one.store.load(CART, "alice", "long")).answer == Answer(200, b"")


@with_stores
async def test_answers_are_forgotten_a_batch_at_a_time_the_oldest_first(stores: Stores) -> None:
    one = await stores.open()
    count = PURGED_AT_ONCE + 1
    await one.store.commit_all([one.commit_of(version=None, answered=(f"{n}", b""), until_ms=n) for n in range(count)])

    assert await one.store.purge(Past(count, 0, 0)) == PURGED_AT_ONCE
    assert (await one.store.load(CART, "alice", f"{count - 2}")).answer is None
    assert (await one.store.load(CART, "alice", f"{count - 1}")).answer == Answer(200, b"")
    assert await one.store.purge(Past(count, 0, 0)) == 1
    assert await one.store.purge(Past(count, 0, 0)) == 0


# Promises.


@with_stores
async def test_a_promise_is_kept_once(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()
    assert await one.store.resolution(ALICE, "paid") is None

    assert await one.store.resolve(one.session, ALICE, "paid", b"first")
    assert not await other.store.resolve(other.session, ALICE, "paid", b"second")

    assert await other.store.resolution(ALICE, "paid") == b"first"
    assert await other.store.resolution(Address(CART, "bob"), "paid") is None


@with_stores
async def test_a_promise_that_was_taken_is_forgotten_with_the_commit(stores: Stores) -> None:
    one = await stores.open()
    await one.store.resolve(one.session, ALICE, "paid", b"1")
    await one.store.resolve(one.session, ALICE, "sent", b"2")

    await one.store.commit(Commit(one.session, *ALICE, promises=("paid",)))

    assert await one.store.resolution(ALICE, "paid") is None
    assert await one.store.resolution(ALICE, "sent") == b"2"


@with_stores
async def test_a_promise_that_nobody_takes_is_forgotten(stores: Stores) -> None:
    one = await stores.open()
    before_ms = int(time.time() * 1000)
    await one.store.resolve(one.session, ALICE, "paid", b"1")

    assert await one.store.purge(Past(0, before_ms, 0)) == 0
    assert await one.store.resolution(ALICE, "paid") == b"1"
    assert await one.store.purge(Past(0, before_ms + 3_600_000, 0)) == 1
    assert await one.store.resolution(ALICE, "paid") is None


# Sessions.


@with_stores
async def test_sessions_are_numbered_upwards_across_processes(stores: Stores) -> None:
    one, other = await stores.open("first"), await stores.open("second")
    await other.store.fence(one.session)

    assert one.session < other.session
    assert [(each.number, each.holder, each.fenced) for each in await one.store.sessions()] == [
        (one.session, "first", True),
        (other.session, "second", False),
    ]


@with_stores
async def test_a_session_that_is_forgotten_writes_nothing_and_what_it_left_is_adopted(stores: Stores) -> None:
    one, other = await stores.open("first"), await stores.open("second")
    await one.send(message(b"1"))
    assert await one.store.claim(one.session, "ingress")
    await other.store.fence(one.session)
    ended_ms = (await other.store.sessions())[0].ended_ms

    assert await other.store.purge(Past(0, 0, ended_ms - 1)) == 0
    assert await other.store.adopt(other.session) == 1
    assert await other.store.purge(Past(0, 0, ended_ms)) == 1

    assert [each.holder for each in await other.store.sessions()] == ["second"]
    assert await other.waiting() == [b"1"]
    assert await other.store.claim(other.session, "ingress")
    for typename in (CART, "shop/new"):
        with pytest.raises(Fenced):
            await one.put("alice", b"1", typename=typename)
    assert await other.store.begin_session("third") > other.session


Write = Callable[[Opened, int], Awaitable[object]]
"""Something that writes; it is given the number of a message that waits."""

WRITES: dict[str, Write] = {
    "commit": lambda one, _: one.store.commit(one.commit_of("alice", None, b"2")),
    "resolve": lambda one, _: one.store.resolve(one.session, ALICE, "paid", b""),
    "done": lambda one, number: one.store.done(one.session, [number]),
    "failed": lambda one, number: one.store.failed(one.session, number),
    "bury": lambda one, number: one.store.bury(one.session, number, "late", 1),
    "claim": lambda one, _: one.store.claim(one.session, "ingress"),
    "keep_position": lambda one, _: one.store.keep_position(one.session, "ingress", 1),
    "open_batch": lambda one, _: one.store.open_batch(one.session, "shop/log", 10),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_fenced_session_writes_nothing(where: str, write: Write) -> None:
    @with_stores
    async def test(stores: Stores) -> None:
        one, other = await stores.open(), await stores.open()
        await one.put("alice", b"1")
        await one.send(message(b"m"))
        await one.emit(1)
        (waiting,) = await one.store.due(one.session, 0, 10)

        await other.store.fence(one.session)
        with pytest.raises(Fenced, match=f"Session {one.session}"):
            await write(one, waiting.number)

        assert (await other.store.load(CART, "alice")).value == b"1"
        assert await one.waiting() == [b"m"]
        assert await other.store.claim(other.session, "ingress")
        assert await other.store.position("ingress") is None

    test(where)


@with_stores
async def test_a_session_is_fenced_in_databases_that_it_has_not_used_yet(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()
    await other.put("alice", b"1", typename="shop/stock")
    await other.store.fence(one.session)

    for typename in ("shop/stock", "shop/new"):
        with pytest.raises(Fenced):
            await one.put("alice", b"2", typename=typename)

    assert (await other.store.load("shop/stock", "alice")).value == b"1"


@with_stores
async def test_nothing_of_a_session_is_written_once_it_is_fenced(stores: Stores) -> None:
    """Whatever was on its way: what is there when `fence` returns, is all there ever is."""
    one, other = await stores.open(), await stores.open()
    await one.put("id", b"")
    commits = [asyncio.ensure_future(one.put(f"id-{n}", b"1")) for n in range(50)]
    await asyncio.sleep(0)

    await other.store.fence(one.session)
    found = await other.store.ids(CART)
    await asyncio.gather(*commits, return_exceptions=True)

    assert await other.store.ids(CART) == found
    assert len(found) == sum(commit.exception() is None for commit in commits)


# Messages that wait.


@with_stores
async def test_messages_are_kept_with_their_commit(stores: Stores) -> None:
    one = await stores.open()
    outgoing = Outgoing(
        *("shop/stock", "x\0y", b"\xff", "key/1"),
        headers={"traceparent": "00-1"},
        outside=True,
        caller=Address("shop/order", "7"),
        identity="spiffe://demo.local/ns/default/sa/shop",
    )

    committed = await one.store.commit(one.commit_of("alice", 0, b"1", outgoing=(outgoing, message(b"2"))))

    assert await one.store.due(one.session, 0, 10) == list(committed.kept)
    first, second = committed.kept
    assert (first.sender, first.outgoing, first.attempts, first.previous) == (ALICE, outgoing, 0, 0)
    assert first.number < second.number


@with_stores
async def test_messages_of_a_lane_know_who_is_before_them(stores: Stores) -> None:
    one = await stores.open()
    outgoing = (message(b"1"), message(b"2"), message(b"3", to="carol"))
    committed = await one.store.commit(one.commit_of(outgoing=outgoing))
    again = await one.store.commit(one.commit_of(outgoing=(message(b"4"),)))

    first, second, third = committed.kept
    assert [first.previous, second.previous, third.previous] == [0, first.number, 0]
    assert again.kept[0].previous == second.number


@with_stores
async def test_what_is_delivered_is_gone(stores: Stores) -> None:
    one = await stores.open()
    await one.send(message(b"1"), message(b"2"), message(b"3"))
    await one.send(message(b"4"), sender=Address("shop/stock", "s"))
    numbers = [kept.number for kept in await one.store.due(one.session, 0, 10)]

    await one.store.done(one.session, [numbers[0], numbers[3]])
    await one.store.done(one.session, [numbers[0]])

    assert await one.waiting() == [b"2", b"3"]


@with_stores
async def test_delayed_messages_are_due_in_their_time(stores: Stores) -> None:
    one = await stores.open()
    assert await one.store.next_due_ms(one.session, 0) is None
    await one.send(message(b"late", due_ms=200), message(b"early", due_ms=100), message(b"now"))

    assert await one.store.next_due_ms(one.session, 0) == 100
    assert await one.store.next_due_ms(one.session, 100) == 200
    assert await one.waiting(99) == [b"now"]
    assert await one.waiting(200) == [b"now", b"early", b"late"]
    assert await one.waiting(200, limit=1) == [b"now", b"early"]


@with_stores
async def test_delayed_messages_are_cancelled_by_token(stores: Stores) -> None:
    one = await stores.open()
    delayed = [message(text, due_ms=100, token=token) for text, token in ((b"1", "a"), (b"2", "b"), (b"3", ""))]
    await one.send(*delayed)
    await one.send(message(b"4", due_ms=100, token="a"), sender=Address(CART, "bob"))

    await one.store.commit(one.commit_of(version=None, cancelled=("a", "unknown")))

    assert await one.waiting(100) == [b"2", b"3", b"4"]


@with_stores
async def test_a_token_names_one_message(stores: Stores) -> None:
    one = await stores.open()
    await one.send(message(b"1", due_ms=100, token="a"))
    await one.send(message(b"2", due_ms=200, token="a"))

    assert await one.waiting(200) == [b"2"]


@with_stores
async def test_a_message_that_can_not_be_delivered_becomes_a_dead_letter(stores: Stores) -> None:
    one = await stores.open()
    await one.send(message(b"1"), message(b"2"))
    (first, _) = await one.store.due(one.session, 0, 10)
    await one.store.failed(one.session, first.number)
    assert [kept.attempts for kept in await one.store.due(one.session, 0, 10)] == [1, 0]

    await one.store.bury(one.session, first.number, "PEN0211 it raised", 5)

    assert await one.waiting() == [b"2"]
    (letter,) = await one.store.dead_letters()
    assert letter == (first.number, ALICE, message(b"1"), "PEN0211 it raised", 2, 5)


@with_stores
async def test_dead_letters_can_be_delivered_again_or_forgotten(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()
    await one.send(message(b"1"), message(b"2", due_ms=10, token="t"), message(b"3"))
    await one.send(message(b"4"), sender=Address("shop/stock", "s"))
    for kept in await one.store.due(one.session, 10, 10):
        await one.store.bury(one.session, kept.number, "why", 0)
    letters = await one.store.dead_letters()
    numbers = [letter.number for letter in letters]
    assert [letter.number for letter in await one.store.dead_letters(after=numbers[1], limit=1)] == [numbers[2]]

    assert await one.store.discard(one.session, numbers[:1]) == 1
    assert await other.store.redrive(other.session, numbers) == 3

    assert await one.store.dead_letters() == []
    redriven = await other.store.due(other.session, 0, 10)
    assert [(kept.outgoing.payload, kept.outgoing.key) for kept in redriven] == [(b"2", "2"), (b"3", "3"), (b"4", "4")]


@with_stores
async def test_a_lane_belongs_to_one_session(stores: Stores) -> None:
    """The address has moved to another process, and what it sent before is still on its way."""
    one, other = await stores.open(), await stores.open()
    await one.send(message(b"1"))

    committed = await other.store.commit(other.commit_of(version=None, outgoing=(message(b"2"), message(b"3", to="x"))))

    assert [kept.outgoing.payload for kept in committed.kept] == [b"3"]
    assert await one.waiting() == [b"1", b"2"]
    assert await other.waiting() == [b"3"]


@with_stores
async def test_only_what_a_fenced_session_left_is_adopted(stores: Stores) -> None:
    one, other, third = await stores.open(), await stores.open(), await stores.open()
    await one.send(message(b"1"), message(b"2"), message(b"late", due_ms=100))
    await one.send(message(b"3"), sender=Address("shop/stock", "s"))
    await third.send(message(b"4", to="carol"))
    assert await other.store.adopt(other.session) == 0

    await other.store.fence(one.session)
    assert await other.store.adopt(other.session) == 4

    assert sorted(await other.waiting(100)) == [b"1", b"2", b"3", b"late"]
    assert await third.waiting() == [b"4"]
    assert await third.store.adopt(third.session) == 0


@with_stores
async def test_a_message_that_joined_a_lane_of_a_fenced_session_is_adopted_with_it(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()
    await one.send(message(b"1"))
    await other.store.fence(one.session)
    await other.send(message(b"2"))

    assert await other.store.adopt(other.session) == 2
    assert await other.waiting() == [b"1", b"2"]


# Rows for egresses.


def row(number: int) -> EgressRow:
    return EgressRow(b"%d" % number, number)


def values(batch: list[tuple[int, EgressRow]]) -> list[bytes]:
    return [row.value for _, row in batch]


@with_stores
async def test_rows_are_written_in_batches_that_stay_the_same(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()
    await one.emit(1, 2, 3)
    (batch,) = await one.store.open_batch(one.session, "shop/log", 2)
    await one.emit(4)

    assert (batch.number, values(list(batch.rows))) == (1, [b"1", b"2"])
    assert await other.store.open_batch(other.session, "shop/log", 10) == [batch]

    await one.store.close_batch(one.session, "shop/log", batch)
    (following,) = await one.store.open_batch(one.session, "shop/log", 10)
    assert (following.lane, following.number, values(list(following.rows))) == (batch.lane, 2, [b"3", b"4"])
    await one.store.close_batch(one.session, "shop/log", following)
    assert await one.store.open_batch(one.session, "shop/log", 10) == []


@with_stores
async def test_egresses_have_batches_of_their_own(stores: Stores) -> None:
    one = await stores.open()
    full = EgressRow(b"\0", 1, b"key", "topic", (("h", "v"),), 3, 4)
    await one.store.commit(one.commit_of(emitted=(Emitted("shop/other", full),)))
    await one.emit(1)

    (batch,) = await one.store.open_batch(one.session, "shop/other", 10)

    assert [each for _, each in batch.rows] == [full]


@with_stores
async def test_a_refused_row_becomes_a_dead_letter_and_can_be_tried_again(stores: Stores) -> None:
    one = await stores.open()
    await one.emit(1, 2)
    (batch,) = await one.store.open_batch(one.session, "shop/log", 10)
    refused, _ = batch.rows[0]

    await one.store.refuse_rows(one.session, {refused: "PEN0522 no"}, 5)

    (rest,) = await one.store.open_batch(one.session, "shop/log", 10)
    assert (rest.number, values(list(rest.rows))) == (1, [b"2"])
    (letter,) = await one.store.dead_letters()
    assert letter == (refused, ALICE, Emitted("shop/log", row(1)), "PEN0522 no", 1, 5)
    assert await one.store.redrive(one.session, [refused]) == 1
    await one.store.close_batch(one.session, "shop/log", rest)
    (again,) = await one.store.open_batch(one.session, "shop/log", 10)
    assert (again.number, values(list(again.rows))) == (2, [b"1"])


@with_stores
async def test_a_batch_of_which_every_row_is_refused_is_over(stores: Stores) -> None:
    one = await stores.open()
    await one.emit(1)
    (batch,) = await one.store.open_batch(one.session, "shop/log", 10)
    await one.store.refuse_rows(one.session, {batch.rows[0][0]: "PEN0522 no"}, 5)
    assert await one.store.open_batch(one.session, "shop/log", 10) == []

    await one.emit(2)
    (following,) = await one.store.open_batch(one.session, "shop/log", 10)
    assert (following.number, values(list(following.rows))) == (2, [b"2"])


@with_stores
async def test_rows_of_every_function_type_are_found(stores: Stores) -> None:
    one = await stores.open()
    await one.emit(1)
    await one.emit(2, sender=Address("shop/stock", "s"))

    batches = await one.store.open_batch(one.session, "shop/log", 10)

    assert sorted(value for batch in batches for value in values(list(batch.rows))) == [b"1", b"2"]


# Work that one process does for all.


@with_stores
async def test_a_claim_belongs_to_one_session_until_that_is_fenced(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()
    claims = await asyncio.gather(one.store.claim(one.session, "a"), other.store.claim(other.session, "a"))
    assert sorted(claims) == [False, True]
    owner, rival = (one, other) if claims[0] else (other, one)

    assert await owner.store.claim(owner.session, "a")
    assert not await rival.store.claim(rival.session, "a")
    assert await rival.store.claim(rival.session, "b")

    await rival.store.fence(owner.session)
    assert await rival.store.claim(rival.session, "a")


@with_stores
async def test_positions_are_kept_as_they_are(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()
    assert await one.store.position("flights") is None

    await one.store.keep_position(one.session, "flights", 1)
    await one.store.keep_position(one.session, "flights", {"record": 7, "name": "é"})

    assert await other.store.position("flights") == {"record": 7, "name": "é"}


@with_stores
async def test_refused_records_become_dead_letters_with_the_position_behind_them(stores: Stores) -> None:
    one = await stores.open()
    record = RejectedRecord("flights", "flights.csv line 2", b"\xff", "PEN0201 no \0")
    await one.send(message(b"1"))
    await one.store.bury(one.session, (await one.store.due(one.session, 0, 1))[0].number, "why", 0)

    await one.store.keep_position(one.session, "flights", 2, [record], 7)

    letters = await one.store.dead_letters()
    (letter,) = (each for each in letters if each.sender is None)
    assert (letter.what, letter.died_ms) == (record, 7)
    assert await one.store.redrive(one.session, [letter.number]) == 0
    assert await one.store.discard(one.session, [letter.number]) == 1
    assert [each.reason for each in await one.store.dead_letters()] == ["why"]


# What people and other systems look at.


@with_stores
async def test_what_is_pending_is_counted_for_all_sessions(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()
    assert await one.store.pending() == Pending(0, 0, 0)

    await one.send(message(b"1"), message(b"2"), message(b"late", due_ms=100))
    await other.send(message(b"3"), sender=Address("shop/stock", "s"))
    await other.emit(1)

    assert await one.store.pending() == Pending(3, 1, 1)


@with_stores
async def test_a_store_has_a_name_of_its_own(stores: Stores) -> None:
    one, other = await stores.open(), await stores.open()

    assert len(await one.store.instance()) == 32
    assert await one.store.instance() == await other.store.instance()


# Across processes.


@contextmanager
def committing(where: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that commits again and again, and its session."""
    command = [sys.executable, "-m", "tests.mesh.store_child", where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def committed_by(process: subprocess.Popen[str], count: int) -> int:
    """Wait until it has told of as many commits; the number of the last."""
    assert process.stdout is not None
    return [int(process.stdout.readline()) for _ in range(count)][-1]


@with_stores
async def test_a_commit_is_whole_when_its_process_is_killed(stores: Stores) -> None:
    with committing(stores.where) as (process, session):
        told = committed_by(process, 20)
        process.kill()
        process.wait()

    one = await stores.open()
    last = int((await one.store.load(CART, "alice")).value)
    assert last >= told
    numbers = [b"%d" % number for number in range(1, last + 1)]
    answers = [(await one.store.load(CART, "alice", f"key-{n}")).answer for n in range(1, last + 2)]
    assert answers == [*(Answer(200, number) for number in numbers), None]
    waiting = await one.store.due(session, 0, 10_000)
    assert [kept.outgoing.payload for kept in waiting] == numbers
    (batch,) = await one.store.open_batch(one.session, "shop/log", 10_000)
    assert values(list(batch.rows)) == numbers


@with_stores
async def test_a_process_that_was_fenced_commits_nothing_more(stores: Stores) -> None:
    one = await stores.open()
    with committing(stores.where) as (process, session):
        committed_by(process, 5)

        await one.store.fence(session)
        last = await one.store.load(CART, "alice")
        _, errors = process.communicate(timeout=20)

    assert f"PEN0821 Session {session}" in errors
    assert await one.store.load(CART, "alice") == last
    assert await one.store.adopt(one.session) == int(last.value)
