"""`penstock saga`: sagas that are under way, how far each is, and what it does not get over.

What always holds: it is read from what is told of any function, addresses that are busy and their states, so it is the
same of a running application, a stopped one, and a mesh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from penstock.durations import timestamp
from penstock.engine.cli_common import Where, where_options
from penstock.output import output_options, print_json, print_table

if TYPE_CHECKING:
    from penstock.engine.client import Client
    from penstock.engine.offline import StoppedApplication

_RECORD: Final = "SagaRecord"
"""What a saga keeps; no other function does."""
_PHASES: Final = {"forward": "finishing", "backward": "compensating"}


@click.group()
def saga() -> None:
    """Look at sagas that are under way.

    Of a stopped application, they are those of its newest checkpoint. How one ended is in its state, for a week:
    penstock state get SAGA ID.
    """


@saga.command("list")
@click.option("--saga", "typename", metavar="SAGA", help="Only those of this function.")
@click.option("--stuck", is_flag=True, help="Only those with something that fails again and again.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000))
@where_options
@output_options
def list_(where: Where, typename: str | None, stuck: bool, limit: int, as_json: bool) -> None:
    """List what is under way: how far it is, since when, what it is at, and what fails."""
    names = _names(where) if typename is None else [typename]
    with where.reader() as application:
        rows = [row for name in names for row in _under_way(application, name, limit)]
    rows = [row for row in rows if row["trouble"] or not stuck][:limit]
    if as_json:
        print_json(rows)
        return
    columns = ("saga", "id", "phase", "began", "step", "trouble")
    print_table([row | {"trouble": _told(row["trouble"])} for row in rows], columns, empty="No saga is under way.")
    if len(rows) == limit:
        click.echo(f"(the first {limit:,}; more with --limit)", err=True)


def _names(where: Where) -> list[str]:
    client = where.running()
    if client is None:
        from penstock.functions.describing import describe_functions

        rows = describe_functions(where.app())
    else:
        rows = client.functions()
    return [row["function"] for row in rows if row["state"] == _RECORD]


def _under_way(application: Client | StoppedApplication, typename: str, limit: int) -> list[dict[str, Any]]:
    busy = application.calls(typename=typename, parked=False, limit=limit)
    return [_row(row, application.state(typename, row["id"])["state"]) for row in busy]


def _row(busy: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """A saga that has only begun has no record yet."""
    began_ms = record.get("began_ms", 0)
    steps = {step["name"]: step.get("phase", "started") for step in record.get("steps", ())}
    return {
        "saga": busy["function"],
        "id": busy["id"],
        "phase": _PHASES.get(record.get("phase", ""), "running"),
        "began": timestamp(began_ms) if began_ms else busy["since"],
        "step": _step(steps, back=record.get("phase") == "backward"),
        "steps": steps,
        "failure": record.get("failure"),
        "trouble": record.get("trouble"),
    }


def _step(steps: Mapping[str, str], *, back: bool) -> str:
    """What it is at: the steps without an answer, or the one that is undone next."""
    if back:
        return next((name for name in reversed(list(steps)) if steps[name] != "cancelled"), "")
    return ", ".join(name for name, phase in steps.items() if phase == "started")


def _told(trouble: Mapping[str, Any] | None) -> str:
    if trouble is None:
        return ""
    what = f"{trouble['asked']} of {trouble['step']}" if trouble["step"] else "its code"
    return f"{what} has failed {trouble['tries']} times: {trouble['reason']}"
