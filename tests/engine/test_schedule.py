"""Schedules: each moment that is due is sent once, whatever crashes, changes or was missed, and people can look and
help."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from penstock import App, ConfigurationError, Context, Function, Scheduled, State
from penstock.engine.looks import SchedulesOf
from penstock.engine.operations import BackfillSchedule, Look, Operation, PauseSchedule, RunSchedule
from penstock.engine.regroup import NewTask, OldTask, fill
from penstock.engine.schedules import BACKFILL_MAX, CAUGHT_UP_AT_ONCE
from penstock.engine.task import TaskOptions
from penstock.functions.schedule import Missed
from penstock.ids import Address, key_group
from penstock.records import TaskMeta
from penstock.state.memory import MemoryBackend
from penstock.testing import Crash, Harness
from tests.engine.bench import Bench

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
NAME = Address("", "t/report/schedule")
START = datetime(2026, 3, 27, 12, tzinfo=UTC)


class Runs(State):
    due: list[str] = []  # noqa: RUF012  # A field.


def reporting(cron: str | None = "0 * * * *", **options: Any) -> tuple[App, Function[Scheduled, None]]:
    """An application whose report notes for what time it was run, and why."""
    app = App("t")

    @app.function("t/report")
    def report(ctx: Context[Runs], run: Scheduled) -> None:
        why = "" if run.reason == "due" else f" {run.reason}"
        ctx.state.due.append(f"{run.due:%d %H:%M}{why}")

    if cron is not None:
        app.schedule(cron, report, **options)
    return app, report


def seen(bench: Bench, id: str = "schedule") -> list[str]:
    runs: list[str] = bench.state(bench.app.functions["t/report"], id).due
    return runs


def shown(bench: Bench) -> dict[str, Any]:
    (row,) = bench.operate(Look(SchedulesOf("", 10)))["rows"]
    found: dict[str, Any] = row
    return found


# What is due.


def test_a_function_runs_whenever_it_is_due_and_is_told_for_which_time() -> None:
    app, report = reporting("30 2 * * *", tz="Europe/Berlin")
    with Harness(app, start=START) as h:
        h.advance(days=4)
        assert h.state(report, "schedule").due == ["28 02:30", "29 03:00", "30 02:30", "31 02:30"]


def test_a_message_of_its_own_is_sent_with_the_time_as_a_header() -> None:
    app = App("t")

    @app.schedule("0 */6 * * *", id="eu", message="sweep", name="sweep")
    @app.function("t/clean")
    def clean(ctx: Context[Runs], message: str) -> None:
        headers = ctx.message.headers
        ctx.state.due.append(f"{message} {headers['penstock-due']} {headers['penstock-schedule']} {ctx.message.origin}")

    with Harness(app, start=START) as h:
        h.advance(hours=6)
        assert h.state(clean, "eu").due == ["sweep 2026-03-27T18:00:00+00:00 sweep schedule sweep"]


@pytest.mark.parametrize("way", [{"parallelism": 4}, {"restart_every": 1}, {"seed": 3}, {"seed": 7, "parallelism": 2}])
def test_each_moment_is_sent_once_whatever_happens(way: dict[str, Any]) -> None:
    app, report = reporting("*/10 * * * *")
    with Harness(app, start=START, **way) as h:
        if "seed" in way:
            h.faults(Crash(every=2))
        h.advance(hours=2)
        expected = [f"27 {12 + at // 60}:{at % 60:02}" for at in range(10, 130, 10)]
        assert h.state(report, "schedule").due == expected
        h.restart()
        h.advance(minutes=10)
        assert h.state(report, "schedule").due == [*expected, "27 14:10"]
        if "seed" in way:
            assert h.crashes
            h.assert_exactly_once()


def test_what_waits_for_nothing_else_is_idle() -> None:
    app, report = reporting()
    with Harness(app, start=START) as h:
        h.run_until_idle()
        assert h.now == START
        assert h.state(report, "schedule").due == []
    bench = Bench(app)
    bench.run()
    assert not bench.core.holds_delayed_messages
    assert bench.core.next_wake_ms() is None
    assert bench.core.next_due_ms() == HOUR_MS


def test_what_is_redone_is_the_same() -> None:
    bench = Bench(reporting()[0])
    for _ in range(3):
        bench.advance(HOUR_MS)
    assert len(seen(bench)) == 3 - 1  # The first turn only learns of the schedule.
    assert bench.redone().values == bench.core.freeze(1).values


def test_a_run_is_the_same_message_whenever_it_is_sent() -> None:
    app = App("t")
    causes = []

    @app.function("t/report")
    def report(ctx: Context[None], run: Scheduled) -> None:
        causes.append((run.due_ms, str(ctx.uuid())))

    app.schedule("0 * * * *", report)
    for late_ms in (0, 5_000):
        bench = Bench(app)
        bench.run()
        bench.advance(HOUR_MS + late_ms)
    assert len(causes) == 2
    assert causes[0] == causes[1]


# What was missed.


@pytest.mark.parametrize(
    ("missed", "made_up"),
    [
        ("skip", []),
        ("run-once", ["01 05:00"]),
        ("all", [f"01 0{hour}:00" for hour in range(1, 6)]),
    ],
)
def test_runs_that_were_missed_are_treated_as_declared(missed: Missed, made_up: list[str]) -> None:
    bench = Bench(reporting(missed=missed)[0])
    bench.run()
    bench.restart()
    bench.advance(5 * HOUR_MS + 10 * MINUTE_MS)
    assert seen(bench) == made_up
    bench.advance(50 * MINUTE_MS)
    assert seen(bench) == [*made_up, "01 06:00"]


def test_a_run_that_is_a_little_late_was_not_missed() -> None:
    bench = Bench(reporting(missed="skip")[0])
    bench.run()
    bench.clock_ms = HOUR_MS + MINUTE_MS
    bench.run()
    assert seen(bench) == ["01 01:00"]


def test_very_many_missed_runs_are_made_up_for_in_parts() -> None:
    bench = Bench(reporting("* * * * *", missed="all")[0])
    bench.run()
    bench.advance(1_000 * MINUTE_MS)
    assert len(seen(bench)) == CAUGHT_UP_AT_ONCE
    for _ in range(9):
        bench.run()
    assert len(seen(bench)) == len(set(seen(bench))) == 1_000


# Changes of the code.


def test_a_changed_expression_counts_from_the_present_and_nothing_is_run_twice() -> None:
    bench = Bench(reporting("0 * * * *")[0])
    bench.run()
    bench.advance(2 * HOUR_MS)
    bench.restart(reporting("*/30 * * * *")[0])
    bench.run()
    assert (shown(bench)["cron"], shown(bench)["runs"]) == ("*/30 * * * *", 1)
    bench.advance(30 * MINUTE_MS)
    assert seen(bench) == ["01 02:00", "01 02:30"]


def test_what_was_due_before_a_change_is_not_lost() -> None:
    bench = Bench(reporting("0 1 * * *")[0])
    bench.run()
    bench.restart(reporting("0 5 * * *")[0])
    bench.clock_ms = 2 * HOUR_MS
    bench.run()
    assert seen(bench) == ["01 01:00"]
    bench.clock_ms = 5 * HOUR_MS
    bench.run()
    assert seen(bench) == ["01 01:00", "01 05:00"]


def test_a_schedule_that_is_removed_runs_no_more_and_is_new_when_it_returns() -> None:
    bench = Bench(reporting("0 * * * *")[0])
    bench.run()
    bench.restart(reporting(None)[0])
    assert bench.core.changed
    assert bench.core.next_due_ms() is None
    bench.advance(3 * HOUR_MS)
    assert bench.operate(Look(SchedulesOf("", 10)))["rows"] == []
    bench.restart(reporting("0 * * * *", missed="all")[0])
    bench.run()
    bench.advance(HOUR_MS)
    assert seen(bench) == ["01 04:00"]


def test_another_address_or_policy_leaves_the_times_alone() -> None:
    bench = Bench(reporting("0 * * * *", name="hourly")[0])
    bench.run()
    bench.restart(reporting("0 * * * *", name="hourly", id="eu", missed="all")[0])
    bench.run()
    assert shown(bench)["id"] == "eu"
    bench.clock_ms = HOUR_MS
    bench.run()
    assert (seen(bench), seen(bench, "eu")) == ([], ["01 01:00"])


@pytest.mark.parametrize(
    "operation",
    [PauseSchedule(True), RunSchedule(), BackfillSchedule(0, HOUR_MS, False)],
    ids=lambda each: repr(each)[:3],
)
def test_what_a_person_asks_for_does_not_keep_a_change_away(operation: Operation) -> None:
    bench = Bench(reporting("0 5 * * *")[0])
    bench.run()
    bench.restart(reporting("0 2 * * *")[0])
    bench.clock_ms = HOUR_MS
    bench.operate(operation, NAME)
    bench.run()
    assert shown(bench)["cron"] == "0 2 * * *"
    bench.operate(PauseSchedule(False), NAME)
    bench.clock_ms = 2 * HOUR_MS
    bench.run()
    assert seen(bench)[-1] == "01 02:00"


def test_nothing_is_changed_when_nothing_is_declared_otherwise() -> None:
    bench = Bench(reporting()[0])
    bench.run()
    bench.restart()
    assert not bench.core.changed
    assert bench.core.next_due_ms() == HOUR_MS


def test_a_time_zone_that_this_machine_does_not_know_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(reporting("0 2 * * *", tz="Europe/Berlin")[0])
    bench.run()
    bench.restart(reporting("0 5 * * *")[0])

    def unknown(key: str) -> None:
        raise LookupError(key)

    monkeypatch.setattr("penstock.functions.cron.ZoneInfo", unknown)
    bench.clock_ms = 2 * HOUR_MS
    bench.run()
    bench.clock_ms = 5 * HOUR_MS
    bench.run()
    assert seen(bench) == ["01 01:00", "01 05:00"]  # 02:00 in Berlin is 01:00.


def test_a_task_of_another_parallelism_goes_on_with_its_schedules() -> None:
    app = App("t")

    @app.function("t/report")
    def report(ctx: Context[Runs], run: Scheduled) -> None:
        ctx.state.due.append(run.schedule)

    for number in range(8):
        app.schedule("0 * * * *", report, name=f"s{number}", id=f"s{number}")
    olds = []
    for task in range(2):
        bench = Bench(app, options=TaskOptions(task=task, tasks=2))
        effects = bench.run()
        store = MemoryBackend()
        store.write(effects.rows.items())
        olds.append(OldTask(task, store, TaskMeta(clock_ms=1_000, numbers=effects.numbers), {}, (), ()))
    store = MemoryBackend()
    store.write(list(olds[0].store.scan(b"", b"\xff")))
    meta = fill(store, NewTask(0, 1, 0, 0), olds, mark=(1, 1))
    bench = Bench(app)
    bench.adopt(store, meta)
    assert bench.core.next_due_ms() == HOUR_MS
    bench.advance(HOUR_MS)
    assert [seen(bench, f"s{number}") for number in range(8)] == [[f"s{number}"] for number in range(8)]


def test_a_message_that_is_too_large_is_refused_at_the_start() -> None:
    app = App("t")

    @app.schedule("@daily", message="x" * 100)
    @app.function("t/report")
    def report(ctx: Context[None], message: str) -> None: ...

    with pytest.raises(ConfigurationError, match="PEN0127 Schedule t/report/schedule has a message of 102 bytes"):
        Bench(app, options=TaskOptions(message_bytes_max=100))


def test_a_task_has_the_schedules_whose_names_are_its_own() -> None:
    app, _ = reporting()
    owner = key_group(NAME.id) % 4
    for task in range(4):
        bench = Bench(app, options=TaskOptions(task=task, tasks=4))
        assert (bench.core.next_due_ms() is not None) == (task == owner)


# People.


def test_what_is_known_of_a_schedule_is_shown_by_its_clocks() -> None:
    bench = Bench(reporting("0 3 * * *", tz="Europe/Berlin", name="nightly", missed="all")[0])
    bench.run()
    row = {
        "schedule": "nightly",
        "cron": "0 3 * * *",
        "tz": "Europe/Berlin",
        "function": "t/report",
        "id": "schedule",
        "missed": "all",
        "paused": False,
        "next_due": "1970-01-01T03:00:00+01:00",
        "last_due": None,
        "last_sent": None,
        "runs": 0,
    }
    assert shown(bench) == row
    bench.clock_ms = 2 * HOUR_MS + 5_000
    bench.run()
    assert shown(bench) == row | {
        "next_due": "1970-01-02T03:00:00+01:00",
        "last_due": "1970-01-01T03:00:00+01:00",
        "last_sent": "1970-01-01T03:00:05+01:00",
        "runs": 1,
    }


def test_a_schedule_that_is_paused_rests_until_it_is_resumed_and_makes_up_for_nothing() -> None:
    bench = Bench(reporting(missed="all")[0])
    bench.run()
    assert bench.operate(PauseSchedule(True), NAME) is True
    assert bench.operate(PauseSchedule(True), NAME) is False
    assert (shown(bench)["paused"], shown(bench)["next_due"]) == (True, None)
    bench.restart(reporting("*/5 * * * *")[0])
    bench.advance(3 * HOUR_MS)
    assert (seen(bench), shown(bench)["cron"], bench.core.next_due_ms()) == ([], "*/5 * * * *", None)
    assert bench.operate(PauseSchedule(False), NAME) is True
    assert bench.operate(PauseSchedule(False), NAME) is False
    bench.advance(5 * MINUTE_MS)
    assert seen(bench) == ["01 03:05"]


def test_a_schedule_can_be_run_besides() -> None:
    bench = Bench(reporting()[0])
    bench.operate(PauseSchedule(True), NAME)
    bench.clock_ms = 7 * MINUTE_MS
    assert bench.operate(RunSchedule(), NAME) is True
    assert seen(bench) == ["01 00:07 run"]
    assert (shown(bench)["runs"], shown(bench)["last_due"]) == (1, None)


def test_the_past_can_be_filled_in() -> None:
    bench = Bench(reporting()[0])
    bench.clock_ms = DAY_MS
    assert bench.operate(BackfillSchedule(2 * HOUR_MS, 4 * HOUR_MS, True), NAME) == 2
    assert seen(bench) == []
    assert bench.operate(BackfillSchedule(2 * HOUR_MS, 4 * HOUR_MS, False), NAME) == 2
    assert bench.operate(BackfillSchedule(23 * HOUR_MS, None, False), NAME) == 1
    assert seen(bench) == ["01 02:00 backfill", "01 03:00 backfill", "01 23:00 backfill"]


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "why"),
    [
        (2 * DAY_MS, 3 * DAY_MS, "an end behind it that is not in the future"),
        (HOUR_MS, HOUR_MS, "an end behind it that is not in the future"),
        (0, 2 * DAY_MS, f"due more than {BACKFILL_MAX:,} times in that time"),
    ],
)
def test_a_backfill_that_makes_no_sense_is_refused(start_ms: int, end_ms: int, why: str) -> None:
    bench = Bench(reporting("* * * * *")[0])
    bench.clock_ms = 2 * DAY_MS
    refused = bench.operate(BackfillSchedule(start_ms, end_ms, False), NAME)
    assert refused.startswith("PEN0281 Schedule t/report/schedule ")
    assert why in refused


@pytest.mark.parametrize("operation", [PauseSchedule(True), RunSchedule(), BackfillSchedule(0, 1, True)])
def test_an_unknown_schedule_is_told_what_there_is(operation: Any) -> None:
    bench = Bench(reporting()[0])
    assert bench.operate(operation, Address("", "nightly")) == (
        "PEN0280 nightly is no schedule of this application. Declared: t/report/schedule."
    )
