"""What the tests of the mesh share."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.postgres import Server, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """PostgreSQL. It takes seconds to make, so that tests keep their tables apart instead."""
    with running_server() as running:
        yield running


@pytest.fixture
def empty_database(server: Server) -> str:
    """Its DSN; for tests that name no tables of their own, as each process of a mesh."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS penstock_mesh CASCADE")
    return server.dsn
