"""`penstock savepoint`: copies of everything an application knows, which outlive it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from penstock.engine.cli_common import Where, print_with_tasks, where_options
from penstock.output import output_options, print_json, print_table, would, yes_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.checkpoint.blobs import Blobs
    from penstock.checkpoint.savepoint import Savepoint, SavepointReader
    from penstock.engine.client import Client
    from penstock.engine.savepoints import Progress

POLL_S: Final = 0.1


@click.group()
def savepoint() -> None:
    """Copy an application's state to another place, to restore it there.

    A savepoint also has what is under way, and needs nothing outside its place: penstock run --from-savepoint restores
    it anywhere, with any parallelism. PLACE is a directory, a bucket such as s3://bucket/prefix, or a name below
    DIR/savepoints.
    """


@savepoint.command()
@click.option("--to", metavar="PLACE", help="An empty place; DIR/savepoints/NAME, which shares files with DIR.")
@where_options
@output_options
def create(where: Where, to: str | None, as_json: bool) -> None:
    """Take a savepoint: of a running application as of now, else of its newest checkpoint."""
    if where.settings["kafka"] and not where.remote:
        found = _take_on_kafka(where, to)
    else:
        client = where.running()
        found = _take_running(client, where, to) if client is not None else _take_stopped(where, to)
    if as_json:
        print_json(found)
    else:
        click.echo(f"savepoint of checkpoint {found['checkpoint']:,}, {found['bytes']:,} bytes: {found['savepoint']}")


@savepoint.command("list")
@click.argument("place", required=False)
@where_options
@output_options
def list_(where: Where, place: str | None, as_json: bool) -> None:
    """List the savepoints below PLACE, or DIR/savepoints."""
    from penstock.errors import PenstockError

    root = place or str(where.directory / "savepoints")
    rows: list[dict[str, Any]] = []
    for name in _open(where, root).folders():
        try:
            rows.append(_summary(saved(where, f"{root.rstrip('/')}/{name}")))
        except PenstockError as error:
            rows.append({"savepoint": f"{root.rstrip('/')}/{name}", "problem": str(error)})
    if as_json:
        print_json(rows)
        return
    columns = ["savepoint", "at", "application", "checkpoint", "parallelism", "bytes", "under_way"]
    if any("problem" in row for row in rows):
        columns.append("problem")
    print_table(rows, columns, empty="There are no savepoints yet.")


@savepoint.command()
@click.argument("place")
@where_options
@output_options
def show(where: Where, place: str, as_json: bool) -> None:
    """Show everything a savepoint says of itself."""
    from penstock.engine.savepoints import show as describe

    reader = saved(where, place)
    found = describe(reader.place, reader.savepoint)
    columns = ("task", "base", "delta_bytes", "frames", "requests", "ingress_positions")
    print_with_tasks(found, columns, as_json=as_json)


@savepoint.command()
@click.argument("place")
@where_options
@output_options
def verify(where: Where, place: str, as_json: bool) -> None:
    """Read all of a savepoint, and compare hashes. Fails with the name of the first file that is damaged."""
    reader = saved(where, place)
    with progress_bar("Reading the savepoint") as progress:
        reader.verify(progress)
    if as_json:
        print_json({"savepoint": reader.place, "bytes": reader.savepoint.bytes, "sound": True})
    else:
        click.echo(f"{reader.place} is sound: {reader.savepoint.bytes:,} bytes.")


@savepoint.command()
@click.argument("place")
@yes_option
@where_options
@output_options
def delete(where: Where, place: str, yes: bool, as_json: bool) -> None:
    """Remove a savepoint, or what is there of one that was not finished."""
    from penstock.checkpoint.savepoint import begun, delete_savepoint
    from penstock.errors import InvalidInput

    place = _resolved(where, place)
    blobs = _open(where, place)
    if not begun(blobs):
        raise InvalidInput("PEN0432", f"There is no savepoint at {place}. List them: penstock savepoint list.")
    if yes:
        delete_savepoint(blobs)
    if as_json:
        print_json({"savepoint": place, "done": yes})
    elif yes:
        click.echo(f"{place} is removed.")
    else:
        would(f"remove {place}")


# How.


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for whoever watches a terminal, which goes away at the end."""
    from rich.progress import Progress

    with Progress(transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _take_running(client: Client, where: Where, to: str | None) -> dict[str, Any]:
    """The application copies: where it is, and while it goes on. A relative path is one of here."""
    local = to is not None and "://" not in to and not where.remote
    number = client.begin_savepoint(str(Path(to).absolute()) if to is not None and local else to)
    with progress_bar("Taking the savepoint"):
        while (found := client.savepoint(number)) is None:
            time.sleep(POLL_S)
    return found


def _take_stopped(where: Where, to: str | None) -> dict[str, Any]:
    from penstock.engine.savepoints import default_place, open_place_of, summarize, take_stopped

    now_ms, config = int(time.time() * 1000), where.settings.to_config()
    with where.reading() as checkpoints, progress_bar("Taking the savepoint") as progress:
        newest = checkpoints.newest()
        name = checkpoints.manifest(newest).application if newest is not None else ""
        place = to or default_place(where.directory, name, now_ms)
        blobs = open_place_of(place, config)
        return summarize(place, take_stopped(checkpoints, blobs, now_ms=now_ms, progress=progress))


def _take_on_kafka(where: Where, to: str | None) -> dict[str, Any]:
    """It is this process that copies, wherever workers run; if none does, their egresses are asked what they have."""
    import asyncio

    from penstock.engine.cluster.looking import alive_workers
    from penstock.engine.cluster.replies import REPLIES
    from penstock.engine.cluster.saved import markers_of
    from penstock.engine.cluster.taking import take_running
    from penstock.engine.cluster.topics import DEAD
    from penstock.engine.savepoints import default_place, open_place_of, summarize, take_stopped

    now_ms, config, app = int(time.time() * 1000), where.settings.to_config(), where.app()
    kafka = where.settings.kafka()
    place = to or default_place(where.directory, app.name, now_ms)
    blobs = open_place_of(place, config)
    found = where.topics()

    async def take(progress: Progress) -> Savepoint:
        await found.refuse_absent()
        if await alive_workers(kafka, app.name):
            return await take_running(found, kafka, app.name, blobs, [*app.egresses, REPLIES, DEAD], progress=progress)
        await found.load([], waiting=True)
        # A checkpoint is taken before its last rows are written. On one machine, the last one of a stop knows of them.
        markers = await markers_of(app, config, kafka, found)
        return take_stopped(
            found, blobs, now_ms=now_ms, progress=progress, markers=markers, left_out=frozenset({REPLIES})
        )

    with progress_bar("Taking the savepoint") as progress:
        return summarize(place, asyncio.run(take(progress)))


def _summary(reader: SavepointReader) -> dict[str, Any]:
    from penstock.engine.savepoints import summarize

    return summarize(reader.place, reader.savepoint)


def saved(where: Where, place: str) -> SavepointReader:
    """The savepoint of that name or place. Raises InvalidInput when there is none."""
    from penstock.checkpoint.savepoint import SavepointReader

    return SavepointReader(_open(where, _resolved(where, place)))


def _open(where: Where, place: str) -> Blobs:
    from penstock.checkpoint.stores import open_place

    return open_place(place, where.settings.bucket())


def _resolved(where: Where, place: str) -> str:
    """A name alone is one below DIR/savepoints, if it is there."""
    known = where.directory / "savepoints" / place
    return str(known) if "/" not in place and known.is_dir() else place
