"""How verbs of the command line answer: JSON for programs, tables and fields for people, and options that say which.

What a person is told beside the answer goes to standard error, so that the answer can be piped on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from penstock.errors import InvalidInput

DEBUG: Final = "penstock.debug"
"""In `click.Context.meta`: whether tracebacks are wanted."""


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb --json and --debug."""
    function = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)
    return debug_option(function)


def debug_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb --debug."""

    def remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        ctx.meta[DEBUG] = value

    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=remember, help="Show tracebacks of errors."
    )(function)


def yes_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb --yes."""
    return click.option("--yes", is_flag=True, help="Do it; without, only say what would be done.")(function)


# Output.


def would(what: str, *, possible: bool = True) -> None:
    """Say what a verb with --yes would do, at the end of its preview."""
    click.echo(f"Would {what}{'; add --yes.' if possible else '.'}")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, empty: str) -> None:
    """One line a row, never wrapped; `empty` when there is none."""
    if not rows:
        click.echo(empty)
        return
    heading, *lines = aligned(
        [column.replace("_", " ").upper() for column in columns],
        [[text_of(row.get(column)) for column in columns] for row in rows],
    )
    click.secho(heading, bold=True)
    click.echo("\n".join(lines))


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: columns as wide as their widest cell, those of numbers to the right."""
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [bool(rows) and all(_is_number(cell) for cell in column[1:]) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in (headings, *rows)
    ]


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").isdecimal()


def print_fields(fields: Mapping[str, Any]) -> None:
    """One line a field, the name in front; values of several parts are JSON."""
    width = max(map(len, fields))
    for name, value in fields.items():
        click.echo(f"{name.replace('_', ' '):<{width}}  {text_of(value)}".rstrip())


def text_of(value: Any) -> str:
    """A value in one cell."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case str():
            return value
        case _:
            return json.dumps(value, ensure_ascii=False)


def note(text: str) -> None:
    """Tell a person something beside the answer."""
    click.echo(text, err=True)


def parse_json(text: str, what: str) -> Any:
    """A JSON argument; `-` reads standard input. Raises InvalidInput."""
    if text == "-":
        text = sys.stdin.read()
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput(
            "PEN0625", f"{what} {text!r} is no JSON: {error}. Texts need double quotes: '\"text\"'."
        ) from None
