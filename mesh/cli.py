"""`penstock mesh APP`: the request runtime of an application; and what belongs to it, such as `penstock mesh ca`."""

from __future__ import annotations

import asyncio
import os
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from penstock.output import debug_option

VERBS: Final = {
    "ca": ("penstock.mesh.cli_ca", "ca"),
    "check-policy": ("penstock.mesh.cli_policy", "check_policy"),
}
"""What there is besides running, and where it is."""
TOKEN_VARIABLE: Final = "PENSTOCK_TOKEN"
KEPT_MS_MIN: Final = 60_000
"""Longer than requests are tried again of themselves: their time is 15 s where nothing else is said."""


class MeshVerbs(click.Group):
    """`penstock mesh app:app` is short for `penstock mesh run app:app`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["run", *VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in VERBS:
            module, name = VERBS[cmd_name]
            command: click.Command = getattr(import_module(module), name)
            return command
        return run if cmd_name == "run" else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in self.list_commands(ctx):
            return super().resolve_command(ctx, args)
        return "run", run, args


@click.group(cls=MeshVerbs, context_settings={"ignore_unknown_options": True})
def mesh() -> None:
    """Run an application as a mesh of requests.

    `penstock mesh app:app` is short for `penstock mesh run app:app`.
    """


@click.command()
@click.argument("target", metavar="[APP]", default="")
@click.option(
    "--replicas", type=click.IntRange(0), default=1, show_default=True, help="Host processes on this machine."
)
@click.option(
    "--only", multiple=True, metavar="NAMESPACE/NAME", help="Serve this function. Can be given several times."
)
@click.option("--no-gateway", is_flag=True, help="Start hosts alone, beside a gateway that runs elsewhere.")
@click.option("--dir", "directory", metavar="DIR", help="Its data directory, .penstock if left out.")
@click.option("--store", metavar="PLACE", help="A directory, if not below --dir, or postgresql://user@host/database.")
@click.option(
    "--store-connections",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="To PostgreSQL, of each host at most.",
)
@click.option("--registry", metavar="PLACE", help="A file, dns://NAME:PORT or kubernetes://SERVICE.")
@click.option("--policies", metavar="FILE", help="What becomes of requests: a policy file, which may change meanwhile.")
@click.option("--version", metavar="TEXT", default="", help="Of these hosts, for routes that split by version.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Of these hosts, for subsets.")
@click.option("--zone", metavar="TEXT", default="", help="Where these hosts are.")
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--advertise", metavar="NAME", default="", help="How callers reach these hosts, if not by --host.")
@click.option(
    "--port",
    type=int,
    default=7070,
    show_default=True,
    envvar="PENSTOCK_PORT",
    help="Of the gateway; 0 chooses a free one.",
)
@click.option("--host-port", type=int, default=0, help="Of the host, if there is only one. Else a free one.")
@click.option("--identity", metavar="DIR", default="", help="A folder of certificates: see penstock mesh ca.")
@click.option("--message-bytes-max", type=click.IntRange(1), default=1 << 20, show_default=True, help="Of one message.")
@click.option(
    "--keep-answers", metavar="TIME", default="1d", show_default=True, help="How long a key is known to be answered."
)
@click.option(
    "--keep-promises", metavar="TIME", default="7d", show_default=True, help="How long a promise waits for who asks."
)
@click.option("--drain", metavar="TIME", default="30s", show_default=True, help="How long a stopping host may finish.")
@click.option("--until-done", is_flag=True, help="Stop when every ingress has ended and its work is done.")
@click.option("--log-level", metavar="LEVEL", default="info", show_default=True, help="debug, info, warning or error.")
@click.option("--log-json", is_flag=True, help="Log JSON, one object a line.")
@click.option("--access-log", is_flag=True, help="Log a line for every request.")
@debug_option
def run(
    target: str,
    only: tuple[str, ...],
    labels: tuple[str, ...],
    drain: str,
    keep_answers: str,
    keep_promises: str,
    directory: str | None,
    store: str | None,
    registry: str | None,
    policies: str | None,
    no_gateway: bool,
    **flags: Any,
) -> None:
    """Run an application as a mesh until it is told to stop.

    APP is a module and a variable (shop.main:app), or a file. Without one, app.py. Programs ask the gateway, in the
    same way as `penstock run`. State is shared by all hosts of the same --store; hosts and gateways of the same
    --registry find one another.
    """
    from penstock.durations import parse_duration
    from penstock.logs import configure_logging
    from penstock.loops import loop_factory
    from penstock.mesh.options import MeshOptions
    from penstock.mesh.supervisor import Supervisor

    _check(flags, no_gateway)
    places = {"directory": directory, "store": store, "registry": registry, "policies": policies}
    flags |= {name: place for name, place in places.items() if place}
    options = MeshOptions(
        app=target,
        folder=str(Path.cwd()),
        only=only,
        labels=dict(map(name_and_value, labels)),
        drain_s=parse_duration(drain) / 1000,
        keep_answers_s=_kept_s("--keep-answers", keep_answers),
        keep_promises_s=_kept_s("--keep-promises", keep_promises),
        token=os.environ.get(TOKEN_VARIABLE, ""),
        **flags,
    )
    configure_logging(as_json=options.log_json, level=options.log_level, process="mesh")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(Supervisor(options, gateway=not no_gateway).run())


def _check(flags: dict[str, Any], no_gateway: bool) -> None:
    from penstock.loopback import check_listening

    if flags["host_port"] and flags["replicas"] != 1:
        raise click.UsageError("--host-port is for one host: --replicas 1.")
    if no_gateway and not flags["replicas"]:
        raise click.UsageError("--no-gateway and --replicas 0 leave nothing to start.")
    if not flags["identity"] or not no_gateway:
        check_listening(flags["host"], os.environ.get(TOKEN_VARIABLE))


def _kept_s(option: str, text: str) -> float:
    """How long something is kept. Raises UsageError for a time within which a request may still be tried again."""
    from penstock.durations import parse_duration

    kept_ms = parse_duration(text)
    if kept_ms < KEPT_MS_MIN:
        raise click.UsageError(f"{option} {text} forgets what a request that is tried again needs. Give at least 1m.")
    return kept_ms / 1000


def name_and_value(label: str) -> tuple[str, str]:
    """What NAME=VALUE says. Raises UsageError."""
    name, separator, value = label.partition("=")
    if not separator or not name:
        raise click.UsageError(f"--label {label!r} is not NAME=VALUE.")
    return name, value
