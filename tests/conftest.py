"""What every test begins with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.logs import logger


@pytest.fixture(autouse=True)
def logger_as_imported() -> Iterator[None]:
    """Whoever runs a verb in this process configures the logger: the next test must not find it so."""
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate
