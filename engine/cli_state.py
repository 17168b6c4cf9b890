"""`penstock functions` and `penstock state`: what there is, and what it knows."""

from __future__ import annotations

import json

import click

from penstock.engine.cli_common import Where, where_options
from penstock.output import output_options, parse_json, print_json, print_table, would, yes_option


@click.command()
@where_options
@output_options
def functions(where: Where, as_json: bool) -> None:
    """List the functions of an application."""
    client = where.running()
    if client is not None:
        rows = client.functions()
    else:
        from penstock.functions.describing import describe_functions

        app = where.app()
        app.check()
        rows = describe_functions(app)
    if as_json:
        print_json(rows)
    else:
        columns = ("function", "takes", "answers", "state", "attempts", "location")
        print_table(rows, columns, empty="There are no functions.")


@click.group()
def state() -> None:
    """Look at the state of addresses, and set it.

    Of a stopped application, state is that of its newest checkpoint; of any application, --at N looks at checkpoint N.
    """


_at_option = click.option("--at", type=int, metavar="N", help="Look at checkpoint N instead of now.")


@state.command("list")
@click.argument("typename", metavar="FUNCTION")
@click.option("--prefix", default="", help="Only ids that begin so.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000))
@_at_option
@where_options
@output_options
def list_(where: Where, typename: str, prefix: str, limit: int, at: int | None, as_json: bool) -> None:
    """List the ids that have state, in order."""
    with where.reader(at=at) as application:
        ids = application.state_ids(typename, prefix=prefix, limit=limit)
    if as_json:
        print_json({"function": typename, "ids": ids})
        return
    for id in ids:
        click.echo(id)
    if len(ids) == limit:
        click.echo(f"(the first {limit:,}; more with --limit)", err=True)


@state.command()
@click.argument("typename", metavar="FUNCTION")
@click.argument("id")
@_at_option
@where_options
@output_options
def get(where: Where, typename: str, id: str, at: int | None, as_json: bool) -> None:
    """Print the state of one address, with its tables and logs."""
    with where.reader(at=at) as application:
        found = application.state(typename, id)
    if as_json:
        print_json(found)
        return
    if not found["exists"]:
        click.echo(f"{typename} {id} has no state yet; these are its defaults.", err=True)
    if "problem" in found:
        click.echo(found["problem"], err=True)
    parts = {part: found[part] for part in ("tables", "logs") if part in found}
    print_json({"state": found["state"], **parts} if parts else found["state"])


@state.command("set")
@click.argument("typename", metavar="FUNCTION")
@click.argument("id")
@click.argument("value", metavar="JSON")
@click.option("--expect", metavar="JSON", help="Only if the state is this now; null for none.")
@yes_option
@where_options
@output_options
def set_(where: Where, typename: str, id: str, value: str, expect: str | None, yes: bool, as_json: bool) -> None:
    """Set the state of one address; null removes it.

    It happens in the order of the messages of that address, exactly once. Tables and logs are left alone.
    """
    client = where.need_running("setting state")
    wanted = parse_json(value, "The state")
    if not yes:
        before = client.state(typename, id)
        if as_json:
            print_json({"before": before["state"], "after": wanted, "done": False})
        else:
            click.echo(f"before  {json.dumps(before['state'], ensure_ascii=False)}")
            click.echo(f"after   {json.dumps(wanted, ensure_ascii=False)}")
            would(f"set the state of {typename} {id}")
        return
    after = client.set_state(typename, id, wanted, ... if expect is None else parse_json(expect, "The expected state"))
    if as_json:
        print_json(after)
    else:
        click.echo(f"{typename} {id} is now {json.dumps(after['state'], ensure_ascii=False)}")
