"""What a process of the mesh is started with: one value, read from the command line once, and handed on as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

DIRECTORY: Final = ".penstock/mesh"
REGISTRY: Final = "registry.sqlite"
"""Beside a store in a directory, so that all who use that know of one another."""


class MeshOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, sizes in bytes."""

    app: str
    """`module:app`, or a file."""
    folder: str
    """Where the application was named, and what relative paths begin from."""
    store: str = DIRECTORY
    """A directory, or `postgresql://...`."""
    registry: str = ""
    """A file, `dns://...` or `kubernetes://...`; empty for a file beside the store."""
    policies: str = ""
    """A file; empty for the defaults."""
    only: tuple[str, ...] = ()
    """Typenames that hosts serve; empty for all."""
    version: str = ""
    labels: dict[str, str] = {}
    zone: str = ""
    replicas: int = 1
    host: str = "127.0.0.1"
    """Where hosts and gateway listen."""
    advertise: str = ""
    """The name by which callers reach hosts, where `host` does not say that."""
    port: int = 7070
    """Of the gateway."""
    host_port: int = 0
    """Of a host. 0 chooses a free one."""
    token: str = ""
    """What programs must present to the gateway."""
    identity: str = ""
    """A folder of certificates; empty for none."""
    message_bytes_max: int = 1 << 20
    keep_answers_s: float = 24 * 3600.0
    drain_s: float = 30.0
    until_done: bool = False
    """Whether to end when every ingress has, and everything that followed from it is done."""
    log_level: str = "info"
    log_json: bool = False
    access_log: bool = False

    @property
    def registry_place(self) -> str:
        """Where hosts and callers find one another."""
        directory = DIRECTORY if "://" in self.store else self.store
        return self.registry or f"{directory}/{REGISTRY}"

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def identity_folder(self) -> Path | None:
        return self.path / self.identity if self.identity else None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(MeshOptions).decode


def encode_options(options: MeshOptions) -> str:
    return _encode(options).decode()


def decode_options(text: str) -> MeshOptions:
    return _decode(text)
