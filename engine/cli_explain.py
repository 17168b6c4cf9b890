"""`penstock explain CODE`."""

from __future__ import annotations

import click

from penstock.engine.explain import entry_of, page_of
from penstock.output import output_options, print_json


@click.command()
@click.argument("code")
@output_options
def explain(code: str, as_json: bool) -> None:
    """Explain an error code.

    CODE is the word in front of an error, such as PEN0201.
    """
    entry = entry_of(code)
    if as_json:
        print_json(entry.as_dict())
    else:
        click.echo(page_of(entry))
