"""`penstock init`: a small application to begin with."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from penstock.errors import Refused
from penstock.output import debug_option

TEMPLATES = ("counter", "orders")


@click.command()
@click.argument("folder", default=".", metavar="[DIR]")
@click.option("--template", type=click.Choice(TEMPLATES), default="counter", show_default=True)
@debug_option
def init(folder: str, template: str) -> None:
    """Begin a new application from a template.

    counter: one function that counts. orders: three functions, a file of orders in, a file of invoices out. Files that
    exist are never overwritten.
    """
    target = Path(folder)
    source = files("penstock.engine") / "templates" / template
    contents = {each.name: each.read_bytes() for each in source.iterdir() if each.is_file()}
    taken = sorted(name for name in contents if (target / name).exists())
    if taken:
        raise Refused(
            "PEN0157", f"{target} has {', '.join(taken)} already. Nothing was written: choose an empty folder."
        )
    target.mkdir(parents=True, exist_ok=True)
    for name, content in sorted(contents.items()):
        (target / name).write_bytes(content)
        click.echo(f"  {target / name}")
    enter = f"cd {folder} && " if folder != "." else ""
    click.echo(f"\nRun it: {enter}penstock run\nTest it: {enter}pytest")
