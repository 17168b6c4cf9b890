"""`penstock dead`: messages that were given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import click

from penstock.engine.cli_common import Where, where_options
from penstock.engine.client import Client
from penstock.output import output_options, print_fields, print_json, print_table, would, yes_option

ALL_MAX = 100_000


@click.group()
def dead() -> None:
    """Look at messages that were given up, and send them again."""


def _choice_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--code", metavar="CODE", help="Only those with this error.")(function)
    return click.option("--function", "typename", metavar="FUNCTION", help="Only those for this function.")(function)


@dead.command("list")
@_choice_options
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, ALL_MAX))
@where_options
@output_options
def list_(where: Where, typename: str | None, code: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, oldest first."""
    with where.reader() as application:
        rows = application.letters(typename=typename, code=code, limit=limit)
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("number", "at", "function", "id", "code", "reason"), empty="There are no dead letters.")


@dead.command()
@where_options
@output_options
def count(where: Where, as_json: bool) -> None:
    """Count dead letters by function and error code."""
    with where.reader() as application:
        rows = application.letter_counts()
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("letters", "function", "code"), empty="There are no dead letters.")


@dead.command()
@click.argument("number", type=int)
@where_options
@output_options
def show(where: Where, number: int, as_json: bool) -> None:
    """Show one dead letter: the message, the error, and the state at that moment."""
    with where.reader() as application:
        letter = application.letter(number)
    if as_json:
        print_json(letter)
        return
    trace = letter.pop("traceback")
    print_fields(letter)
    if trace:
        click.echo(f"\n{trace}", nl=False)
    click.echo(f"\nAfter a fix: penstock dead redrive {number} --yes", err=True)


def _numbers_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = output_options(where_options(yes_option(function)))
    function = click.option("--all", "all_", is_flag=True, help="All, or all that --function and --code choose.")(
        function
    )
    function = _choice_options(function)
    return click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER]...")(function)


@dead.command()
@_numbers_options
def redrive(where: Where, **choice: Any) -> None:
    """Send dead letters again, to where they were going.

    Each is sent exactly once, with the cause it had, so that what it makes carries the keys it would have carried.
    """
    _change(where.need_running("redriving"), "redrive", Client.redrive, **choice)


@dead.command()
@_numbers_options
def drop(where: Where, **choice: Any) -> None:
    """Delete dead letters. They can't be had back."""
    _change(where.need_running("dropping"), "drop", Client.drop, **choice)


def _change(
    client: Client,
    verb: str,
    do: Callable[[Client, list[int]], int],
    *,
    numbers: tuple[int, ...],
    typename: str | None,
    code: str | None,
    all_: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Preview or do it."""
    if bool(numbers) == bool(all_ or typename or code):
        raise click.UsageError("Give numbers, or --all, or choose with --function and --code.")
    if numbers:
        letters = [client.letter(number) for number in numbers]
    else:
        letters = client.letters(typename=typename, code=code, limit=ALL_MAX)
    chosen = [letter["number"] for letter in letters]
    done = do(client, chosen) if yes and chosen else 0
    if as_json:
        print_json({"numbers": chosen, "done": done})
        return
    if yes:
        click.echo(f"{_letters(done)} {'redriven' if verb == 'redrive' else 'dropped'}")
        return
    for (function, error), count in Counter((each["function"], each["code"]) for each in letters).items():
        click.echo(f"{count:>7,}  {function}  {error}")
    would(f"{verb} {_letters(len(chosen))}", possible=bool(chosen))


def _letters(count: int) -> str:
    return f"{count:,} dead letter{'' if count == 1 else 's'}"
