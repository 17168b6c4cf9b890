"""How the state of an address is opened and closed: fields that expire, tables and logs, stored values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import pytest

from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.state import Expire, Log, State, Table, Value
from penstock.state.stateful import LOOKED_UP_MAX
from penstock.state.values import decode_expiring
from tests.engine.bench import Bench, Pause

SECOND = 1_000


class Visits(State):
    total: int = 0
    written: Annotated[str, Expire(after_write="10s")] = ""
    called: Annotated[str, Expire(after_call="10s")] = ""


class Items(State):
    by: Table[str, int] = Table()
    lists: Table[str, list[int]] = Table()
    events: Log[int] = Log()


def visiting() -> Bench:
    """`t/visits` sets the fields a message names; an empty message is only a call."""
    app = App("bench")

    @app.function("t/visits", attempts=1)
    def visits(ctx: Context[Visits], message: dict[str, str]) -> None:
        ctx.state.total += 1
        for name, value in message.items():
            setattr(ctx.state, name, value)
        if "fail" in message.values():
            raise RuntimeError

    return Bench(app)


def fields(bench: Bench) -> tuple[int, str, str]:
    state = bench.state(bench.app.functions["t/visits"], "a")
    return state.total, state.written, state.called


def test_a_field_expires_some_time_after_it_was_written() -> None:
    bench = visiting()
    bench.send("t/visits", "a", {"written": "x"})

    bench.clock_ms += 9_999
    bench.send("t/visits", "a", {})
    assert fields(bench) == (2, "x", "")
    bench.clock_ms += 1
    assert fields(bench) == (2, "", "")
    bench.send("t/visits", "a", {})
    assert fields(bench) == (3, "", "")


def test_writing_a_field_again_keeps_it_longer_and_writing_the_same_does_not() -> None:
    bench = visiting()
    for value in ("x", "y", "y"):
        bench.send("t/visits", "a", {"written": value})
        bench.clock_ms += 6 * SECOND

    assert fields(bench) == (3, "", "")  # 12 s after "y" was written, 6 s after it was written again.


def test_a_field_that_expires_after_calls_lives_as_long_as_there_are_any() -> None:
    bench = visiting()
    bench.send("t/visits", "a", {"called": "x"})
    for _ in range(3):
        bench.clock_ms += 9 * SECOND
        bench.send("t/visits", "a", {})

    assert fields(bench) == (4, "", "x")
    bench.clock_ms += 10 * SECOND
    assert fields(bench) == (4, "", "")


def test_a_call_that_fails_keeps_nothing_longer() -> None:
    bench = visiting()
    bench.send("t/visits", "a", {"called": "x"})
    bench.clock_ms += 9 * SECOND
    bench.send("t/visits", "a", {"total": "fail"})
    bench.clock_ms += SECOND

    assert fields(bench) == (1, "", "")


@pytest.mark.parametrize("stored", [False, True], ids=["state", "storage"])
def test_what_expires_while_a_handler_waits_stays_away_unless_the_handler_writes_it(stored: bool) -> None:
    app = App("bench")

    async def wait(ctx: Any, message: str) -> None:
        held = ctx.storage if stored else ctx.state
        held.total = (held.total or 0) + 1
        if message != "wait":
            held.written = message
            return
        await Pause()

    context: Any = Context[None] if stored else Context[Visits]
    wait.__annotations__ = {"ctx": context, "message": str, "return": None}
    values: Any = {"total": Value(int), "written": Value(str, expire=Expire(after_write="10s"))} if stored else None
    function = app.function("t/wait", storage=values)(wait)
    bench = Bench(app)
    bench.send("t/wait", "a", "x")
    bench.advance(5 * SECOND)
    bench.send("t/wait", "a", "wait")
    bench.advance(6 * SECOND)
    bench.resume()

    assert bench.state(function, "a").total == 2
    assert not bench.state(function, "a").written
    bench.send("t/wait", "a", "y")
    assert bench.state(function, "a").written == "y"


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_an_idle_address_is_swept_and_its_row_goes_when_nothing_is_left(restart: bool) -> None:
    app = App("bench")

    class Brief(State):
        first: Annotated[int, Expire(after_write="1s")] = 0
        second: Annotated[int, Expire(after_write="5s")] = 0

    @app.function("t/brief")
    def brief(ctx: Context[Brief], message: int) -> None:
        ctx.state.first = ctx.state.second = message

    bench = Bench(app)
    bench.send(brief, "a", 3)
    if restart:
        bench.restart()

    assert bench.core.next_due_ms() == 2_000
    effects = bench.advance(1_000)
    data, deadlines = decode_expiring(effects.values["t/brief"]["a"])
    assert (msgspec.msgpack.decode(data), deadlines) == ({"second": 3}, {"second": 6_000})
    assert bench.core.next_due_ms() == 6_000
    assert bench.advance(4_000).values == {"t/brief": {"a": b""}}
    assert bench.core.next_due_ms() is None
    assert [row for row, value in bench.overlay.scan(b"", b"\xff") if value] == []


def test_an_earlier_deadline_moves_the_sweep_forward() -> None:
    app = App("bench")

    class Both(State):
        late: Annotated[int, Expire(after_write="10s")] = 0
        soon: Annotated[int, Expire(after_write="1s")] = 0

    @app.function("t/both")
    def both(ctx: Context[Both], message: str) -> None:
        setattr(ctx.state, message, 1)

    bench = Bench(app)
    bench.send(both, "a", "late")
    bench.send(both, "a", "soon")

    bench.advance(1_000)

    assert (bench.state(both, "a").late, bench.state(both, "a").soon) == (1, 0)
    assert bench.core.next_due_ms() == 11_000


def test_stored_values_expire_each_on_its_own() -> None:
    app = App("bench")

    @app.function("t/stored", storage={"kept": Value(int), "brief": Value(int, expire=Expire(after_write="1s"))})
    def stored(ctx: Context[None], message: int) -> None:
        ctx.storage.kept = ctx.storage.brief = message

    bench = Bench(app)
    bench.send(stored, "a", 5)
    bench.restart()

    assert bench.core.next_due_ms() == 2_000
    bench.advance(1_000)
    assert (bench.state(stored, "a").kept, bench.state(stored, "a").brief) == (5, None)
    assert bench.core.next_due_ms() is None


def collecting() -> Bench:
    """`t/items` runs the operations a message lists on its tables and its log, and answers with what it then reads."""
    app = App("bench")

    @app.function("t/items", attempts=1)
    def items(ctx: Context[Items], message: list[tuple[str, str, int]]) -> Any:
        state = ctx.state
        for operation, key, value in message:
            match operation:
                case "set":
                    state.by[key] = value
                case "delete":
                    del state.by[key]
                case "grow":
                    state.lists.setdefault(key, []).append(value)
                    state.lists[key].append(value)
                case "append":
                    state.events.append(value)
                case "truncate":
                    state.events.truncate(value)
                case _:
                    raise RuntimeError(operation)
        return dict(state.by), dict(state.lists), list(state.events)

    return Bench(app)


def answer(bench: Bench, *operations: tuple[str, str, int]) -> Any:
    (reply,) = bench.call("t/items", "a", list(operations)).replies
    return tuple(msgspec.msgpack.decode(reply.value))


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_tables_and_logs_are_rows_of_their_address(restart: bool) -> None:
    bench = collecting()
    written = [("set", "b", 2), ("set", "a", 1), ("append", "", 7), ("append", "", 8), ("grow", "x", 3)]
    seen = answer(bench, *written)
    bench.send("t/items", "other", [("set", "c", 9)])
    if restart:
        bench.restart()

    assert seen == ({"a": 1, "b": 2}, {"x": [3, 3]}, [7, 8])
    assert answer(bench) == ({"a": 1, "b": 2}, {"x": [3, 3]}, [7, 8])
    assert answer(bench, ("delete", "a", 0), ("truncate", "", 1), ("append", "", 9)) == (
        {"b": 2},
        {"x": [3, 3]},
        [8, 9],
    )
    assert bench.effects[-1].values == {}  # None of it is in the state itself.


def test_a_handler_sees_its_own_changes_to_tables_and_loses_them_when_it_raises() -> None:
    bench = collecting()
    answer(bench, ("set", "a", 1), ("append", "", 1), ("grow", "x", 1))

    bench.send(
        "t/items", "a", [("set", "b", 2), ("delete", "a", 0), ("append", "", 2), ("grow", "x", 2), ("fail", "", 0)]
    )

    assert answer(bench) == ({"a": 1}, {"x": [1, 1]}, [1])


def test_a_log_that_was_emptied_goes_on_with_its_numbers() -> None:
    bench = collecting()
    answer(bench, ("append", "", 1), ("append", "", 2))
    bench.restart()

    assert answer(bench, ("truncate", "", 9))[2] == []
    assert answer(bench, ("append", "", 3))[2] == [3]


def test_a_few_entries_of_a_log_are_looked_up_and_many_are_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App("bench")

    @app.function("t/log")
    def log(ctx: Context[Items], message: int) -> tuple[int, list[int]]:
        ctx.state.events.append(message)
        return ctx.state.events[-1], ctx.state.events[-LOOKED_UP_MAX - 1 :]

    bench, scans = Bench(app), list[bytes]()
    scan = bench.overlay.scan

    def counted(start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        scans.append(start)
        return scan(start, end)

    monkeypatch.setattr(bench.overlay, "scan", counted)

    for number in range(LOOKED_UP_MAX + 2):
        (reply,) = bench.call(log, "a", number).replies
        last, some = msgspec.msgpack.decode(reply.value)
        assert (last, some) == (number, list(range(max(0, number - LOOKED_UP_MAX), number + 1)))
    assert len(scans) == 2
