"""A task core over memory: what a batch changes, and what survives a failure, a suspension and a restart."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.effects import Batch, Column, Deliveries, FrameInput, Rejected
from penstock.engine.entry import SLICES_CHECKED
from penstock.engine.operations import BuryRows, Drop, Redrive, SetState
from penstock.engine.task import SLICE_MESSAGES, TaskOptions
from penstock.errors import FunctionError, ProtocolError
from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.io import MemoryEgress
from penstock.functions.state import Log, Message, State, Table, Value
from penstock.ids import Address, key_group
from penstock.records import EgressRow, Envelope, EpochFrame, Frozen, Meta
from tests.engine.bench import Bench, Pause, deliver, deliver_all, payloads, requested


class Add(Message):
    amount: int = 1


class Fail(Message):
    pass


class Ask(Message):
    pass


class Total(State):
    total: int = 0
    seen: list[int] = msgspec.field(default_factory=list)
    by: Table[str, int] = Table()
    events: Log[int] = Log()


class Plain(State):
    total: int = 0


def counting_app(**options: Any) -> App:
    """`t/count` adds, `t/all` does everything and then fails if told to, `t/slow` is suspended once."""
    app = App("bench")
    out = app.egress("t/out", MemoryEgress())

    @app.function("t/count", **options)
    def count(ctx: Context[Plain], message: Add | Fail) -> int:
        if isinstance(message, Fail):
            raise RuntimeError("as told")
        ctx.state.total += message.amount
        return ctx.state.total

    @app.function("t/all", **options)
    def everything(ctx: Context[Total], message: Add | Fail) -> None:
        ctx.state.total += 1
        ctx.state.by["a"] = ctx.state.total
        ctx.state.events.append(ctx.state.total)
        ctx.send(count, ctx.id, Add(1))
        ctx.send_after("1s", count, ctx.id, Add(10), token="later")
        ctx.emit(out, ctx.state.total)
        ctx.reply("done")
        if isinstance(message, Fail):
            raise RuntimeError("as told")

    @app.function("t/slow", **options)
    async def slow(ctx: Context[Plain], message: Add | Fail) -> int:
        await Pause()
        if isinstance(message, Fail):
            raise RuntimeError("as told")
        ctx.state.total = ctx.state.total * 10 + message.amount
        ctx.emit(out, ctx.message.attempt)
        return ctx.state.total

    return app


def failing_app(*, attempts: int = 3, on_failure: Any = "dead-letter") -> tuple[App, list[int]]:
    """`t/flaky` fails until the list, which collects the attempt numbers, is told to stop it."""
    app, tried = App("bench"), list[int]()

    @app.function("t/flaky", attempts=attempts, backoff="100ms", on_failure=on_failure)
    def flaky(ctx: Context[Plain], message: Add) -> None:
        tried.append(ctx.message.attempt)
        ctx.state.total += 1
        if message.amount < 0:
            raise ValueError("never below zero")

    return app, tried


def test_a_handler_changes_its_state_and_sees_it_next_time() -> None:
    bench = Bench(counting_app())

    bench.send("t/count", "a", Add(2))
    effects = bench.send("t/count", "a", Add(3))

    assert bench.state(bench.app.functions["t/count"], "a") == Plain(5)
    assert msgspec.msgpack.decode(effects.values["t/count"]["a"]) == {"total": 5}
    assert effects.invocations == 1


def test_a_state_that_is_all_defaults_again_has_no_row() -> None:
    bench = Bench(counting_app())
    bench.send("t/count", "a", Add(2))

    assert bench.send("t/count", "a", Add(-2)).values == {"t/count": {"a": b""}}
    assert list(bench.overlay.ids("t/count")) == []


def test_nothing_is_written_for_a_state_that_stays_as_it_was() -> None:
    bench = Bench(counting_app())

    assert bench.send("t/count", "a", Add(0)).values == {}
    bench.send("t/count", "a", Add(2))
    assert bench.send("t/count", "a", Add(0)).values == {}


def test_a_column_is_a_fast_form_of_deliveries() -> None:
    bench, other = Bench(counting_app()), Bench(counting_app())
    payload = other.app.functions["t/count"].message_codec.encode(Add(1))

    fast = bench.run(Column("source", 3, "t/count", ["a", "b", "a"], [payload] * 3, 7))
    slow = other.run(
        Deliveries("source", 3, [Envelope("t/count", id, payload, 7 + i, None, None) for i, id in enumerate("aba")])
    )

    assert (fast.values, fast.positions, fast.invocations) == (slow.values, slow.positions, slow.invocations)


def test_the_bound_of_a_turn_leaves_the_rest_in_the_queue() -> None:
    bench = Bench(counting_app())
    messages = deliver_all(*(deliver("t/count", "a", Add(1)) for _ in range(10)))

    effects = bench.run(messages, invocations_max=4)

    assert (effects.invocations, bench.core.queued) == (4, 6)
    assert bench.run().invocations == 6


def test_the_clock_of_handlers_never_goes_back() -> None:
    app, seen = App("bench"), list[int]()

    @app.function("t/now")
    def now(ctx: Context[None], message: Add) -> None:
        seen.append(ctx.now_ms)

    bench = Bench(app)
    bench.send(now, "a", Add())
    bench.clock_ms -= 500
    bench.send(now, "a", Add())
    bench.restart()
    bench.send(now, "a", Add())

    assert seen == [1_000, 1_000, 1_000]


def test_messages_between_two_addresses_keep_their_order() -> None:
    app, seen = App("bench"), list[int]()

    @app.function("t/receiver")
    def receiver(ctx: Context[None], message: Add) -> None:
        seen.append(message.amount)

    @app.function("t/sender")
    def sender(ctx: Context[None], message: Add) -> None:
        for amount in range(5):
            ctx.send(receiver, "r", Add(message.amount * 10 + amount))

    Bench(app).run(deliver_all(deliver(sender, "s", Add(1)), deliver(sender, "s", Add(2))))

    assert seen == [*range(10, 15), *range(20, 25)]


def test_the_caller_and_the_headers_are_known() -> None:
    app, seen = App("bench"), list[Any]()

    @app.function("t/receiver")
    def receiver(ctx: Context[None], message: Add) -> None:
        seen.append((ctx.caller, dict(ctx.message.headers), ctx.message.origin))

    @app.function("t/sender")
    def sender(ctx: Context[None], message: Add) -> None:
        ctx.send(receiver, "r", message)

    bench = Bench(app)
    bench.send(sender, "s", Add())
    bench.send(receiver, "r", Add(), meta=Meta(headers={"trace": "1"}, origin="line 3"))

    assert seen == [(Address("t/sender", "s"), {}, ""), (None, {"trace": "1"}, "line 3")]


def test_causes_of_outputs_are_distinct_and_the_same_in_every_run() -> None:
    def causes() -> list[int]:
        bench = Bench(counting_app())
        batches = [bench.send("t/all", "a", Add()) for _ in range(3)]
        batches.append(bench.run(deliver("t/all", "a", Add(), cause=8)))
        rows = [row for effects in batches for rows in effects.egress.values() for row in rows]
        return [row.cause for row in rows]

    first = causes()

    assert first == causes()
    assert len(set(first)) == 2  # One for each cause that came in.


# Failures.


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_a_handler_that_raises_leaves_no_trace(restart: bool) -> None:
    bench = Bench(counting_app(attempts=1))
    bench.send("t/all", "a", Add())
    bench.advance(1_000)
    before = bench.freeze()

    effects = bench.call("t/all", "a", Fail())
    if restart:
        bench.restart()

    everything = bench.app.functions["t/all"]
    assert (effects.values, effects.egress, effects.frames) == ({}, {}, [])
    assert [chr(key[0]) for key in effects.rows] == ["\xf6"]  # The dead letter alone.
    assert before.values["t/count"] == {"a": msgspec.msgpack.encode({"total": 11})}
    assert bench.state(everything, "a").total == 1
    assert dict(bench.state(everything, "a").by) == {"a": 1}
    assert list(bench.state(everything, "a").events) == [1]
    assert bench.core.next_due_ms() is None


def test_a_failed_message_is_tried_again_with_growing_waits_and_then_put_aside() -> None:
    app, tried = failing_app()
    bench = Bench(app)

    bench.send("t/flaky", "a", Add(-1), meta=Meta(headers={"h": "1"}, origin="line 7"))
    assert (tried, bench.core.next_due_ms()) == ([1], 1_100)
    bench.advance(99)
    assert tried == [1]
    bench.advance(1)
    assert (tried, bench.core.next_due_ms()) == ([1, 2], 1_300)
    bench.advance(200)

    (letter,) = bench.letters()
    assert tried == [1, 2, 3]
    assert (letter.number, letter.code, letter.attempts, letter.clock_ms) == (1, "PEN0210", 3, 1_300)
    assert letter.reason == "Handler raised ValueError: never below zero"
    assert (letter.typename, letter.id, letter.headers, letter.origin) == ("t/flaky", "a", {"h": "1"}, "line 7")
    assert "in flaky" in letter.traceback.splitlines()[1]
    assert bench.core.next_due_ms() is None
    assert bench.state(app.functions["t/flaky"], "a") == Plain(0)


def test_others_proceed_while_one_address_waits_to_be_tried_again() -> None:
    app, tried = failing_app()
    bench = Bench(app)
    flaky = app.functions["t/flaky"]

    bench.run(deliver_all(deliver(flaky, "a", Add(-1)), deliver(flaky, "a", Add()), deliver(flaky, "b", Add())))

    assert (bench.state(flaky, "a"), bench.state(flaky, "b")) == (Plain(0), Plain(1))
    assert bench.core.statistics().pending == 2
    bench.advance(100)
    bench.advance(200)
    assert bench.state(flaky, "a") == Plain(1)  # The one behind it, after it was given up.
    assert (tried, bench.core.statistics().pending) == ([1, 1, 2, 3, 1], 0)


def test_a_message_can_succeed_when_it_is_tried_again() -> None:
    app = App("bench")

    @app.function("t/second", backoff="1s")
    def second(ctx: Context[Plain], message: Add) -> str:
        if ctx.message.attempt == 1:
            raise RuntimeError("not yet")
        ctx.state.total += message.amount
        return "at last"

    bench = Bench(app)
    assert bench.call(second, "a", Add(5)).replies == []
    (reply,) = bench.advance(1_000).replies

    assert (msgspec.msgpack.decode(reply.value), bench.state(second, "a")) == ("at last", Plain(5))
    assert bench.letters() == []


def test_attempts_are_counted_across_restarts() -> None:
    app, tried = failing_app()
    bench = Bench(app)
    bench.send("t/flaky", "a", Add(-1))

    for _ in range(3):
        bench.restart()
        bench.advance(200)

    assert tried == [1, 2, 3]
    assert [letter.attempts for letter in bench.letters()] == [3]


def test_a_function_that_shall_halt_stops_the_core() -> None:
    app, _ = failing_app(attempts=1, on_failure="halt")
    with pytest.raises(FunctionError) as caught:
        Bench(app).send("t/flaky", "a", Add(-1))

    assert str(caught.value) == (
        "PEN0211 t/flaky/a failed after 1 attempts, and on_failure is 'halt', so the application stops. PEN0210 "
        "Handler raised ValueError: never below zero. Correct the handler and start again: the message is processed "
        "once more."
    )


def test_a_caller_is_told_that_the_message_became_a_dead_letter() -> None:
    app, _ = failing_app(attempts=1)
    (reply,) = Bench(app).call("t/flaky", "a", Add(-1)).replies

    assert reply.error == "PEN0210 Handler raised ValueError: never below zero. It is dead letter 1."


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\xc1", "PEN0201"),
        (msgspec.msgpack.encode({"type": "Add", "amount": "much"}), "PEN0201"),
    ],
)
def test_an_undecodable_message_is_put_aside_at_once(payload: bytes, reason: str) -> None:
    bench = Bench(counting_app())

    bench.send("t/count", "a", payload)

    (letter,) = bench.letters()
    assert (letter.code, letter.attempts, letter.payload) == (reason, 1, payload)
    assert letter.reason.startswith("Message for t/count 'a': ")
    assert bench.core.next_due_ms() is None


def test_an_undecodable_state_says_so_and_is_kept() -> None:
    bench = Bench(counting_app())
    count = bench.app.functions["t/count"]
    damaged = msgspec.msgpack.encode({"total": "many"})
    bench.overlay.put_value(bench.overlay.cells("t/count"), "a", damaged)

    bench.send(count, "a", Add())

    (letter,) = bench.letters()
    assert letter.reason.startswith("State of t/count 'a': ")
    assert letter.state == damaged
    assert bench.core.entries["t/count"].raw("a") == damaged


def test_a_message_for_an_unknown_function_is_put_aside() -> None:
    bench = Bench(counting_app())
    (reply,) = bench.call("t/nobody", "a", Add()).replies

    expected = "t/nobody is no function of this application. Known: t/all, t/count, t/slow."
    assert [(letter.code, letter.reason, letter.attempts) for letter in bench.letters()] == [("PEN0105", expected, 0)]
    assert reply.error == f"PEN0105 {expected} It is dead letter 1."


def test_a_message_with_an_empty_id_is_put_aside() -> None:
    bench = Bench(counting_app())

    bench.send("t/count", "", Add())

    assert [(letter.code, letter.reason) for letter in bench.letters()] == [
        ("PEN0203", "A message for t/count has an empty id. An id names one instance: give it some text.")
    ]


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda ctx: ctx.send("t/act", "", Add()), "PEN0203"),
        (lambda ctx: ctx.send("t/act", "b", "no"), "PEN0107"),
        (lambda ctx: ctx.send("t/nobody", "b", Add()), "PEN0105"),
        (lambda ctx: ctx.emit("t/nowhere", 1), "PEN0106"),
        (lambda ctx: ctx.emit("t/out", b"x" * 2_000_000), "PEN0204"),
        (lambda ctx: ctx.emit("t/out", object()), "PEN0206"),
        (lambda ctx: ctx.send_after("-1s", "t/act", "b", Add()), "PEN0110"),
        (lambda ctx: ctx.cancel(""), "PEN0111"),
        (lambda ctx: [ctx.reply(1), ctx.reply(2)], "PEN0113"),
    ],
)
def test_what_a_handler_may_not_do_is_its_failure(act: Any, code: str) -> None:
    app = App("bench")
    app.egress("t/out", MemoryEgress())

    @app.function("t/act", attempts=1)
    def handler(ctx: Context[Plain], message: Add) -> None:
        ctx.state.total += 1
        act(ctx)

    bench = Bench(app)
    bench.send(handler, "a", Add())

    assert [letter.code for letter in bench.letters()] == [code]
    assert bench.state(handler, "a") == Plain(0)


def test_a_message_that_is_too_large_fails_its_sender() -> None:
    app = App("bench")

    @app.function("t/big", attempts=1)
    def big(ctx: Context[Plain], message: str) -> None:
        ctx.state.total += 1
        ctx.send(big, "b", "x" * 100)

    bench = Bench(app, options=TaskOptions(message_bytes_max=64))
    bench.send(big, "a", "go")

    (letter,) = bench.letters()
    assert (letter.code, letter.id) == ("PEN0204", "a")
    assert letter.reason == (
        'Message of 102 bytes from t/big/a to t/big "b" exceeds message_bytes_max = 64 bytes. Keep large values in '
        "state and send their key, or raise message_bytes_max."
    )


def test_a_rejected_record_becomes_a_dead_letter_and_its_position_counts() -> None:
    bench = Bench(counting_app())
    bad = Rejected("PEN0202", "Record rejected.", "x.csv line 3", "flights", "", b"raw")

    effects = bench.run(Deliveries("flights", 9, [], [bad]))

    (letter,) = bench.letters()
    assert effects.positions == {"flights": 9}
    assert (letter.code, letter.reason, letter.origin, letter.payload) == (
        "PEN0202",
        "Record rejected.",
        "x.csv line 3",
        b"raw",
    )


# Suspended handlers.


def test_a_suspended_handler_holds_only_its_address_and_keeps_the_order() -> None:
    bench = Bench(counting_app())
    slow = bench.app.functions["t/slow"]

    bench.run(deliver_all(*(deliver(slow, id, Add(amount)) for id, amount in [("a", 1), ("a", 2), ("b", 5), ("a", 3)])))
    assert len(bench.suspended) == 2
    assert bench.core.statistics().pending == 4

    bench.resume(2)
    assert (bench.state(slow, "a"), bench.state(slow, "b")) == (Plain(0), Plain(5))
    for _ in range(3):
        bench.resume()
    assert bench.state(slow, "a") == Plain(123)
    assert bench.core.statistics().pending == 0


def test_a_suspended_handler_changes_nothing_before_it_returns() -> None:
    bench = Bench(counting_app())

    effects = bench.send("t/slow", "a", Add(1))

    assert (effects.values, effects.egress) == ({}, {})
    effects = bench.resume()
    assert msgspec.msgpack.decode(effects.values["t/slow"]["a"]) == {"total": 1}
    assert len(effects.egress) == 1


def test_a_suspended_handler_that_raises_is_tried_again() -> None:
    bench = Bench(counting_app(backoff="1s", attempts=2))
    slow = bench.app.functions["t/slow"]
    bench.run(deliver_all(deliver(slow, "a", Fail()), deliver(slow, "a", Add(4))))

    bench.resume()
    assert bench.suspended == {}
    bench.advance(1_000)
    bench.resume()
    bench.resume()

    assert [(letter.attempts, letter.code) for letter in bench.letters()] == [(2, "PEN0210")]
    assert bench.state(slow, "a") == Plain(4)


def test_what_is_in_flight_is_in_the_snapshot_and_begins_again() -> None:
    bench = Bench(counting_app())
    slow = bench.app.functions["t/slow"]
    bench.run(deliver_all(deliver(slow, "a", Add(1)), deliver(slow, "a", Add(2)), deliver(slow, "b", Add(3))))
    bench.resume(2)
    bench.run(deliver("t/count", "a", Add(1)), deliver("t/count", "a", Add(2)), invocations_max=1)

    bench.restart()

    assert (bench.core.queued, bench.core.statistics().pending) == (2, 2)
    bench.run()
    effects = [bench.resume(), bench.resume()]
    assert bench.state(slow, "a") == Plain(12)
    assert bench.state(slow, "b") == Plain(3)
    assert bench.state(bench.app.functions["t/count"], "a") == Plain(3)
    assert [payloads(rows) for each in effects for rows in each.egress.values()] == [[1], [1]]


def test_an_async_handler_that_does_not_wait_ends_at_once() -> None:
    app = App("bench")

    @app.function("t/quick")
    async def quick(ctx: Context[Plain], message: Add) -> None:
        ctx.state.total += message.amount

    bench = Bench(app)
    bench.run(deliver_all(deliver(quick, "a", Add(1)), deliver(quick, "a", Add(2))))

    assert (bench.state(quick, "a"), bench.core.statistics().pending) == (Plain(3), 0)


# Delayed messages.


def delaying_app() -> App:
    app = App("bench")

    @app.function("t/bell")
    def bell(ctx: Context[Total], message: int) -> None:
        ctx.state.seen.append(message)

    @app.function("t/clock")
    def clock(ctx: Context[None], message: tuple[str, int, str]) -> None:
        kind, value, token = message
        if kind == "cancel":
            ctx.cancel(token)
        else:
            ctx.send_after(value, bell, "b", value, token=token)

    return app


def test_delayed_messages_fire_in_the_order_of_their_times_across_a_restart() -> None:
    bench = Bench(delaying_app())
    for seconds in (3, 1, 2):
        bench.send("t/clock", "a", ("after", seconds, ""))
    bell = bench.app.functions["t/bell"]

    assert bench.core.next_due_ms() == 2_000
    bench.advance(999)
    assert bench.state(bell, "b").seen == []
    bench.restart()
    bench.advance(1_001)
    assert bench.state(bell, "b").seen == [1, 2]
    bench.advance(1_000)
    assert bench.state(bell, "b").seen == [1, 2, 3]
    assert bench.core.next_due_ms() is None


def test_a_token_calls_its_message_back_or_moves_it() -> None:
    bench = Bench(delaying_app())
    bell = bench.app.functions["t/bell"]
    bench.send("t/clock", "a", ("after", 1, "x"))
    bench.send("t/clock", "a", ("after", 2, "x"))
    bench.send("t/clock", "a", ("after", 3, "y"))
    bench.send("t/clock", "other", ("cancel", 0, "x"))
    bench.send("t/clock", "a", ("cancel", 0, "y"))
    bench.send("t/clock", "a", ("cancel", 0, "never set"))

    bench.advance(10_000)

    assert bench.state(bell, "b").seen == [2]


def test_only_a_message_that_will_be_delivered_is_waited_for() -> None:
    """Neither one that was called back, though its time is still to come, nor what merely tidies up."""
    bench = Bench(delaying_app())
    bench.send("t/clock", "a", ("after", 60, "x"))
    assert bench.core.holds_delayed_messages

    bench.send("t/clock", "a", ("cancel", 0, "x"))

    assert not bench.core.holds_delayed_messages
    bench.call("t/clock", "a", ("cancel", 0, "x"), key="a request whose answer is kept for a day")
    assert not bench.core.holds_delayed_messages
    assert bench.core.next_due_ms() is not None


def test_a_token_that_has_fired_can_be_used_again() -> None:
    bench = Bench(delaying_app())
    bell = bench.app.functions["t/bell"]
    bench.send("t/clock", "a", ("after", 1, "x"))
    bench.advance(1_000)
    bench.send("t/clock", "a", ("after", 2, "x"))
    bench.restart()
    bench.send("t/clock", "a", ("cancel", 0, "x"))

    bench.advance(10_000)

    assert bench.state(bell, "b").seen == [1]


# Storage.


def test_the_dynamic_form_of_state_is_stored_and_restored() -> None:
    app = App("bench")

    @app.function("t/visits", attempts=1, storage={"count": Value(int, default=0), "name": Value(str)})
    def visits(ctx: Context[None], message: str) -> None:
        ctx.storage.count += 1
        ctx.storage.name = message
        if message == "fail":
            raise RuntimeError

    bench = Bench(app)
    for name in ("ann", "bob", "fail"):
        bench.send(visits, "a", name)
    bench.restart()

    storage = bench.state(visits, "a")
    assert (storage.count, storage.name) == (2, "bob")


def test_a_state_of_bytes_keeps_every_value() -> None:
    app = App("bench")

    @app.function("t/bytes")
    def keep(ctx: Context[bytes], message: bytes) -> None:
        ctx.state = message

    bench = Bench(app)
    for value in (b"\x80", b"", b"x"):
        bench.send(keep, "a", value)
        assert bench.state(keep, "a") == value


# Requests.


def test_a_caller_gets_what_the_handler_answers() -> None:
    bench = Bench(counting_app())
    (returned,) = bench.call("t/count", "a", Add(4)).replies
    (replied,) = bench.call("t/all", "a", Add(4)).replies

    assert (returned.request_id, msgspec.msgpack.decode(returned.value), returned.error) == ("r", 4, "")
    assert msgspec.msgpack.decode(replied.value) == "done"


def test_an_answer_that_cannot_be_encoded_fails_the_message() -> None:
    app = App("bench")

    @app.function("t/odd")
    def odd(ctx: Context[Plain], message: Add) -> Any:
        ctx.state.total += 1
        return object()

    bench = Bench(app)
    (reply,) = bench.call(odd, "a", Add()).replies

    assert reply.error.startswith("PEN0208 The answer of t/odd/a is of type object, which can't be encoded: ")
    assert bench.state(odd, "a") == Plain(0)
    bench.send(odd, "a", Add(), meta=Meta(origin="somewhere"))
    assert bench.state(odd, "a") == Plain(1)  # Nobody waited, so nothing had to be encoded.


def test_a_repeated_request_gets_the_kept_answer_until_it_is_forgotten() -> None:
    bench = Bench(counting_app(), options=TaskOptions(idempotency_keep_ms=10_000))
    count = bench.app.functions["t/count"]

    def ask(request: str) -> Any:
        (reply,) = bench.call(count, "a", Add(4), request=request, key="once").replies
        return reply.request_id, msgspec.msgpack.decode(reply.value)

    assert (ask("r1"), ask("r2")) == (("r1", 4), ("r2", 4))
    bench.restart()
    bench.advance(9_999)
    assert ask("r3") == ("r3", 4)
    bench.advance(1)
    assert ask("r4") == ("r4", 8)


def test_a_repeat_waits_for_the_first_and_gets_its_answer() -> None:
    bench = Bench(counting_app())
    slow = bench.app.functions["t/slow"]
    for request in ("r1", "r2"):
        assert bench.call(slow, "a", Add(4), request=request, key="once").replies == []

    replies = bench.resume().replies

    assert [(reply.request_id, msgspec.msgpack.decode(reply.value)) for reply in replies] == [("r1", 4), ("r2", 4)]
    assert bench.suspended == {}


def test_a_failed_request_is_not_kept() -> None:
    app, tried = failing_app(attempts=1)
    bench = Bench(app)
    for _ in range(2):
        bench.call("t/flaky", "a", Add(-1), key="once")

    assert tried == [1, 1]


# Operations.


def test_a_state_is_set_and_compared() -> None:
    bench = Bench(counting_app())
    count = bench.app.functions["t/count"]
    address = Address("t/count", "a")
    seven, eight = (msgspec.json.encode({"total": n}) for n in (7, 8))

    assert bench.operate(SetState(seven), address) is True
    assert bench.operate(SetState(eight, expected=eight), address) == (
        "PEN0303 State of t/count/a is not what was expected, so it was not set. Read it again, and decide anew."
    )
    assert bench.state(count, "a") == Plain(7)
    assert bench.operate(SetState(eight, expected=seven), address) is True
    assert bench.state(count, "a") == Plain(8)
    assert bench.operate(SetState(b"null", expected=eight), address) is True
    assert list(bench.overlay.ids("t/count")) == []


def test_a_state_that_a_waiting_handler_holds_cannot_be_set() -> None:
    bench = Bench(counting_app())
    slow, address = bench.app.functions["t/slow"], Address("t/slow", "a")
    fifty = msgspec.json.encode({"total": 50})
    bench.send(slow, "a", Add(1))

    assert bench.operate(SetState(fifty), address) == (
        "PEN0303 State of t/slow/a was not set: a handler that waits holds it, and would overwrite it when it ends. "
        "Try again then."
    )
    bench.resume()
    assert bench.operate(SetState(fifty), address) is True
    assert bench.state(slow, "a") == Plain(50)


def test_the_state_of_an_unknown_function_cannot_be_set() -> None:
    assert Bench(counting_app()).operate(SetState(b"null"), Address("t/nobody", "a")) == (
        "PEN0105 t/nobody is no function of this application. Known: t/all, t/count, t/slow."
    )


def test_dead_letters_are_sent_again_and_dropped_exactly_once() -> None:
    app, tried = failing_app(attempts=1)
    bench = Bench(app)
    for id in ("a", "b", "c"):
        bench.send("t/flaky", id, Add(-1))

    assert bench.operate(Redrive([1])) == 1
    bench.run()
    assert (tried, [letter.number for letter in bench.letters()]) == ([1, 1, 1, 1], [2, 3, 4])
    assert bench.operate(Redrive([1])) == 0
    assert bench.operate(Drop([2, 4, 9])) == 2
    assert [letter.number for letter in bench.letters()] == [3]
    bench.restart()
    assert [letter.number for letter in bench.letters()] == [3]


def test_a_redriven_message_is_the_one_it_was() -> None:
    app, seen = App("bench"), list[Any]()
    out = app.egress("t/out", MemoryEgress())
    broken = True

    @app.function("t/receiver", attempts=1)
    def receiver(ctx: Context[None], message: Add) -> None:
        seen.append((ctx.caller, dict(ctx.message.headers), ctx.message.origin))
        ctx.emit(out, 1)
        if broken:
            raise RuntimeError

    bench = Bench(app)
    meta = Meta(headers={"h": "1"}, origin="line 3")
    bench.run(deliver(receiver, "a", Add(), meta=meta, cause=77, caller=Address("t/x", "y")))
    broken = False
    bench.operate(Redrive([1]))

    assert seen == [(Address("t/x", "y"), {"h": "1"}, "line 3")] * 2
    assert bench.letters() == []
    undisturbed = Bench(app).run(deliver(receiver, "a", Add(), cause=77))
    assert bench.effects[-1].egress == undisturbed.egress  # Outsiders can tell that it is the same row.


def test_handlers_that_wait_are_counted_until_they_end() -> None:
    app = App("bench")

    @app.function("t/wait")
    async def wait(ctx: Context[None], message: Add) -> None:
        await Pause()

    bench = Bench(app)
    for id in "aab":
        bench.send(wait, id, Add())
    assert bench.core.suspended == 2
    for _ in range(3):
        bench.resume()
    assert bench.core.suspended == 0


def test_retries_that_are_due_together_stay_within_the_bound_of_a_batch() -> None:
    app, broken = App("bench"), True

    @app.function("t/receiver")
    def receiver(ctx: Context[None], message: Add) -> None:
        if broken:
            raise RuntimeError

    bench = Bench(app)
    bench.run(deliver_all(*(deliver(receiver, str(n), Add()) for n in range(10))))
    broken = False

    bench.clock_ms += 1_000
    assert [bench.run(invocations_max=4).invocations for _ in range(4)] == [4, 4, 2, 0]


def test_what_a_slice_sends_runs_before_the_next_slice_of_a_column() -> None:
    app, ran = App("bench"), []

    @app.function("t/second")
    def second(ctx: Context[None], message: Add) -> None:
        ran.append("second " + ctx.id)

    @app.function("t/first")
    def first(ctx: Context[None], message: Add) -> None:
        ran.append("first " + ctx.id)
        ctx.send(second, ctx.id, message)

    bench = Bench(app)
    ids = [str(n) for n in range(2 * SLICE_MESSAGES)]
    payload = first.message_codec.encode(Add())
    effects = bench.core.run(Batch(bench.clock_ms, [Column("p", len(ids), "t/first", ids, [payload] * len(ids), 1)]))

    early, late = ids[:SLICE_MESSAGES], ids[SLICE_MESSAGES:]
    assert effects.invocations == 2 * len(ids)
    assert ran == [f"{name} {id}" for part in (early, late) for name in ("first", "second") for id in part]


@pytest.mark.parametrize("form", ["column", "deliveries"])
def test_a_batch_ends_with_the_slice_in_which_its_time_is_over_and_nothing_is_lost(form: str) -> None:
    bench = Bench(counting_app())
    count = bench.app.functions["t/count"]
    ids = [str(n) for n in range(300)]
    payload = count.message_codec.encode(Add())
    column = Column("p", 300, "t/count", ids, [payload] * 300, 1)
    several = deliver_all(*(deliver(count, id, Add()) for id in ids))

    batch = Batch(bench.clock_ms, [column if form == "column" else several])
    first = bench.core.run(batch, lambda: True)

    assert (first.invocations, bench.core.queued) == (SLICE_MESSAGES, 300 - SLICE_MESSAGES)
    bench.restart()
    bench.run()
    assert [bench.state(count, id).total for id in ids] == [1] * 300


def test_a_request_that_was_redriven_is_not_run_again_by_a_repeat_of_it() -> None:
    app, broken = App("bench"), True

    @app.function("t/count", attempts=1)
    def count(ctx: Context[Plain], message: Add) -> int:
        if broken:
            raise RuntimeError
        ctx.state.total += message.amount
        return ctx.state.total

    bench = Bench(app)
    bench.call(count, "a", Add(4), request="r1", key="once")
    bench.restart()
    broken = False
    bench.operate(Redrive([1]))
    (reply,) = bench.call(count, "a", Add(4), request="r2", key="once").replies

    assert (reply.request_id, msgspec.msgpack.decode(reply.value)) == ("r2", 4)
    assert bench.state(count, "a").total == 4


def test_state_that_is_not_declared_is_refused_and_not_dropped() -> None:
    app = App("bench")

    @app.function("t/count")
    def count(ctx: Context, message: int) -> None:  # type: ignore[type-arg]
        ctx.state = message

    bench = Bench(app)
    bench.send("t/count", "a", 5)

    (letter,) = bench.letters()
    assert (letter.code, letter.attempts) == ("PEN0307", 1)
    assert letter.reason.startswith("t/count/a has no state, because its annotation names none.")


def test_dead_letters_are_copied_to_an_egress_if_there_is_one_for_them() -> None:
    app, _ = failing_app(attempts=1)
    bench = Bench(app, options=TaskOptions(dead_egress="penstock/dead"))

    effects = bench.send("t/flaky", "a", Add(-1))

    ((name, (row,)),) = effects.egress.items()
    assert (name, row.key) == ("penstock/dead", b"a")
    assert msgspec.json.decode(row.value)["reason"] == "Handler raised ValueError: never below zero"
    # What the egress of copies refuses is a letter already.
    refused = BuryRows("penstock/dead", [(row, "The record is too large.")])
    assert bench.operate(refused) == 1
    assert [letter.typename for letter in bench.letters()] == ["t/flaky"]
    # A row of another egress is not.
    effects = bench.run(requested(BuryRows("t/out", [(EgressRow(b"row", 5), "HTTP 400.")])))
    assert [(name, row.key) for name, rows in effects.egress.items() for row in rows] == [("penstock/dead", None)]


def test_rows_an_egress_refuses_become_dead_letters() -> None:
    bench = Bench(counting_app())

    assert bench.operate(BuryRows("t/out", [(EgressRow(b"row", 5), "HTTP 400.")])) == 1

    (letter,) = bench.letters()
    assert (letter.code, letter.reason, letter.typename, letter.origin) == (
        "PEN0215",
        "HTTP 400.",
        "t/out",
        "egress t/out",
    )


class Loose(State):
    number: int = 0
    names: list[str] = msgspec.field(default_factory=list)


def loose_app() -> App:
    app = App("bench")

    @app.function("t/loose", attempts=3)
    def loose(ctx: Context[Loose], message: Any) -> None:
        ctx.state.number = message

    @app.function("t/patient", attempts=3)
    async def patient(ctx: Context[Loose], message: Any) -> None:
        ctx.state.names.append(message)

    return app


@pytest.mark.parametrize(("function", "good", "bad"), [("t/loose", 5, "many"), ("t/patient", "ada", 5)])
def test_state_of_a_wrong_type_is_refused_where_it_is_written(function: str, good: Any, bad: Any) -> None:
    bench = Bench(loose_app())
    bench.send(function, "a", good)
    before = bench.state(bench.app.functions[function], "a")

    bench.send(function, "a", bad)
    (letter,) = bench.letters()

    assert (letter.code, letter.attempts) == ("PEN0205", 1)
    assert letter.reason.startswith(f"What the handler of {function} (test_task.py:")
    assert "Nothing was stored." in letter.reason
    assert bench.state(bench.app.functions[function], "a") == before


@pytest.mark.parametrize("checked", [False, True])
def test_what_is_stored_late_and_unread_is_explained_by_the_next_message(checked: bool) -> None:
    bench = Bench(loose_app(), options=TaskOptions(check_state=checked))
    for number in range(SLICES_CHECKED):
        bench.send("t/loose", "a", number)

    bench.send("t/loose", "a", "many")
    bench.send("t/loose", "a", 1)
    bench.send("t/loose", "b", "many")

    codes = [letter.code for letter in bench.letters()]
    if checked:
        assert codes == ["PEN0205", "PEN0205"]
        return
    # Once it has happened, every state of the function is looked at.
    assert codes == ["PEN0201", "PEN0205"]
    assert "penstock state set t/loose a JSON --yes" in bench.letters()[0].reason

    assert bench.operate(SetState(b"null"), Address("t/loose", "a")) is True
    bench.operate(Redrive([1]))
    assert bench.state(bench.app.functions["t/loose"], "a").number == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_a_row_that_is_refused_again_after_a_crash_is_one_dead_letter(restarted: bool) -> None:
    bench = Bench(counting_app())
    refused = [(EgressRow(b"row", cause), "HTTP 400.") for cause in (5, 6)]
    bench.operate(BuryRows("t/out", refused))
    if restarted:
        bench.restart()

    assert bench.operate(BuryRows("t/out", refused)) == 2
    assert [letter.cause for letter in bench.letters()] == [5, 6]

    bench.operate(Drop([bench.letters()[0].number]))
    bench.operate(BuryRows("t/out", refused))
    assert sorted(letter.cause for letter in bench.letters()) == [5, 6]


def test_a_row_is_redriven_to_its_egress_as_it_was() -> None:
    bench = Bench(counting_app())
    row = EgressRow(b"row", 5, b"key", "topic", (("name", "text"),))
    bench.operate(BuryRows("t/out", [(row, "HTTP 400.")]))
    bench.restart()

    assert bench.operate(Redrive([1])) == 1
    assert bench.effects[-1].egress == {"t/out": [row]}
    assert bench.letters() == []


def test_decided_rows_of_an_egress_that_is_gone_become_dead_letters_once() -> None:
    bench = Bench(counting_app())
    bench.send("t/all", "a", Add())
    emitted = bench.effects[-1].egress
    without = counting_app()
    del without.egresses["t/out"]

    for _ in range(3):
        bench.restart(without)

    (letter,) = bench.letters()
    assert (letter.code, letter.typename, letter.payload) == ("PEN0216", "t/out", emitted["t/out"][0].value)
    assert letter.reason.startswith("Egress t/out is not declared any more")
    assert bench.operate(Redrive([letter.number])).startswith("PEN0216 Dead letter 1 is a row of egress t/out, which")
    assert bench.letters() == [letter]

    bench.restart(counting_app())
    assert bench.operate(Redrive([letter.number])) == 1
    assert bench.effects[-1].egress == emitted


# Several tasks.


def id_of_task(task: int, tasks: int = 2) -> str:
    return next(f"id{n}" for n in range(100) if key_group(f"id{n}") % tasks == task)


def test_messages_for_another_task_leave_in_numbered_frames() -> None:
    bench = Bench(counting_app(), tasks=2)
    here, there = id_of_task(0), id_of_task(1)

    first = bench.run(deliver_all(deliver("t/count", there, Add(1)), deliver("t/count", here, Add(2))))
    second = bench.send("t/count", there, Add(3))

    assert [(frame.destination, frame.sequence, len(frame.messages)) for frame in first.frames] == [(1, 1, 1)]
    assert [(frame.destination, frame.sequence, len(frame.messages)) for frame in second.frames] == [(1, 2, 1)]
    assert list(bench.overlay.ids("t/count")) == [here]


def test_a_column_with_ids_of_another_task_is_split() -> None:
    bench = Bench(counting_app(), tasks=2)
    payload = bench.app.functions["t/count"].message_codec.encode(Add(1))

    effects = bench.run(Column("source", 2, "t/count", [id_of_task(0), id_of_task(1)], [payload] * 2, 7))

    assert list(effects.values["t/count"]) == [id_of_task(0)]
    assert [message.id for frame in effects.frames for message in frame.messages] == [id_of_task(1)]


def test_a_column_is_split_in_the_same_way_however_many_ids_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.engine.task.OWN_IDS_MAX", 3)
    bench = Bench(counting_app(), tasks=2)
    encode = bench.app.functions["t/count"].message_codec.encode
    ids = [f"id{number % 7}" for number in range(40)]

    column = Column("source", 2, "t/count", ids, [encode(Add(number)) for number in range(40)], 100)
    bench.run(column)
    bench.run(column)
    effects = bench.run(column)

    for id in set(ids):
        numbers = [number for number in range(40) if ids[number] == id]
        if key_group(id) % 2 == 0:
            assert bench.state(bench.app.functions["t/count"], id) == Plain(3 * sum(numbers))
        else:
            sent = [message for frame in effects.frames for message in frame.messages if message.id == id]
            assert [message.payload for message in sent] == [encode(Add(number)) for number in numbers]
            assert [message.cause for message in sent] == [100 + number for number in numbers]


def test_frames_are_taken_once_and_a_gap_is_noticed() -> None:
    bench = Bench(counting_app(), task=1, tasks=2)
    count, id = bench.app.functions["t/count"], id_of_task(1)

    def frame(attempt: int, sequence: int, offset: int) -> FrameInput:
        message = Envelope("t/count", id, count.message_codec.encode(Add(1)), 7, None, None)
        return FrameInput(offset, EpochFrame(attempt, 0, 0, sequence, [message]))

    bench.run(frame(1, 1, 1), frame(1, 2, 2), frame(1, 2, 3))
    assert (bench.state(count, id), bench.core.statistics().duplicate_frames) == (Plain(2), 1)
    bench.restart()
    bench.run(frame(1, 2, 4), frame(2, 1, 5), frame(1, 3, 6))
    assert (bench.state(count, id), bench.core.meta.inbox_position) == (Plain(3), 6)

    with pytest.raises(ProtocolError) as caught:
        bench.run(frame(2, 3, 7))
    assert str(caught.value) == (
        "PEN0503 Task 1 received frame 3 of task 0 after frame 1. Frames are numbered densely, so at least one is "
        "lost: this attempt ends, and the last checkpoint is restored."
    )


def test_numbers_of_dead_letters_are_unique_in_the_application() -> None:
    numbers = []
    for task in (0, 1):
        bench = Bench(failing_app(attempts=1)[0], task=task, tasks=2)
        bench.run(*(deliver("t/flaky", id_of_task(task), Add(-1)) for _ in range(2)))
        numbers.append([letter.number for letter in bench.letters()])

    assert numbers == [[2, 4], [3, 5]]


# Cuts.


def test_eager_rows_leave_with_the_effects_and_are_in_no_snapshot() -> None:
    bench = Bench(counting_app(), options=TaskOptions(eager=frozenset({"t/out"})))

    effects = bench.send("t/all", "a", Add())

    assert list(effects.egress) == ["t/out"]
    assert bench.freeze().egress == {}


def test_a_cut_holds_what_changed_since_the_last_one() -> None:
    bench = Bench(counting_app())
    bench.send("t/all", "a", Add())
    first = bench.freeze()
    assert not bench.core.changed
    bench.send("t/count", "b", Add())
    assert bench.core.changed
    second = bench.freeze()

    assert {name: list(values) for name, values in first.values.items()} == {"t/all": ["a"], "t/count": ["a"]}
    assert payloads(first.egress["t/out"]) == [1]
    assert second.values == {"t/count": {"b": msgspec.msgpack.encode({"total": 1})}}
    assert (second.rows, second.egress) == ({}, {})


def test_messages_of_a_function_that_is_gone_become_dead_letters() -> None:
    bench = Bench(counting_app())
    bench.run(deliver("t/count", "a", Add(1)), deliver("t/count", "b", Add(2)), invocations_max=1)
    bench.send("t/slow", "a", Add(3))
    smaller = App("bench")
    smaller.function("t/other")(lambda ctx, message: None)

    bench.run(deliver("t/slow", "a", Add(4)), deliver("t/count", "c", Add(5)), invocations_max=0)
    bench.restart(smaller)

    assert sorted((letter.typename, letter.id, letter.code) for letter in bench.letters()) == [
        ("t/count", "c", "PEN0105"),
        ("t/slow", "a", "PEN0105"),
        ("t/slow", "a", "PEN0105"),
    ]
    assert bench.core.changed
    bench.restart()
    assert len(bench.letters()) == 3


# The same without handlers.


actions = st.one_of(
    st.tuples(st.just("count"), st.sampled_from("abc"), st.integers(-2, 2)),
    st.tuples(st.just("count fails"), st.sampled_from("abc"), st.just(0)),
    st.tuples(st.just("all"), st.sampled_from("abc"), st.just(0)),
    st.tuples(st.just("all fails"), st.sampled_from("abc"), st.just(0)),
    st.tuples(st.just("slow"), st.sampled_from("abc"), st.integers(0, 9)),
    st.tuples(st.just("slow fails"), st.sampled_from("abc"), st.just(0)),
    st.tuples(st.just("call"), st.sampled_from("abc"), st.integers(0, 2)),
    st.tuples(st.just("redrive"), st.just(""), st.integers(1, 3)),
    st.tuples(st.just("resume"), st.just(""), st.just(0)),
    st.tuples(st.just("time"), st.just(""), st.integers(0, 1_500)),
    st.tuples(st.just("unknown"), st.sampled_from("abc"), st.just(0)),
)
batches = st.lists(st.tuples(st.lists(actions, max_size=6), st.integers(0, 4)), max_size=12)


def input_of(bench: Bench, kind: str, id: str, value: int) -> Any:
    """The input for one action; None when it is one of the clock, or there is nothing to resume."""
    match kind:
        case "time":
            bench.clock_ms += value
            return None
        case "resume":
            return bench._step(min(bench.suspended)) if bench.suspended else None
        case "redrive":
            payload = msgspec.msgpack.encode(Redrive([value]))
            meta = Meta(request_id="o", operation="dead.redrive")
            return Deliveries("requests", value, [Envelope("", "", payload, 1, None, meta)])
        case "call":
            return deliver("t/count", id, Add(value), meta=Meta(request_id="r", idempotency_key=str(value)))
        case "unknown":
            return deliver("t/nobody", id, Add())
        case _:
            name, _, fails = kind.partition(" ")
            return deliver(f"t/{name}", id, Fail() if fails else Add(value))


@settings(deadline=None, max_examples=150)
@given(batches, st.sampled_from([1, 2]))
def test_redoing_the_effects_gives_what_running_the_batches_gave(program: Any, tasks: int) -> None:
    options = TaskOptions(tasks=tasks, idempotency_keep_ms=2_000)
    bench = Bench(counting_app(attempts=2, backoff="200ms"), options=options)
    for actions_of_batch, invocations_max in program:
        inputs = [each for action in actions_of_batch if (each := input_of(bench, *action)) is not None]
        bench.run(*inputs, invocations_max=invocations_max)

    redone = bench.redone()

    frozen = bench.core.freeze(1)
    # Effects don't say what is to run next.
    meta = msgspec.structs.replace(frozen.meta, ready=redone.meta.ready)
    assert normal(frozen._replace(meta=meta)) == normal(redone)


@settings(deadline=None, max_examples=100)
@given(batches)
def test_restarts_between_batches_lose_nothing(program: Any) -> None:
    """What does not depend on when things happen ends alike: a suspended handler begins again, in its place."""
    plain, restarted = (Bench(counting_app(attempts=1)) for _ in range(2))
    for actions_of_batch, invocations_max in program:
        timeless = [action for action in actions_of_batch if action[0] not in ("resume", "time", "redrive")]
        for bench in (plain, restarted):
            bench.run(*(input_of(bench, *action) for action in timeless), invocations_max=invocations_max)
        restarted.restart()
    for bench in (plain, restarted):
        while bench.core.queued or bench.suspended:
            bench.run()
            if bench.suspended:
                bench.resume()
        bench.advance(3_600_000 * 48)

    for name, function in plain.app.functions.items():
        ids = sorted(plain.overlay.ids(name))
        assert sorted(restarted.overlay.ids(name)) == ids
        assert all(plain.state(function, id) == restarted.state(function, id) for id in ids)
    assert len(plain.letters()) == len(restarted.letters())


def normal(frozen: Frozen) -> Any:
    """A frozen task as plain values: equal when nothing in them differs."""
    return msgspec.to_builtins(frozen._replace(task=0, checkpoint=0))
