"""`penstock doctor`: will the application run in this Kafka cluster?"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.engine.cli_common import Named, kafka_options, name_options
from penstock.output import output_options, print_json

if TYPE_CHECKING:
    from penstock.engine.settings import Settings
    from penstock.functions.app import App
    from penstock.router.kafka_doctor import Finding
    from penstock.router.kafka_options import KafkaOptions

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@click.command()
@kafka_options
@name_options
@click.option("--parallelism", type=click.IntRange(1, 128), help="Its number of tasks, if not as in the settings.")
@click.option("--replicas", type=click.IntRange(1, 9), help="Of its topics, if not as in the settings.")
@click.option("--reads", multiple=True, metavar="TOPIC", help="A topic it reads, beside those that --app says.")
@click.option("--writes", multiple=True, metavar="TOPIC", help="A topic it writes, beside those that --app says.")
@click.option("--acls", metavar="PRINCIPAL", help="Only print the commands that grant what User:NAME needs.")
@output_options
@click.pass_context
def doctor(
    ctx: click.Context,
    kafka: KafkaOptions,
    named: Named,
    parallelism: int | None,
    replicas: int | None,
    reads: Sequence[str],
    writes: Sequence[str],
    acls: str | None,
    as_json: bool,
) -> None:
    """Say whether an application can run in a Kafka cluster.

    Nothing that exists is changed. A topic of its own is created, written, read and deleted, and a transactional id of
    its own is used. Exit code 1 when something would not work.
    """
    from penstock.engine.settings import load_settings
    from penstock.router.kafka_doctor import NAMELESS, Plan, examine

    if named.app is not None:
        reads = sorted({*reads, *topics_read(named.app)})
        writes = sorted({*writes, *topics_written(named.app)})
    if acls is not None:
        _print_acls(kafka, named.name or NAMELESS, reads, writes, acls, as_json=as_json)
        return
    given = {"kafka": kafka.bootstrap, "parallelism": parallelism, "replicas": replicas}
    settings = load_settings(
        Path.cwd(), os.environ, {name: value for name, value in given.items() if value is not None}
    )
    plan = Plan(
        app=named.name,
        parallelism=settings["parallelism"],
        generation=_generation(kafka, named.name),
        replicas=settings["replicas"] or None,
        message_bytes_max=settings["message_bytes_max"],
        reads=reads,
        writes=writes,
        retention_ms=max(settings["retention_all"], settings["retention_spaced"]),
    )
    if not as_json:
        click.echo(
            f"A topic {plan.name}.doctor-* is created and deleted, and transactional id {plan.name}-doctor used."
        )
    findings = asyncio.run(examine(kafka, plan, lambda: int(time.time() * 1000)))
    findings += store_findings(settings)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        _print(findings)
    if any(finding.result == "fail" for finding in findings):
        ctx.exit(1)


def _generation(kafka: KafkaOptions, name: str | None) -> int:
    """Of the topics of an application that is there already. What keeps it from being read is a finding later."""
    from penstock.engine.cluster.looking import read_topology
    from penstock.errors import PenstockError

    try:
        return asyncio.run(read_topology(kafka, name)).generation if name is not None else 1
    except PenstockError:
        return 1


def topics_read(app: App) -> set[str]:
    """Topics that its ingresses name, in the application's own cluster."""
    from penstock.functions.kafka import KafkaIngress

    specs = [ingress.spec for ingress in app.ingresses.values()]
    return {topic for spec in specs if isinstance(spec, KafkaIngress) and spec.brokers is None for topic in spec.topics}


def topics_written(app: App) -> set[str]:
    """Topics that its egresses name, in the application's own cluster. A row may name another one."""
    from penstock.functions.kafka_egress import KafkaEgress

    specs = [egress.spec for egress in app.egresses.values()]
    return {spec.topic for spec in specs if isinstance(spec, KafkaEgress) and spec.brokers is None}


def store_findings(settings: Settings) -> list[Finding]:
    """Whether checkpoints can be stored where the settings say; nothing if they say nothing."""
    from penstock.checkpoint.stores import open_store
    from penstock.engine.cluster.options import cluster_options
    from penstock.errors import PenstockError
    from penstock.router.kafka_doctor import Finding

    if not settings["store"]:
        return []
    try:
        cluster = cluster_options(settings, Path(settings["dir"]))
        open_store(cluster.store, cluster.store_options).check()
    except PenstockError as error:
        return [Finding("store", "fail", str(error))]
    return [Finding("store", "pass", f"{cluster.store} can be written, listed, read and deleted from.")]


def _print(findings: Sequence[Finding]) -> None:
    """A line for each, with what to do below it."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        result = click.style(finding.result, fg=COLOURS[finding.result], bold=True)
        click.echo(f"{result}  {finding.check:<{width}}  {finding.found}")
        if finding.remedy:
            click.echo(f"      {'':<{width}}  -> {finding.remedy}")
    counts = {result: sum(finding.result == result for finding in findings) for result in COLOURS}
    click.echo(", ".join(f"{count} {result}" for result, count in counts.items()))


def _print_acls(
    kafka: KafkaOptions, app: str, reads: Sequence[str], writes: Sequence[str], principal: str, *, as_json: bool
) -> None:
    from penstock.router.kafka_doctor import command, grants

    if ":" not in principal:
        raise click.BadParameter(f"{principal!r} has no type: write User:{principal}.", param_hint="--acls")
    rows: list[dict[str, Any]] = [
        {**grant._asdict(), "command": command(grant, kafka.bootstrap, principal)}
        for grant in grants(app, reads, writes)
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"# {row['purpose']}")
        click.echo(row["command"])
