"""`penstock schedule`: what runs by the clock."""

from __future__ import annotations

import click

from penstock.engine.cli_common import Where, where_options
from penstock.output import output_options, print_json, print_table, would, yes_option

ALL_MAX = 100_000


@click.group()
def schedule() -> None:
    """Look at schedules, pause them, and run them besides."""


@schedule.command("list")
@where_options
@output_options
def list_(where: Where, as_json: bool) -> None:
    """List schedules: when each is due next, and when it ran last."""
    with where.reader() as application:
        rows = application.schedules(limit=ALL_MAX)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["next_due"] = "paused" if row["paused"] else row["next_due"]
    columns = ("schedule", "cron", "tz", "next_due", "last_due", "last_sent", "runs")
    print_table(rows, columns, empty="There are no schedules.")


@schedule.command()
@click.argument("name")
@where_options
@output_options
def pause(where: Where, name: str, as_json: bool) -> None:
    """Let a schedule rest, until it is resumed."""
    changed = where.need_running("pausing").pause_schedule(name, paused=True)
    _say(f"{name} is paused" if changed else f"{name} was paused already", as_json, changed=changed)


@schedule.command()
@click.argument("name")
@where_options
@output_options
def resume(where: Where, name: str, as_json: bool) -> None:
    """Let a schedule that was paused go on from now.

    What was due meanwhile is not run: see penstock schedule backfill.
    """
    changed = where.need_running("resuming").pause_schedule(name, paused=False)
    _say(f"{name} goes on" if changed else f"{name} was not paused", as_json, changed=changed)


@schedule.command()
@click.argument("name")
@where_options
@output_options
def run(where: Where, name: str, as_json: bool) -> None:
    """Run a schedule now, besides the times when it is due. Also one that is paused."""
    where.need_running("running it").run_schedule(name)
    _say(f"{name} was run", as_json, runs=1)


@schedule.command()
@click.argument("name")
@click.option("--from", "start", metavar="TIME", required=True, help="The first moment.")
@click.option("--until", "end", metavar="TIME", help="The moment before which it ends; now, if not given.")
@yes_option
@where_options
@output_options
def backfill(where: Where, name: str, start: str, end: str | None, yes: bool, as_json: bool) -> None:
    """Run a schedule for every time it was due in a span of the past, whether it ran then or not.

    A TIME is a date, or date and time, such as 2026-03-01T02:00, by the clocks of the schedule's time zone.
    """
    client = where.need_running("a backfill")
    runs = client.backfill_schedule(name, start=start, end=end, dry=not yes)
    what = f"{runs:,} run{'' if runs == 1 else 's'} of {name}"
    if yes or as_json:
        _say(f"{what} sent", as_json, runs=runs, done=yes)
    else:
        would(f"send {what}", possible=bool(runs))


def _say(text: str, as_json: bool, **told: object) -> None:
    if as_json:
        print_json(told)
    else:
        click.echo(text)
