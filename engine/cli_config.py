"""`penstock config`: which settings are in force, and where each comes from."""

from __future__ import annotations

import click

from penstock.engine.cli_common import Where, where_options
from penstock.output import note, output_options, print_json, print_table


@click.group()
def config() -> None:
    """Show the settings in force.

    They come from defaults, penstock.toml (or [tool.penstock] in pyproject.toml), the environment (PENSTOCK_MEMORY) and
    flags, each overriding those before it.
    """


@config.command()
@where_options
@output_options
def show(where: Where, as_json: bool) -> None:
    """Show every setting with its value and origin.

    With --url, those of that running application; else those that `penstock run` would use here.
    """
    if where.remote:
        client = where.running()
        assert client is not None
        rows = client.config()
    else:
        rows = [{"name": each.name, "value": each.text, "origin": each.origin} for each in where.settings.all()]
    if as_json:
        print_json(rows)
        return
    print_table(rows, ("name", "value", "origin"), empty="")
    for variable in where.settings.ignored:
        note(f"{variable} is no setting, and is ignored.")


@config.command()
def schema() -> None:
    """Print a JSON schema of penstock.toml, for editors."""
    from penstock.engine.settings import schema as schema_of_settings

    print_json(schema_of_settings())
