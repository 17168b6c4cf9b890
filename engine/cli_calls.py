"""`penstock calls`: addresses whose handlers wait, what for, and who waits for them. `penstock cancel` is one of its
verbs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import click

from penstock.engine.cli_common import Where, where_options
from penstock.output import output_options, parse_json, print_fields, print_json, print_table, would, yes_option

if TYPE_CHECKING:
    from penstock.engine.client import Client
    from penstock.engine.offline import StoppedApplication
    from penstock.ids import Address


@click.group()
def calls() -> None:
    """Look at what waits, and end it or let it go on.

    An address is in the list while it is busy with one message: its handler awaits something, was parked because it
    did not do the same when it was run again, or failed and is to be tried again. Of a stopped application, the list is
    that of its newest checkpoint.
    """


def _address_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("address", metavar="FUNCTION/ID")(function)


@calls.command("list")
@click.option("--function", "typename", metavar="FUNCTION", help="Only those of this function.")
@click.option("--parked", is_flag=True, help="Only those that can't go on with the code there is.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000))
@where_options
@output_options
def list_(where: Where, typename: str | None, parked: bool, limit: int, as_json: bool) -> None:
    """List what waits: for whom or what, since when, and who waits for it."""
    with where.reader() as application:
        rows = application.calls(typename=typename, parked=parked, limit=limit)
    if as_json:
        print_json(rows)
        return
    columns = ("function", "id", "state", "since", "waits_for", "called_by", "behind")
    print_table([row | {"waits_for": _waits(row)} for row in rows], columns, empty="Nothing waits.")
    if len(rows) == limit:
        click.echo(f"(the first {limit:,}; more with --limit)", err=True)


@calls.command()
@_address_argument
@where_options
@output_options
def show(where: Where, address: str, as_json: bool) -> None:
    """Show what one address is busy with: the message, the journal, and what stands in line."""
    with where.reader() as application:
        found = application.held(*_find(application, address))
    if as_json:
        print_json(found)
        return
    journal, line = found.pop("journal"), found.pop("line")
    print_fields(found | {"waits_for": _waits(found), "chain": " -> ".join(found["chain"])})
    if journal:
        click.echo()
        print_table(journal, ("number", "kind", "name", "since", "arrived", "result", "error"), empty="")
    if any(line):
        click.echo(f"\nIn line, and waited for: {', '.join(filter(None, line))}")
    if found["parked"]:
        click.echo(f"\nAfter a fix: penstock calls resume {address}", err=True)


@calls.command()
@_address_argument
@yes_option
@where_options
@output_options
def cancel(where: Where, address: str, yes: bool, as_json: bool) -> None:
    """End what an address is busy with.

    asyncio.CancelledError is raised where its handler waits, so that its `finally` and `except` blocks put things
    right, and whoever called it gets an error. What is parked ends without running.
    """
    client = where.need_running("cancelling")
    typename, id = _find(client, address)
    if yes:
        client.cancel(typename, id)
    if as_json:
        print_json({"function": typename, "id": id, "done": yes})
    elif yes:
        click.echo(f"{typename}/{id} is told to end")
    else:
        held = client.held(typename, id)
        print_fields({"state": held["state"], "since": held["since"], "waits_for": _waits(held)})
        would(f"cancel {typename}/{id}")


@calls.command()
@_address_argument
@where_options
@output_options
def resume(where: Where, address: str, as_json: bool) -> None:
    """Run again what was parked, as the code is now."""
    client = where.need_running("resuming")
    typename, id = _find(client, address)
    client.resume(typename, id)
    if as_json:
        print_json({"function": typename, "id": id, "done": True})
    else:
        click.echo(f"{typename}/{id} is run again")


@calls.command()
@_address_argument
@click.argument("name")
@click.argument("value", default="null", metavar="[JSON]")
@where_options
@output_options
def resolve(where: Where, address: str, name: str, value: str, as_json: bool) -> None:
    """Keep the promise NAME that a handler awaits, or will await.

    The first value stands. JSON is read from standard input if it is '-'.
    """
    client = where.need_running("resolving")
    typename, id = _find(client, address)
    client.resolve(typename, id, name, parse_json(value, "The value"))
    if as_json:
        print_json({"function": typename, "id": id, "promise": name, "done": True})
    else:
        click.echo(f"promise {name} of {typename}/{id} is resolved")


def _find(application: Client | StoppedApplication, text: str) -> Address:
    """The address that `text` names. Raises InvalidInput."""
    from penstock.addresses import need_address

    typenames: Collection[str] = [function["function"] for function in application.functions()]
    return need_address(text.split("/"), typenames, what="address")


def _waits(row: dict[str, Any]) -> str:
    """What it waits for, in a few words."""
    named = ", ".join(f"{each['kind']} {each['name']}" for each in row["waits_for"])
    more = row["waits"] - len(row["waits_for"])
    return f"{named} and {more:,} more" if more else named
