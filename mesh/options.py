"""What a process of the mesh is started with: one value, read from the command line once, and handed on as JSON.

It goes by standard input, because it holds the token, and any user of a machine may list the arguments of programs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from penstock.files import MESH_FOLDER
from penstock.mesh.store import CONNECTIONS_MAX

DIRECTORY: Final = ".penstock"
HOME: Final = f"{DIRECTORY}/{MESH_FOLDER}"
REGISTRY: Final = "registry.sqlite"
"""Beside a store in a directory, so that all who use that know of one another."""


class MeshOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, sizes in bytes."""

    app: str
    """`module:app`, or a file."""
    folder: str
    """Where the application was named, and what relative paths begin from."""
    directory: str = DIRECTORY
    """What the mesh keeps on this machine lies below."""
    store: str = ""
    """A directory, or `postgresql://...`; empty for one below `directory`."""
    store_connections: int = CONNECTIONS_MAX
    """To PostgreSQL, of each host at most."""
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
    keep_promises_s: float = 7 * 24 * 3600.0
    drain_s: float = 30.0
    until_done: bool = False
    """Whether to end when every ingress has, and everything that followed from it is done."""
    log_level: str = "info"
    log_json: bool = False
    access_log: bool = False

    @property
    def home(self) -> Path:
        """The part of `directory` that is the mesh's."""
        return self.path / self.directory / MESH_FOLDER

    @property
    def store_place(self) -> str:
        """Where state is."""
        if "://" in self.store:
            return self.store
        return str(self.path / self.store if self.store else self.home)

    @property
    def registry_place(self) -> str:
        """Where hosts and callers find one another."""
        if not self.registry:
            return str((self.home if "://" in self.store else Path(self.store_place)) / REGISTRY)
        return self.registry if ":" in self.registry else str(self.path / self.registry)

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def identity_folder(self) -> Path | None:
        return self.path / self.identity if self.identity else None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(MeshOptions).decode


def encode_options(options: MeshOptions) -> bytes:
    """In one line."""
    return _encode(options) + b"\n"


def decode_options(line: bytes) -> MeshOptions:
    return _decode(line)
