"""The harness: an application in virtual time, whose results no restart and no number of tasks may change."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from penstock.errors import ConfigurationError, FunctionError, InvalidInput
from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.formats import Avro, CloudEvents, Format, Json, JsonSchema, Msgpack, SchemaRegistry
from penstock.functions.io import (
    FileEgress,
    FileIngress,
    GeneratorIngress,
    HttpEgress,
    MemoryEgress,
    MemoryIngress,
    PostgresEgress,
    StdoutEgress,
)
from penstock.functions.kafka import KafkaIngress
from penstock.functions.kafka_egress import KafkaEgress
from penstock.functions.state import Message, State, Table, Value
from penstock.testing import START, Harness, harness

VARIANTS: Mapping[str, Mapping[str, int]] = {
    "plain": {},
    "tasks": {"parallelism": 4},
    "restarts": {"restart_every": 1},
    "tasks and restarts": {"parallelism": 2, "restart_every": 3},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


class Departure(Message):
    airport: str
    carrier: str
    minutes: float = 0.0


class Ask(Message):
    pass


class Alert(Message):
    carrier: str
    total: float


class Airport(State):
    departures: int = 0
    by: Table[str, int] = Table()


class Carrier(State):
    total: float = 0.0
    attempts: int = 0


def flights() -> App:
    """Airports count and tell their carriers; carriers ask something slow, and sum up after an hour."""
    app = App("flights")
    alerts = app.egress("flights/alerts", MemoryEgress())

    @app.function("flights/carrier", backoff="1s")
    async def carrier(ctx: Context[Carrier], message: Departure | Ask) -> float:
        if isinstance(message, Departure):
            await asyncio.sleep(2)
            if ctx.message.attempt == 1 and message.minutes == 13:
                raise RuntimeError("the first time it fails")
            ctx.state.total += message.minutes
            ctx.state.attempts = max(ctx.state.attempts, ctx.message.attempt)
            ctx.send_after("1h", summary, ctx.id, ctx.state.total, token="summary")
        return ctx.state.total

    @app.function("flights/summary")
    def summary(ctx: Context[None], message: float) -> None:
        ctx.emit(alerts, Alert(ctx.id, message))

    @app.function("flights/airport")
    def airport(ctx: Context[Airport], message: Departure) -> None:
        ctx.state.departures += 1
        ctx.state.by[message.carrier] = ctx.state.by.get(message.carrier, 0) + 1
        ctx.send(carrier, message.carrier, message)

    app.ingress(FileIngress("departures.csv", type=Departure), to=airport, key="airport", name="departures")
    return app


DEPARTURES = [
    Departure(f"A{number % 3}", f"C{number % 5}", float(number)) for number in range(20)
]  # Number 13 fails at first.


@variants
def test_an_application_gives_the_same_results_however_it_is_run(options: Any) -> None:
    with Harness(flights(), **options) as h:
        h.feed("departures", DEPARTURES)
        h.run_until_idle()

        assert {id: state.departures for id, state in h.states("flights/airport").items()} == {
            "A0": 7,
            "A1": 7,
            "A2": 6,
        }
        assert dict(h.state("flights/airport", "A0").by) == {"C0": 2, "C1": 1, "C2": 1, "C3": 2, "C4": 1}
        totals = {id: state.total for id, state in h.states("flights/carrier").items()}
        assert totals == {f"C{number}": 30.0 + 4 * number for number in range(5)}
        assert h.state("flights/carrier", "C3").attempts == 2
        assert h.egress("flights/alerts") == []

        h.advance(hours=1)
        assert sorted(h.egress("flights/alerts"), key=lambda alert: alert.carrier) == [
            Alert(carrier, total) for carrier, total in totals.items()
        ]
        assert h.call(h.app.functions["flights/carrier"], "C4", Ask()) == 46.0
        assert h.dead_letters() == []


def test_time_stands_still_until_it_is_moved() -> None:
    with harness(flights()) as h:
        h.send("flights/airport", "A", Departure("A", "C", 5.0))
        assert (h.state("flights/airport", "A").departures, h.state("flights/carrier", "C").total) == (1, 0.0)
        assert h.now == START

        h.advance("1s")
        assert h.state("flights/carrier", "C").total == 0.0
        h.advance(timedelta(seconds=1))
        assert h.state("flights/carrier", "C").total == 5.0
        assert h.now == START + timedelta(seconds=2)


def test_what_lies_in_the_future_stays_there_when_all_is_idle() -> None:
    with Harness(flights()) as h:
        h.send("flights/carrier", "C", Departure("A", "C", 13.0))
        h.run_until_idle()

        assert h.now == START + timedelta(seconds=5)  # 2 s, 1 s before the second try, 2 s.
        h.advance(minutes=59)
        assert h.egress("flights/alerts") == []
        h.advance(minutes=1)
        assert h.egress("flights/alerts") == [Alert("C", 13.0)]


def test_a_call_lets_time_pass_until_it_is_answered() -> None:
    with Harness(flights()) as h:
        carrier = h.app.functions["flights/carrier"]

        assert h.call(carrier, "C", Departure("A", "C", 13.0)) == 13.0
        assert h.now == START + timedelta(seconds=5)
        assert h.call(carrier, "C", Departure("A", "C", 1.0), idempotency_key="k") == 14.0
        assert h.call(carrier, "C", Departure("A", "C", 1.0), idempotency_key="k") == 14.0


def failing() -> tuple[App, list[int]]:
    app, broken = App("failing"), [1]

    @app.function("t/flaky", attempts=2, backoff="1s")
    def flaky(ctx: Context[Carrier], message: float) -> float:
        if broken:
            raise ValueError("it is broken")
        ctx.state.total += message
        return ctx.state.total

    return app, broken


@variants
def test_dead_letters_are_listed_sent_again_and_dropped(options: Any) -> None:
    app, broken = failing()
    with Harness(app, **options) as h:
        for id in ("a", "b", "c"):
            h.send("t/flaky", id, 1.5)
        h.advance()
        assert h.dead_letters() == []
        h.run_until_idle()

        letters = h.dead_letters()
        assert sorted(letter.id for letter in letters) == ["a", "b", "c"]
        assert {letter.reason for letter in letters} == {"Handler raised ValueError: it is broken"}
        assert h.drop(letters[0].number) == 1
        broken.clear()
        assert h.redrive() == 2
        assert set(h.states("t/flaky")) == {letter.id for letter in letters[1:]}
        assert h.dead_letters() == []


def test_a_failed_call_raises_what_the_caller_would_get() -> None:
    app, _ = failing()
    with Harness(app) as h, pytest.raises(FunctionError) as caught:
        h.call(app.functions["t/flaky"], "a", 1.0)

    assert str(caught.value) == "PEN0210 Handler raised ValueError: it is broken. It is dead letter 1."
    assert caught.value.address == "t/flaky/a"


def test_a_call_nobody_will_answer_is_told() -> None:
    app = App("waiting")
    gate = asyncio.Event()

    @app.function("t/waits")
    async def waits(ctx: Context[None], message: int) -> int:
        await gate.wait()
        return message

    with Harness(app) as h:
        with pytest.raises(FunctionError) as caught:
            h.call(waits, "a", 1)
        assert caught.value.code == "PEN0230"
        gate.set()
        assert h.call(waits, "b", 2) == 2


def test_a_function_that_never_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.testing import running

    monkeypatch.setattr(running, "INVOCATIONS_RUN_MAX", 5_000)
    monkeypatch.setattr(running, "JUMPS_MAX", 50)
    app = App("endless")

    @app.function("t/loop")
    def loop(ctx: Context[None], message: int) -> None:
        ctx.send(loop, ctx.id, message)

    @app.function("t/sleeper")
    async def sleeper(ctx: Context[None], message: int) -> None:
        while message:  # noqa: ASYNC110  # The mistake that is to be found.
            await asyncio.sleep(1)

    with Harness(app) as h:
        h.send(sleeper, "a", 1)
        with pytest.raises(FunctionError) as caught:
            h.run_until_idle()
        assert "still busy after 50 steps of time" in caught.value.message
        h.send(loop, "a", 1)
        with pytest.raises(FunctionError) as caught:
            h.advance()
        assert "most of them for t/loop: a function sends to itself without end" in caught.value.message


def test_a_function_that_halts_stops_the_test() -> None:
    app = App("halting")

    @app.function("t/halts", attempts=1, on_failure="halt")
    def halts(ctx: Context[None], message: int) -> None:
        raise ValueError("enough")

    with Harness(app) as h:
        h.send(halts, "a", 1)
        with pytest.raises(FunctionError) as caught:
            h.advance()
        assert caught.value.code == "PEN0211"


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (
            lambda h: h.send("t/flaky", "", 1.0),
            InvalidInput,
            "PEN0203 A message to t/flaky has an empty id. An id names one instance: give it some text.",
        ),
        (
            lambda h: h.send("t/flaky", "a", "x"),
            InvalidInput,
            "PEN0107 t/flaky cannot receive str; it takes float.",
        ),
        (
            lambda h: h.send("t/nobody", "a", 1.0),
            ConfigurationError,
            "PEN0105 t/nobody is no function of this application. Known: t/flaky.",
        ),
        (
            lambda h: h.egress("t/nowhere"),
            ConfigurationError,
            "PEN0106 t/nowhere is no egress of failing. Declared: none.",
        ),
        (
            lambda h: h.feed("nothing", []),
            ConfigurationError,
            "PEN0123 nothing is no ingress of failing. Declared: none.",
        ),
        (
            lambda h: h.advance("-1s"),
            ConfigurationError,
            (
                "PEN0110 '-1s' is not a duration. Write numbers with units from large to small, such as '30d', "
                "'1h30m', '90s' or '250ms', or give seconds as a number."
            ),
        ),
    ],
)
def test_mistakes_of_the_test_are_told_at_once(act: Any, error: type[Exception], text: str) -> None:
    with Harness(failing()[0]) as h, pytest.raises(error) as caught:
        act(h)

    assert str(caught.value) == text


def test_a_message_that_is_too_large_is_refused() -> None:
    app = App("large")
    app.function("t/any")(lambda ctx, message: None)
    with Harness(app, message_bytes_max=64) as h, pytest.raises(InvalidInput) as caught:
        h.send("t/any", "a", "x" * 100)

    assert str(caught.value) == 'PEN0204 Message of 102 bytes to t/any "a" exceeds message_bytes_max = 64.'


def test_a_state_that_was_asked_for_is_a_copy() -> None:
    with Harness(flights()) as h:
        h.send("flights/airport", "A", Departure("A", "C"))
        state = h.state("flights/airport", "A")
        state.departures = 99
        state.by["C"] = 99

        assert h.state("flights/airport", "A").departures == 1
        assert dict(h.state("flights/airport", "A").by) == {"C": 1}
        assert h.state("flights/airport", "unknown") == Airport()


def test_the_dynamic_form_of_state_can_be_asked_for() -> None:
    app = App("stored")

    @app.function("t/stored", storage={"count": Value(int, default=0)})
    def stored(ctx: Context[None], message: int) -> None:
        ctx.storage.count += message

    with Harness(app) as h:
        h.send(stored, "a", 3)
        assert h.state(stored, "a").count == 3


# Ingresses and egresses.


@pytest.mark.parametrize(
    ("spec", "records"),
    [
        (
            FileIngress("x.csv", type=Departure),
            [Departure("A", "C", 1.0), {"airport": "A", "carrier": "C", "minutes": "2"}],
        ),
        (
            FileIngress("x.jsonl", type=Departure),
            [Departure("A", "C", 1.0), '{"airport":"A","carrier":"C","minutes":2}'],
        ),
        (
            GeneratorIngress(lambda first: iter(()), type=Departure),
            [Departure("A", "C", 1.0), Departure("A", "C", 2.0)],
        ),
        (MemoryIngress(type=Departure), [Departure("A", "C", 1.0), Departure("A", "C", 2.0)]),
        (
            GeneratorIngress(lambda first: iter(()), format="msgpack"),
            [("A", Departure("A", "C", 1.0)), ("A", Departure("A", "C", 2.0))],
        ),
    ],
    ids=["csv", "jsonl", "generator", "memory", "encoded"],
)
@variants
def test_every_kind_of_ingress_can_be_fed(spec: Any, records: list[Any], options: Any) -> None:
    app = App("feeding")

    @app.function("t/sum")
    def total(ctx: Context[Carrier], message: Departure) -> None:
        ctx.state.total += message.minutes

    ingress = app.ingress(spec, to=total, key=None if getattr(spec, "format", "") == "msgpack" else "airport")
    with Harness(app, **options) as h:
        h.feed(ingress, records)

        assert h.state(total, "A").total == 3.0
        assert h.dead_letters() == []


def test_a_record_that_does_not_fit_becomes_a_dead_letter() -> None:
    with Harness(flights()) as h:
        h.feed("departures", [{"airport": "A", "carrier": "C", "minutes": "late"}, DEPARTURES[0]])

        (letter,) = h.dead_letters()
        assert (letter.code, letter.typename, letter.origin) == ("PEN0201", "departures", "memory record 1")
        assert h.states("flights/airport").keys() == {"A0"}


@pytest.mark.parametrize(
    "spec",
    [
        MemoryEgress(),
        MemoryEgress(delivery="eager"),
        FileEgress("out"),
        FileEgress("out", format="csv", columns=("carrier", "total")),
        StdoutEgress(),
        HttpEgress("http://localhost/x"),
        PostgresEgress("postgresql://x", "alerts"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("value", [Alert("AA", 1.5), {"carrier": "AA", "total": 1.5}], ids=["struct", "mapping"])
def test_emitted_values_come_back_as_what_they_were(spec: Any, value: Any) -> None:
    app = App("emitting")
    out = app.egress("t/out", spec)

    @app.function("t/emits")
    def emits(ctx: Context[None], message: int) -> None:
        ctx.emit(out, value, key="k")

    with Harness(app, restart_every=1) as h:
        h.send(emits, "a", 1)
        h.send(emits, "b", 1)

        found = h.egress(out)
        if isinstance(spec, FileEgress) and spec.columns and isinstance(value, dict):
            assert found == [{"carrier": "AA", "total": "1.5"}] * 2  # A cell is a text.
        else:
            assert found == [value] * 2
        assert [row.key for row in h.egress_rows("t/out")] == [b"k"] * 2


# Restarts.


def test_a_restart_continues_from_bytes_alone() -> None:
    with Harness(flights()) as h:
        h.send("flights/carrier", "C", Departure("A", "C", 5.0))
        h.send("flights/carrier", "C", Departure("A", "C", 6.0))
        h.advance("1s")

        h.restart()
        h.advance("1s")
        assert h.state("flights/carrier", "C").total == 0.0  # The handler began again.
        h.run_until_idle()
        assert h.state("flights/carrier", "C").total == 11.0
        h.restart()
        h.advance("1h")
        assert h.egress("flights/alerts") == [Alert("C", 11.0)]


def test_what_a_handler_keeps_outside_its_state_is_found_out() -> None:
    app, outside = App("cheating"), list[int]()

    @app.function("t/cheats")
    def cheats(ctx: Context[Carrier], message: int) -> int:
        cache: dict[int, int] = ctx.state.__class__.__dict__.get("cache", {})
        outside.append(message)
        return len(cache)

    with Harness(app) as h:
        assert h.call(cheats, "a", 1) == 0
        h.restart()
        assert h.states(cheats) == {}


def test_many_restarts_go_through_bases_as_well() -> None:
    with Harness(flights(), restart_every=1) as h:
        for number in range(3):
            h.feed("departures", DEPARTURES)
            h.run_until_idle()
            assert h.state("flights/airport", "A0").departures == 7 * (number + 1)
        h.advance("1h")
        assert len(h.egress("flights/alerts")) == 5


def test_changed_code_continues_on_the_state_of_the_old() -> None:
    class Wider(State):
        total: float = 0.0
        attempts: int = 0
        name: str = "new"

    new = App("flights")

    @new.function("flights/carrier")
    def carrier(ctx: Context[Wider], message: float) -> str:
        ctx.state.total += message
        return f"{ctx.state.name} {ctx.state.total}"

    with Harness(flights()) as h:
        h.send("flights/carrier", "C", Departure("A", "C", 5.0))
        h.run_until_idle()
        h.restart(new)

        assert h.call(carrier, "C", 1.0) == "new 6.0"
        h.advance("1h")  # The delayed message is for a function that is gone.
        assert [letter.code for letter in h.dead_letters()] == ["PEN0105"]


def test_two_runs_of_one_test_are_the_same() -> None:
    def rows() -> Any:
        with Harness(flights(), parallelism=2) as h:
            h.send("flights/airport", "A", Departure("A", "C", 5.0))
            h.feed("departures", DEPARTURES)
            h.advance("2h")
            return h.egress_rows("flights/alerts"), h.now

    assert rows() == rows()


def test_a_harness_can_be_closed_with_work_under_way() -> None:
    h = Harness(flights())
    h.send("flights/carrier", "C", Departure("A", "C", 5.0))
    h.advance("1s")
    h.close()
    h.close()


# What comes from Kafka, and goes there.


def orders(format: Format | None = None, **ingress: Any) -> App:
    """Adds up what comes by key, and says each sum."""
    format = format or Json()
    app = App("orders")
    totals = app.egress("orders/totals", KafkaEgress("totals", format=format, key="id"))

    class Order(Message):
        amount: int

    class Total(State):
        total: int = 0

    class Said(Message):
        id: str
        total: int

    @app.function("orders/customer")
    def customer(ctx: Context[Total], order: Order | None) -> None:
        ctx.state.total += order.amount if order is not None else 0
        ctx.emit(totals, Said(ctx.id, ctx.state.total), headers=dict(ctx.message.headers))

    app.ingress(KafkaIngress("orders", format=format, **ingress), to=customer, name="orders")
    return app


def said(rows: list[Any]) -> list[tuple[str, int]]:
    return [(row.id, row.total) for row in rows]


@variants
@pytest.mark.parametrize(
    "format",
    [
        Json(),
        Msgpack(),
        Avro(registry=SchemaRegistry("http://nobody:1")),
        JsonSchema(SchemaRegistry("http://nobody:1")),
        CloudEvents(source="/orders", type="ordered"),
    ],
    ids=lambda format: type(format).__name__,
)
def test_records_of_topics_come_under_their_keys(options: dict[str, Any], format: Format) -> None:
    with Harness(orders(format), **options) as h:
        h.feed("orders", [("ada", {"amount": 3}), (b"grace", {"amount": 4}), ("ada", {"amount": 5}, {"trace": "x"})])

        assert sorted(said(h.egress("orders/totals"))) == [("ada", 3), ("ada", 8), ("grace", 4)]
        rows = {(row.key, tuple(row.headers)) for row in h.egress_rows("orders/totals")}
        assert rows == {(b"ada", ()), (b"grace", ()), (b"ada", (("trace", "x"),))}


def test_records_that_can_be_no_message_are_dead_letters_as_in_a_worker() -> None:
    with Harness(orders()) as h:
        h.feed("orders", [{"amount": 1}, ("ada", None), ("ada", b"no JSON"), ("ada", b'{"amount": 2}')])

        assert [(letter.code, letter.payload) for letter in h.dead_letters()] == [
            ("PEN0730", b'{"amount":1}'),
            ("PEN0731", b""),
            ("PEN0201", b"no JSON"),
        ]
        assert said(h.egress("orders/totals")) == [("ada", 2)]


def test_a_tombstone_is_none_where_that_is_wanted() -> None:
    with Harness(orders(tombstones="deliver")) as h:
        h.feed("orders", [("ada", None)])

        assert said(h.egress("orders/totals")) == [("ada", 0)]


def test_what_is_no_record_of_a_topic_is_refused() -> None:
    with Harness(orders()) as h, pytest.raises(ConfigurationError, match="no record of a topic"):
        h.feed("orders", [(1, {"amount": 1})])
