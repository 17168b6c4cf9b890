"""What the tests of the mesh share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres import Server, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """PostgreSQL. It takes seconds to make, so that tests keep their tables apart instead."""
    with running_server() as running:
        yield running
