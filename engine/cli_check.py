"""`penstock check`: would it start?"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from penstock.checkpoint.control import Manifest
from penstock.engine.build import compile_router, missing_client, resolve_function
from penstock.engine.cli_common import DIFFERENCES, Where, output_options, print_json, print_table, where_options
from penstock.engine.loading import load_app
from penstock.engine.migrate import check_shapes
from penstock.errors import InvalidInput
from penstock.functions.app import App, Ingress
from penstock.functions.kafka import KafkaIngress

NEVER_RAN = frozenset({"PEN0622", "PEN0753"})
"""Errors of whoever looks for the checkpoints of an application that was never started."""


@click.command()
@click.argument("target", required=False, metavar="[APP]")
@click.option("--against", metavar="last|N", help="Compare with this checkpoint; exit code 5 when something differs.")
@where_options
@output_options
@click.pass_context
def check(ctx: click.Context, where: Where, target: str | None, against: str | None, as_json: bool) -> None:
    """Say whether an application loads and fits its last checkpoint.

    Nothing is started or changed. Exit code 2 when it can't run, 4 when its state would be refused.
    """
    if against not in (None, "last") and not str(against).isdecimal():
        raise click.BadParameter(f"{against!r} is neither 'last' nor a number.", param_hint="--against")
    app = load_app(target or where.settings["app"], Path.cwd(), name=where.settings["name"]).app
    app.check()
    check_edges(app)
    manifest = _manifest(where, against)
    rows = compare(app, manifest)
    if as_json:
        print_json({"app": app.name, "checkpoint": manifest and manifest.checkpoint, "functions": rows})
    else:
        print_table(rows, ("function", "code", "state", "problems"), empty="There are no functions.")
    if manifest is None:
        click.echo("There is no checkpoint to compare with.", err=True)
        return
    check_shapes(app, manifest)
    if not as_json:
        click.echo(f"{app.name} can continue from checkpoint {manifest.checkpoint:,}.")
    if against is not None and any(row["code"] != "same" or row["state"] != "same" for row in rows):
        ctx.exit(DIFFERENCES)


def check_edges(app: App) -> None:
    """Raise ConfigurationError unless every ingress leads to a function and can be routed."""
    for ingress in app.ingresses.values():
        if isinstance(ingress.spec, KafkaIngress):
            _check_kafka(app, ingress, ingress.spec)
        else:
            compile_router(app, ingress, 1 << 20)


def _check_kafka(app: App, ingress: Ingress, spec: KafkaIngress) -> None:
    try:
        from penstock.engine.kafka_ports import compile_kafka_router
        from penstock.router.schema_registry import Registries
    except ImportError as error:
        raise missing_client(error) from error
    compile_kafka_router(ingress, spec, partial(resolve_function, app), Registries(), 1 << 20)


def compare(app: App, manifest: Manifest | None) -> list[dict[str, Any]]:
    """Each function of the application or the checkpoint, and what became of its code and its state."""
    known = manifest.fingerprints if manifest is not None else {}
    rows: list[dict[str, Any]] = []
    for typename, function in sorted(app.functions.items()):
        before = known.get(typename)
        if before is None:
            rows.append({"function": typename, "code": "new", "state": "new", "problems": ""})
            continue
        shape: Any = before["state"]
        problems = function.state_incompatibilities(shape)
        state = "same" if shape == function.state_shape() else "fits"
        if problems:
            state = "migrated" if typename in app.migrations else "refused"
        code = "same" if before["code"] == function.fingerprint else "changed"
        rows.append({"function": typename, "code": code, "state": state, "problems": "; ".join(problems)})
    gone = ({"function": name, "code": "gone", "state": "kept", "problems": ""} for name in sorted(known))
    return rows + [row for row in gone if row["function"] not in app.functions]


def _manifest(where: Where, against: str | None) -> Manifest | None:
    """The checkpoint to compare with. Without `against`, there need not be one."""
    number = int(against) if against not in (None, "last") else None
    try:
        with where.reading(*(() if number is None else (number,))) as checkpoints:
            chosen = checkpoints.newest() if number is None else checkpoints.retained(number)
            return checkpoints.manifest(chosen) if chosen is not None else None
    except InvalidInput as error:
        if against is None and error.code in NEVER_RAN:
            return None
        raise
