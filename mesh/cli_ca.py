"""`penstock mesh ca`: an authority for certificates, for a mesh that has no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from penstock.durations import parse_duration
from penstock.errors import ConfigurationError
from penstock.output import output_options, print_json

if TYPE_CHECKING:
    from penstock.mesh.certificates import Described

AUTHORITY: Final = Path("ca")

_authority_option = click.option(
    "--authority",
    type=click.Path(path_type=Path, file_okay=False),
    default=AUTHORITY,
    show_default=True,
    metavar="DIR",
    help="The folder of the authority.",
)


@click.group()
def ca() -> None:
    """Issue the certificates by which hosts and callers know one another.

    `init` begins an authority, once. `issue` writes an identity for a host into a folder; issued again into the same
    folder, new connections use the new one at once.
    """


@ca.command()
@click.argument("trust_domain")
@_authority_option
@click.option("--for", "lifetime", default="365d", show_default=True, metavar="DURATION", help="How long it is valid.")
@output_options
def init(trust_domain: str, authority: Path, lifetime: str, as_json: bool) -> None:
    """Begin an authority for TRUST_DOMAIN, such as demo.local."""
    certificates = _certificates()
    path = certificates.make_authority(authority, trust_domain, _span(lifetime), datetime.now(UTC))
    _say(certificates.describe(path), path, as_json)


@ca.command()
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--namespace", default="default", show_default=True, help="The part of the id before the name.")
@_authority_option
@click.option("--for", "lifetime", default="24h", show_default=True, metavar="DURATION", help="How long it is valid.")
@output_options
def issue(name: str, directory: Path, namespace: str, authority: Path, lifetime: str, as_json: bool) -> None:
    """Write an identity of NAME into DIRECTORY, or renew the one that is there."""
    certificates = _certificates()
    described = certificates.issue(
        authority, directory, namespace=namespace, name=name, lifetime=_span(lifetime), now=datetime.now(UTC)
    )
    _say(described, directory, as_json)


@ca.command()
@click.argument("certificate", type=click.Path(path_type=Path, exists=True))
@output_options
def show(certificate: Path, as_json: bool) -> None:
    """Say whose a certificate is and how long it is valid. CERTIFICATE is a file, or the folder of an identity."""
    from penstock.mesh.identity import CERTIFICATE

    path = certificate / CERTIFICATE if certificate.is_dir() else certificate
    _say(_certificates().describe(path), path, as_json)


def _certificates() -> Any:
    """The module, or what to install."""
    try:
        return import_module("penstock.mesh.certificates")
    except ImportError as error:
        raise ConfigurationError(
            "PEN0877",
            f"For certificates a library is missing ({error}). Install it: pip install 'penstock[identity]'. Hosts "
            "that only use certificates need none.",
        ) from error


def _span(duration: str) -> timedelta:
    return timedelta(milliseconds=parse_duration(duration))


def _say(described: Described, place: Path, as_json: bool) -> None:
    begins, ends = (moment.isoformat(timespec="seconds") for moment in (described.begins, described.ends))
    if as_json:
        print_json({"identity": described.identity, "begins": begins, "ends": ends, "path": str(place)})
        return
    left = described.ends - datetime.now(UTC)
    when = f"valid until {ends}" if left > timedelta(0) else f"expired at {ends}"
    click.echo(f"{described.identity}  {when}  {place}")
