"""`penstock check`: would it start?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click

from penstock.checkpoint.control import Manifest
from penstock.engine.build import missing_client
from penstock.engine.cli_common import DIFFERENCES, Where, where_options
from penstock.engine.cli_savepoint import saved
from penstock.engine.invocation_journal import InvocationJournal
from penstock.engine.migrate import beyond_migration, check_shapes
from penstock.engine.offline import open_stopped
from penstock.engine.regroup import ingresses_of
from penstock.engine.schedules import ScheduleRow, rows_of
from penstock.errors import InvalidInput
from penstock.functions.app import App, Ingress
from penstock.functions.function import Function
from penstock.functions.kafka import KafkaIngress
from penstock.functions.outlets import resolve_function
from penstock.ids import KEY_GROUPS_MAX
from penstock.loading import load_app
from penstock.output import output_options, print_json, print_table
from penstock.router.routing import compile_router

NEVER_RAN = frozenset({"PEN0622", "PEN0753"})
"""Errors of whoever looks for the checkpoints of an application that was never started."""


@click.command()
@click.argument("target", required=False, metavar="[APP]")
@click.option(
    "--against",
    metavar="last|N|PLACE",
    help="Compare with the newest checkpoint, or that one, or a savepoint; exit code 5 when something differs.",
)
@where_options
@output_options
@click.pass_context
def check(ctx: click.Context, where: Where, target: str | None, against: str | None, as_json: bool) -> None:
    """Say whether an application loads and fits its last checkpoint.

    With --against a checkpoint, its rows are looked at, too: for handlers that wait in code which was changed, and for
    schedules.

    Nothing is started or changed. Exit code 2 when it can't run, or when there is nothing to compare with --against;
    4 when its state would be refused.
    """
    app = load_app(target or where.settings["app"], Path.cwd(), name=where.settings["name"]).app
    app.check()
    check_edges(app)
    manifest = _manifest(where, against)
    rows, ingresses = compare(app, manifest), compare_ingresses(app, manifest)
    inside = _look_inside(app, where, against, manifest)
    schedules = compare_schedules(app, inside.schedules)
    for row in rows:
        row["waiting"] = inside.waiting[row["function"]]
    differs = manifest is not None and (
        any((row["code"], row["state"]) != ("same", "same") for row in rows)
        or any(row["position"] == "gone" for row in ingresses)
        or any(row["kept"] in ("changed", "gone") for row in schedules)
    )
    if as_json:
        print_json(
            {
                "app": app.name,
                "checkpoint": manifest and manifest.checkpoint,
                "differs": differs,
                "refused": any(row["state"] == "refused" for row in rows),
                "functions": rows,
                "ingresses": ingresses,
                "schedules": schedules,
            }
        )
    else:
        shown = [{**row, "fields": " ".join(row["fields"])} for row in rows]
        print_table(shown, ("function", "code", "state", "fields", "problems"), empty="There are no functions.")
        if manifest is not None and any(row["position"] == "gone" for row in ingresses):
            print_table(ingresses, ("ingress", "position"), empty="")
        if any(row["kept"] in ("changed", "gone") for row in schedules):
            print_table(schedules, ("schedule", "kept"), empty="")
        for row in rows:
            if row["waiting"] and row["code"] != "same":
                click.echo(_interrupted(row))
    if manifest is None:
        click.echo("There is no checkpoint to compare with.", err=True)
        return
    for each in _told_apart(manifest):
        check_shapes(app, each)
    if not as_json:
        click.echo(f"{app.name} can continue from checkpoint {manifest.checkpoint:,}.")
    if against is not None and differs:
        ctx.exit(DIFFERENCES)


def _told_apart(manifest: Manifest) -> list[Manifest]:
    """The checkpoint as tasks see it that other code had run than the rest."""
    return [manifest, *(manifest.of(part.task) for part in manifest.parts if part.fingerprints is not None)]


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
    rows = [
        _compared(app, manifest, function, known.get(typename)) for typename, function in sorted(app.functions.items())
    ]
    return rows + [_row(name, "gone", "kept") for name in sorted(known) if name not in app.functions]


def _compared(
    app: App, manifest: Manifest | None, function: Function[Any, Any], before: dict[str, Any] | None
) -> dict[str, Any]:
    typename, migration = function.typename, function.typename in app.migrations
    if manifest is None or before is None:
        return _row(typename, "new", "new", migration=migration)
    shape = before["state"]
    problems = function.state_incompatibilities(shape)
    state = "same" if shape == function.state_shape() else "fits"
    if problems:
        state = "refused" if not migration or beyond_migration(function, manifest) else "migrated"
    code = "same" if before["code"] == function.fingerprint else "changed"
    return _row(typename, code, state, function.state_changes(shape), problems, migration=migration)


def _row(
    typename: str,
    code: str,
    state: str,
    fields: Sequence[str] = (),
    problems: Sequence[str] = (),
    *,
    migration: bool = False,
) -> dict[str, Any]:
    return {
        "function": typename,
        "code": code,
        "state": state,
        "fields": list(fields),
        "migration": migration,
        "problems": "; ".join(problems),
    }


def compare_ingresses(app: App, manifest: Manifest | None) -> list[dict[str, str]]:
    """Each ingress of the application or the checkpoint, and whether its position is known. One that has `none` was not
    read from so far, or has got another name: then the other is `gone`, and everything is read once more."""
    parts = manifest.parts if manifest is not None else ()
    known = {name for part in parts for name in ingresses_of(part.ingress_positions)}
    rows = [{"ingress": name, "position": "known" if name in known else "none"} for name in sorted(app.ingresses)]
    return rows + [{"ingress": name, "position": "gone"} for name in sorted(known - app.ingresses.keys())]


class Inside(NamedTuple):
    """What is in the rows of a checkpoint."""

    waiting: Counter[str]
    """How many addresses of each function wait in the middle of a handler."""
    schedules: dict[str, ScheduleRow]


def _look_inside(app: App, where: Where, against: str | None, manifest: Manifest | None) -> Inside:
    """Restore a checkpoint that is named, to look at it. Savepoints are compared by what they say of themselves."""
    if manifest is None or against is None or _is_place(against):
        return Inside(Counter(), {})
    with (
        where.reading(manifest.checkpoint) as checkpoints,
        open_stopped(app, checkpoints, checkpoint=manifest.checkpoint, note=_note) as stopped,
    ):
        tasks = stopped.view.tasks
        kept = dict(row for task in tasks for row in rows_of(task.overlay, range(KEY_GROUPS_MAX)))
        waiting = Counter(
            typename
            for task in tasks
            for typename, held in task.held().items()
            for id in held
            if InvocationJournal.exists(task.overlay, (typename, id))
        )
        return Inside(waiting, kept)


def _note(text: str) -> None:
    click.echo(text, err=True)


def _interrupted(row: dict[str, Any]) -> str:
    """What it means to change code, or take it away, while handlers wait in it."""
    begun = (
        f"{row['waiting']:,} addresses of {row['function']} wait in the middle of its handler, which is {row['code']}."
    )
    if row["code"] == "gone":
        return f"{begun} What they wait for will find nobody: let them end first, or declare the function again."
    return (
        f"{begun} They are run again from their start: what does not ask for the same again is parked (PEN0261). Let "
        "them end first, or give the new handler another name."
    )


def compare_schedules(app: App, kept: Mapping[str, ScheduleRow]) -> list[dict[str, str]]:
    """Each schedule of the application or the checkpoint: kept the `same`, `changed`, `gone`, or not kept so far."""
    rows = [
        {
            "schedule": name,
            "kept": "none" if name not in kept else "same" if kept[name].fits(declared) else "changed",
        }
        for name, declared in sorted(app.schedules.items())
    ]
    return rows + [{"schedule": name, "kept": "gone"} for name in sorted(kept.keys() - app.schedules.keys())]


def _is_place(against: str) -> bool:
    return against != "last" and not against.isdecimal()


def _manifest(where: Where, against: str | None) -> Manifest | None:
    """The checkpoint to compare with. Without `against`, there need not be one."""
    if against is not None and _is_place(against):
        return saved(where, against).savepoint.manifest
    number = int(against) if against not in (None, "last") else None
    try:
        with where.reading(*(() if number is None else (number,))) as checkpoints:
            chosen = checkpoints.newest() if number is None else checkpoints.retained(number)
            if chosen is None and against is not None:
                raise InvalidInput(
                    "PEN0309", f"No checkpoint of {checkpoints.place} is complete, so there is nothing to compare with."
                )
            return checkpoints.manifest(chosen) if chosen is not None else None
    except InvalidInput as error:
        if against is None and error.code in NEVER_RAN:
            return None
        raise
