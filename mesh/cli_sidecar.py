"""`penstock sidecar`: the mesh for an application of any language, beside which it runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from penstock.logs import configure_logging
from penstock.mesh.cli import name_and_value
from penstock.output import debug_option
from penstock.signals import stopped_by_signals


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--app-id", required=True, metavar="NAME", help="What others call the application."),
        click.option("--app-port", required=True, type=int, metavar="PORT", help="Where it listens, on 127.0.0.1."),
        click.option(
            "--port", type=int, default=3500, show_default=True, metavar="PORT", help="Where it finds the sidecar."
        ),
        click.option(
            "--mesh-address",
            default="127.0.0.1",
            show_default=True,
            metavar="ADDRESS",
            help="Where other sidecars find this one.",
        ),
        click.option(
            "--mesh-port", type=int, default=0, metavar="PORT", help="The port of that; a free one, if left out."
        ),
        click.option(
            "--data",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path("sidecar"),
            show_default=True,
            metavar="DIR",
            help="State, reminders and events; shared by the sidecars of one machine.",
        ),
        click.option("--registry", metavar="FILE", help="Where sidecars find one another; in --data, if left out."),
        click.option(
            "--policies",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="A mesh.yaml. Applications are app/NAME in it, actor types actor/TYPE.",
        ),
        click.option(
            "--identity",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="An identity of penstock mesh ca issue: mutual TLS between sidecars.",
        ),
        click.option(
            "--version", metavar="TEXT", default="", help="Of the application, for routes that split by version."
        ),
        click.option("--label", multiple=True, metavar="NAME=VALUE", help="Of the application, for subsets."),
        click.option("--state-store", multiple=True, default=("statestore",), show_default=True, metavar="NAME"),
        click.option("--pubsub", multiple=True, default=("pubsub",), show_default=True, metavar="NAME"),
        click.option("--lock-store", multiple=True, default=("lockstore",), show_default=True, metavar="NAME"),
        click.option("--log-level", default="info", show_default=True, metavar="LEVEL"),
        click.option("--log-json", is_flag=True, help="Log JSON, one object a line."),
    ]
    for option in reversed(options):
        function = option(function)
    return debug_option(function)


@click.command()
@_options
def sidecar(log_level: str, log_json: bool, **options: Any) -> None:
    """Stand beside an application of any language.

    It takes the requests of the application to others, and brings it theirs. It answers the HTTP API of Dapr at
    127.0.0.1:PORT: POST /METHOD with the header dapr-app-id, actors, state, topics
    and locks. With DAPR_API_TOKEN in the environment, requests need it; APP_API_TOKEN is shown to the application.
    """
    configure_logging(as_json=log_json, level=log_level)
    from penstock.loops import loop_factory

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run(**options))


async def _run(
    *,
    app_id: str,
    app_port: int,
    port: int,
    mesh_address: str,
    mesh_port: int,
    data: Path,
    registry: str | None,
    policies: Path | None,
    identity: Path | None,
    version: str,
    label: tuple[str, ...],
    state_store: tuple[str, ...],
    pubsub: tuple[str, ...],
    lock_store: tuple[str, ...],
) -> None:
    from penstock.mesh.dapr.storage import Storage
    from penstock.mesh.discovery import registry_of
    from penstock.mesh.policy_watch import PolicyWatch
    from penstock.mesh.protection import identity_of, tls_mode
    from penstock.mesh.sidecar import Sidecar, SidecarOptions, policies_of_a_sidecar

    in_force = policies_of_a_sidecar()
    async with AsyncExitStack() as stack:
        if policies is not None:
            watch = PolicyWatch(policies, in_force)
            watch.start()
            watching = asyncio.create_task(watch.run())
            stack.callback(watching.cancel)
        own = await stack.enter_async_context(identity_of(identity, in_force.policy_set))
        options = SidecarOptions(
            app=app_id,
            app_port=app_port,
            port=port,
            mesh_address=mesh_address,
            mesh_port=mesh_port,
            state_stores=frozenset(state_store),
            pubsubs=frozenset(pubsub),
            lock_stores=frozenset(lock_store),
            api_token=os.environ.get("DAPR_API_TOKEN", ""),
            app_token=os.environ.get("APP_API_TOKEN", ""),
            tls_mode=tls_mode(in_force.policy_set),
            version=version,
            labels=dict(map(name_and_value, label)),
        )
        found = registry_of(registry or str(data / "registry.db"), os.environ)
        beside = Sidecar(options, found, in_force, Storage(data), own)
        stack.push_async_callback(beside.close)
        with stopped_by_signals(beside.stop):
            await beside.start()
            await beside.wait()
