"""`penstock destroy`: remove what an application keeps in a Kafka cluster."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import click

from penstock.engine.cli_common import Named, kafka_options, name_options
from penstock.output import note, output_options, print_json, print_table, yes_option

if TYPE_CHECKING:
    from penstock.router.kafka_options import KafkaOptions
    from penstock.router.kafka_topics import Inventory


@click.command()
@kafka_options
@name_options
@yes_option
@output_options
def destroy(kafka: KafkaOptions, named: Named, yes: bool, as_json: bool) -> None:
    """Remove the topics of an application from a Kafka cluster.

    State, waiting messages and checkpoints go with them, and can't be had back. Topics that it reads or writes for
    others stay. Refused while the application runs.
    """
    from penstock.router.kafka_topics import destroy as remove
    from penstock.router.kafka_topics import inventory, refuse_alive

    if named.name is None:
        raise click.UsageError("Say which application: --name APP, or --app MODULE:APP.")
    now_ms = int(time.time() * 1000)
    if yes:
        found = asyncio.run(remove(kafka, named.name, now_ms))
    else:
        found = asyncio.run(inventory(kafka, named.name))
        refuse_alive(found, now_ms)
    if as_json:
        print_json({**found._asdict(), "holdings": [each._asdict() for each in found.holdings], "done": yes})
        return
    _print(found, done=yes)


def _print(found: Inventory, *, done: bool) -> None:
    print_table(
        [each._asdict() for each in found.holdings], ("kind", "name", "partitions", "size_bytes"), empty="Nothing."
    )
    topics = sum(each.kind == "topic" for each in found.holdings)
    text = f"{topics} topic{'s' if topics != 1 else ''} of {found.app}"
    click.echo(f"{text} removed." if done else f"Would remove {text}; add --yes.")
    note(
        f"Its {len(found.transactional_ids)} transactional ids can't be removed; the cluster forgets them by itself. "
        "What is in a checkpoint store stays."
    )
