"""What every test begins with."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from penstock.logs import logger


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: a quarter of its time a worker waits for processes that its tests started."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def logger_as_imported() -> Iterator[None]:
    """Whoever runs a verb in this process configures the logger: the next test must not find it so."""
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate
