"""`penstock replay --diff`: what other code, or another time, would have made of the same inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from penstock.addresses import find_address
from penstock.durations import timestamp
from penstock.engine.cli_common import silence_kafka_client
from penstock.errors import InvalidInput
from penstock.functions.app import App
from penstock.ids import Address
from penstock.output import print_json, print_table
from penstock.state.showing import builtins_of, plain

if TYPE_CHECKING:
    from penstock.checkpoint.recovery import History
    from penstock.engine.config import Config
    from penstock.engine.offline import Recorded
    from penstock.engine.retrace import Changed, Outcomes, Output, StateChanged
    from penstock.engine.settings import Settings


def print_differences(
    app: App, settings: Settings, first: int, *, until: str | None, only: str | None, limit: int, as_json: bool
) -> bool:
    """Run `app` aside from production, and print what differs. Returns whether anything does."""
    from penstock.engine.cli_savepoint import progress_bar
    from penstock.engine.retrace import retrace

    address = None if only is None else _address(app, only)
    config = settings.to_config(until_done=True)
    kafka = settings.kafka() if settings["kafka"] else None
    with _recorded(app, settings, config, first, until) as (recorded, last), progress_bar("Replaying") as progress:
        outcomes = asyncio.run(
            retrace(app, recorded, config, first, last, kafka=kafka, only=address, limit=limit, progress=progress)
        )
    if as_json:
        print_json(_for_programs(outcomes, limit))
    else:
        _print(outcomes, limit)
    return not outcomes.same


@contextmanager
def _recorded(
    app: App, settings: Settings, config: Config, first: int, until: str | None
) -> Iterator[tuple[Recorded, int]]:
    """What the application has recorded, and the checkpoint that the replay ends at."""
    if not settings["kafka"]:
        from penstock.engine.offline import Directory

        with Directory(config.directory) as directory:
            yield directory, _last(directory.history, until)
        return
    from penstock.checkpoint.stores import open_store
    from penstock.engine.cluster.options import cluster_options
    from penstock.engine.cluster.recorded import KafkaRecording

    silence_kafka_client()
    cluster = cluster_options(settings, config.directory)
    store = open_store(cluster.store, cluster.store_options)
    recording = KafkaRecording(cluster.kafka, app.name, store, config.directory)
    asyncio.run(recording.look())
    last = _last(recording.history, until)
    asyncio.run(recording.load_between(first, last))
    yield recording, last


def _address(app: App, text: str) -> Address:
    address = find_address(text.split("/"), app.functions)
    if address is None or not address.id:
        raise InvalidInput(
            "PEN0105", f"--only {text} is no address: NAMESPACE/NAME/ID. Functions: {', '.join(sorted(app.functions))}."
        )
    return address


def _last(history: History, until: str | None) -> int:
    """The newest checkpoint, or the newest up to a moment or number."""
    known = list(history.candidates())
    if until is not None and until.isdecimal():
        return int(until)
    if until is not None:
        try:
            moment = datetime.fromisoformat(until)
        except ValueError:
            raise click.UsageError(
                f"--until {until} is neither a checkpoint nor a time such as 2026-01-31T12:00."
            ) from None
        at_ms = moment.astimezone(UTC).timestamp() * 1000
        known = [each for each in known if each.created_ms <= at_ms]
    if not known:
        raise InvalidInput("PEN0309", "There is no checkpoint so old. List them: penstock checkpoint list.")
    return known[0].checkpoint


def _print(outcomes: Outcomes, limit: int) -> None:
    first, last = outcomes.first, outcomes.last
    click.echo(
        f"checkpoint {first.checkpoint:,} ({timestamp(first.created_ms)}) to {last.checkpoint:,} "
        f"({timestamp(last.created_ms)}): {outcomes.invocations:,} messages in {outcomes.took_s:.1f} s",
        err=True,
    )
    for name, count in sorted(outcomes.awaited.items()):
        click.echo(f"{name} waited for something outside {count:,} times: what became of that is not known.", err=True)
    if outcomes.same:
        click.echo("Nothing differs.")
        return
    if outcomes.diverged is not None:
        click.echo(f"First difference: {_first(outcomes)}")
    states = [_state_row(each) for each in outcomes.states[:limit]]
    outputs = [_output_row(each) for each in outcomes.outputs]
    if states:
        print_table(states, ("change", "function", "id", "recorded", "replayed"), empty="")
    if outputs:
        print_table(outputs, ("checkpoint", "output", "to", "recorded", "replayed"), empty="")
    click.echo(f"{len(outcomes.states):,} addresses, {outcomes.outputs_count:,} outputs", err=True)
    if max(len(outcomes.states), outcomes.outputs_count) > limit:
        click.echo(f"(the first {limit:,} of each; more with --limit)", err=True)


def _first(outcomes: Outcomes) -> str:
    diverged = outcomes.diverged
    assert diverged is not None
    where = f"in checkpoint {diverged.checkpoint:,}, task {diverged.task}"
    step = diverged.step
    if step is None:
        return where
    came = f" from {step.caller}" if step.caller is not None else f", {step.origin}" if step.origin else ""
    return f"{step.address} on {_text(step.message)}{came} ({where})"


def _state_row(changed: StateChanged) -> dict[str, Any]:
    return {
        "change": changed.change,
        "function": changed.address.typename,
        "id": changed.address.id,
        "recorded": _text(_state(changed.recorded)),
        "replayed": _text(_state(changed.replayed)),
    }


def _state(shown: Any) -> Any:
    """What `View.state` has beside the address itself."""
    if shown is None or not shown["exists"]:
        return None
    rest = {name: value for name, value in shown.items() if name not in ("function", "id", "exists", "state") and value}
    return {**(shown["state"] or {}), **rest} if rest else shown["state"]


def _output_row(changed: Changed) -> dict[str, Any]:
    return {
        "checkpoint": changed.checkpoint,
        "output": changed.output.kind,
        "to": changed.output.to,
        "recorded": _text(_value(changed.recorded)),
        "replayed": _text(_value(changed.replayed)),
    }


def _value(output: Output | None) -> Any:
    if output is None:
        return None
    value, *rest = output.value
    shown = _readable(value)
    return {"value": shown, "with": plain(rest)} if any(rest) else shown


def _readable(value: bytes) -> Any:
    text = value.strip()
    return text.decode() if text.isascii() and text.decode().isprintable() else builtins_of(value)


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _for_programs(outcomes: Outcomes, limit: int) -> dict[str, Any]:
    diverged = outcomes.diverged
    step = diverged.step if diverged is not None else None
    return {
        "from": outcomes.first.checkpoint,
        "to": outcomes.last.checkpoint,
        "messages": outcomes.invocations,
        "turns": outcomes.turns,
        "took_s": round(outcomes.took_s, 3),
        "awaited": dict(outcomes.awaited),
        "first": None
        if diverged is None
        else {
            "checkpoint": diverged.checkpoint,
            "task": diverged.task,
            "address": None if step is None else str(step.address),
            "message": None if step is None else step.message,
            "caller": None if step is None or step.caller is None else str(step.caller),
            "origin": None if step is None else step.origin,
        },
        "states": [
            {
                "change": each.change,
                "function": each.address.typename,
                "id": each.address.id,
                "recorded": _state(each.recorded),
                "replayed": _state(each.replayed),
            }
            for each in outcomes.states[:limit]
        ],
        "outputs": [
            {
                "checkpoint": each.checkpoint,
                "task": each.task,
                "output": each.output.kind,
                "to": each.output.to,
                "recorded": _value(each.recorded),
                "replayed": _value(each.replayed),
            }
            for each in outcomes.outputs
        ],
        "states_count": len(outcomes.states),
        "outputs_count": outcomes.outputs_count,
    }
