"""`penstock checkpoint`: what one can go back to."""

from __future__ import annotations

import sys

import click

from penstock.engine.cli_common import DIFFERENCES, Where, print_with_tasks, where_options
from penstock.output import output_options, print_json, print_table


@click.group()
def checkpoint() -> None:
    """Look at checkpoints, and take one."""


@checkpoint.command("list")
@where_options
@output_options
def list_(where: Where, as_json: bool) -> None:
    """List the checkpoints that can be replayed, oldest first."""
    with where.checkpoints() as application:
        rows = application.checkpoints()
    if as_json:
        print_json(rows)
        return
    columns = ("checkpoint", "at", "attempt", "reason", "delta_bytes", "bases")
    print_table(rows, columns, empty="There are no checkpoints yet.")


@checkpoint.command()
@click.argument("number", type=int)
@where_options
@output_options
def show(where: Where, number: int, as_json: bool) -> None:
    """Show everything a checkpoint says of itself."""
    with where.checkpoints(number) as application:
        found = application.checkpoint(number)
    columns = ("task", "base", "base_checkpoint", "first", "head", "ingress_positions")
    print_with_tasks(found, columns, as_json=as_json)


@checkpoint.command()
@click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER]...")
@where_options
@output_options
@click.pass_context
def verify(ctx: click.Context, where: Where, numbers: tuple[int, ...], as_json: bool) -> None:
    """Read all that checkpoints need, and compare checksums.

    Without numbers, every checkpoint. Reads the files themselves, also while the application runs. Exit code 1 when one
    is damaged.
    """
    from rich.progress import Progress

    if where.remote:
        raise click.UsageError("Reads files: run it where the directory is, with --dir.")
    if where.settings["kafka"]:
        raise click.UsageError(
            "This is for one machine. On Kafka, stop all workers, then: penstock savepoint create --to PLACE, which "
            "reads all that the newest checkpoint needs, and penstock savepoint verify PLACE."
        )
    with where.opened() as directory, Progress(transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Reading checkpoints")
        rows = directory.verify(list(numbers), lambda done, total: bar.update(task, completed=done, total=total))
    damaged = [row for row in rows if not row["sound"]]
    if as_json:
        print_json({"checkpoints": rows, "journal": directory.damage})
    else:
        for text in directory.damage:
            click.echo(text)
        for row in damaged:
            click.echo(f"{row['checkpoint']:,}  {row['problem']}")
        click.echo(f"{len(rows) - len(damaged):,} of {len(rows):,} checkpoints are sound.")
    if damaged or directory.damage:
        ctx.exit(1)


@checkpoint.command()
@click.argument("before", type=int, metavar="A")
@click.argument("after", type=int, metavar="B")
@click.option("--function", "typename", metavar="FUNCTION", help="Only of this function.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000))
@where_options
@output_options
@click.pass_context
def diff(
    ctx: click.Context, where: Where, before: int, after: int, typename: str | None, limit: int, as_json: bool
) -> None:
    """List the addresses whose state differs between two checkpoints.

    What each has become: penstock state get FUNCTION ID --at B. Reads the files themselves, also while the application
    runs. Exit code 5 when there are differences.
    """
    from penstock.engine.differences import differences

    if where.remote:
        raise click.UsageError("Reads files: run it where the directory is, with --dir.")
    with where.reading(before, after) as checkpoints:
        found, counts = differences(checkpoints, before, after, typename=typename, limit=limit)
    rows = [{"change": each.change, "function": each.address.typename, "id": each.address.id} for each in found]
    if as_json:
        print_json({"differences": rows, "counts": counts})
    else:
        print_table(rows, ("change", "function", "id"), empty="Nothing differs.")
        click.echo("  ".join(f"{count:,} {change}" for change, count in counts.items()), err=True)
        if sum(counts.values()) > len(rows):
            click.echo(f"(the first {len(rows):,}; more with --limit)", err=True)
    if rows:
        ctx.exit(DIFFERENCES)


@checkpoint.command()
@where_options
@output_options
def now(where: Where, as_json: bool) -> None:
    """Take a checkpoint of everything accepted so far, and wait until it is complete."""
    number = where.need_running("taking a checkpoint").take_checkpoint()
    if as_json:
        print_json({"checkpoint": number})
    else:
        click.echo(f"checkpoint {number:,} is complete")
