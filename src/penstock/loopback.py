"""Which addresses only this machine reaches, and that nothing listens on others without a token."""

from __future__ import annotations

from typing import Final

from penstock.errors import ConfigurationError

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def check_listening(host: str, token: str | None) -> None:
    """Raise ConfigurationError for an interface that everybody on the network could use."""
    if host not in LOOPBACK and not token:
        raise ConfigurationError(
            "PEN0602",
            f"Refused to listen on {host} without a token: everyone who reaches it could read and change "
            "state. Set PENSTOCK_TOKEN (or token in the configuration), or listen on 127.0.0.1.",
        )
