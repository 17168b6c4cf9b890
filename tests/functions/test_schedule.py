"""Declaring schedules: what is taken, under which names, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from penstock import App, ConfigurationError, Context, Message, Scheduled
from penstock.testing import Harness


class Tick(Message):
    n: int = 0


def ticking() -> tuple[App, Any]:
    app = App("t")

    @app.function("t/tick")
    def tick(ctx: Context[None], message: Tick) -> None: ...

    return app, tick


def refused(app: App, *arguments: Any, **options: Any) -> str:
    def declare_and_check() -> None:
        app.schedule(*arguments, **options)
        app.check()

    with pytest.raises(ConfigurationError) as raised:
        declare_and_check()
    return str(raised.value)


def test_a_schedule_is_named_by_its_address_or_as_said() -> None:
    app, tick = ticking()
    app.schedule("@daily", tick, message=Tick())
    app.schedule("@hourly", tick, message=Tick(1), id="eu")
    app.schedule("@hourly", tick, message=Tick(2), id="eu", name="often")
    app.check()
    assert {name: (each.id, each.message.n) for name, each in app.schedules.items()} == {
        "t/tick/schedule": ("schedule", 0),
        "t/tick/eu": ("eu", 1),
        "often": ("eu", 2),
    }


def test_a_decorated_function_stays_what_it_is() -> None:
    app = App("t")

    @app.schedule("@daily", tz="Europe/Berlin")
    @app.schedule("@weekly", name="weekly", missed="all")
    @app.function("t/report")
    def report(ctx: Context[None], run: Scheduled) -> None: ...

    app.check()
    assert app.functions["t/report"] is report
    assert {name: each.missed for name, each in app.schedules.items()} == {
        "weekly": "all",
        "t/report/schedule": "run-once",
    }


def test_a_run_knows_its_time_by_the_clocks_of_the_schedule() -> None:
    run = Scheduled("s", 0, "Europe/Berlin")
    assert run.due.isoformat() == "1970-01-01T01:00:00+01:00"


def test_the_expression_and_the_time_zone_are_checked_at_once() -> None:
    app, tick = ticking()
    assert refused(app, "daily", tick, message=Tick()).startswith(
        "PEN0125 Schedule t/tick/schedule: 'daily' is no cron"
    )
    assert refused(app, "@daily", tick, tz="CEST", message=Tick()).startswith("PEN0126 Schedule t/tick/schedule: tz =")
    assert not app.schedules


def test_a_name_is_given_once() -> None:
    app, tick = ticking()
    app.schedule("@daily", tick, message=Tick())
    assert refused(app, "@hourly", tick, message=Tick()) == (
        "PEN0124 Schedule 't/tick/schedule' is declared twice. What is due next is stored by name: give each its own "
        "name=."
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "Schedule t/tick/schedule sends Scheduled to t/tick, which takes Tick."),
        ({"message": 7}, "Schedule t/tick/schedule sends int to t/tick, which takes Tick."),
        ({"message": Tick(), "id": "\ud800"}, "A schedule of t/tick has the name"),
        ({"message": Tick(), "name": "s", "id": ""}, "A schedule of t/tick has the id ''."),
        ({"message": Tick(), "missed": "some"}, "Schedule t/tick/schedule has missed = 'some', which is not known."),
    ],
)
def test_what_can_never_run_is_refused(options: dict[str, Any], why: str) -> None:
    app, tick = ticking()
    assert refused(app, "@daily", tick, **options).startswith(f"PEN0127 {why}")


def test_a_handler_is_no_function_yet() -> None:
    app, _ = ticking()

    def handler(ctx: Context[None], message: Tick) -> None: ...

    with pytest.raises(ConfigurationError, match=r"PEN0127 @app.schedule\('@daily'\) decorates .* Write it above"):
        app.schedule("@daily", message=Tick())(handler)  # type: ignore[type-var]


def test_a_function_of_another_application_is_none_of_this() -> None:
    _, tick = ticking()
    app = App("other")
    app.schedule("@daily", tick, message=Tick())
    with pytest.raises(
        ConfigurationError, match="PEN0127 Schedule t/tick/schedule is for t/tick, which is no function"
    ):
        Harness(app)
