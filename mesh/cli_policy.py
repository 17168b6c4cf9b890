"""`penstock mesh check-policy`: what a policy file says and what is wrong with it, before anything runs under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from penstock.output import output_options, print_json


@click.command(name="check-policy")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("target", metavar="[APP]", default="")
@click.option(
    "--replicas", type=click.IntRange(1), default=None, help="How many hosts there will be, for the warnings."
)
@output_options
def check_policy(file: Path, target: str, replicas: int | None, as_json: bool) -> None:
    """Say what is wrong with the policy file FILE, and what in it won't do what it seems to say.

    FILE is a mesh.yaml, or has documents of Istio (VirtualService, DestinationRule), SMI (TrafficSplit, TrafficTarget,
    HTTPRouteGroup) or Dapr (Resiliency). With APP, as in `penstock mesh app:app`, it says which names in FILE are no
    functions of that application.
    """
    from penstock.loading import load_app
    from penstock.mesh.policy_checks import unknown_functions
    from penstock.mesh.policy_watch import read_policy_file

    policies, digest = read_policy_file(file, replicas=replicas or 0)
    unknown = unknown_functions(policies, load_app(target, Path.cwd()).app.functions) if target else ()
    warnings = [*policies.warnings, *unknown]
    found: dict[str, Any] = {
        "file": str(file),
        "digest": digest,
        "functions": sorted(policies.functions),
        "routes": len(policies.routes),
        "access_rules": len(policies.access),
        "warnings": warnings,
    }
    if as_json:
        print_json(found)
        return
    counted = (
        _counted(len(policies.functions), "function"),
        _counted(len(policies.routes), "route"),
        _counted(len(policies.access), "access rule"),
    )
    click.echo(f"{file} can be used: {', '.join(counted)} ({digest}).")
    for warning in warnings:
        click.echo(f"Warning: {warning}")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
