"""From the name of a store to the store: a directory, or a PostgreSQL database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import ConfigurationError
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.store import CONNECTIONS_MAX, Store

if TYPE_CHECKING:
    from penstock.mesh.postgres_store import PostgresStore

_POSTGRES = ("postgresql://", "postgres://")


async def open_store(where: str, *, connections_max: int = CONNECTIONS_MAX) -> Store:
    """The store at `where`: `mesh-data`, or `postgresql://user@host/database`, to which this process makes so many
    connections at most. It is made if there is none.

    Raises ConfigurationError for what names no store, Unavailable when it does not answer, and Refused when a later
    Penstock has written it.
    """
    store = _named(where, connections_max)
    try:
        await store.open()
    except BaseException:
        await store.close()  # Nobody else knows it yet.
        raise
    return store


def _named(where: str, connections_max: int) -> SqliteStore | PostgresStore:
    if where.startswith(_POSTGRES):
        return _postgres(where, connections_max)
    scheme, separator, _ = where.partition("://")
    if separator:
        raise ConfigurationError(
            "PEN0825",
            f"{scheme}:// names no store of a mesh. Give a directory, or postgresql://user@host/database.",
        )
    return SqliteStore(Path(where))


def _postgres(dsn: str, connections_max: int) -> PostgresStore:
    try:
        from penstock.mesh.postgres_store import PostgresStore
    except ImportError as error:
        raise ConfigurationError(
            "PEN0824",
            "A store in PostgreSQL needs psycopg, which is missing. Install it: pip install 'penstock[postgres]'.",
        ) from error
    return PostgresStore(dsn, connections_max=connections_max)
