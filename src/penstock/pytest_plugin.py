"""What pytest learns by itself once Penstock is installed: a fixture for the harness, and its marker.

    @pytest.mark.penstock(parallelism=4, restart_every=3)
    def test_departures(penstock_harness):
        h = penstock_harness(app)

Imports what it needs only when the fixture is used: every run of pytest in an environment with Penstock loads this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from penstock.functions.app import App
    from penstock.testing import Harness


class HarnessFactory(Protocol):
    """The type of the fixture `penstock_harness`: it takes what `penstock.testing.Harness` takes."""

    def __call__(self, app: App, **options: Any) -> Harness: ...


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "penstock(**options): options of `penstock_harness`, such as parallelism=4 or restart_every=3"
    )


@pytest.fixture
def penstock_harness(request: pytest.FixtureRequest) -> Iterator[HarnessFactory]:
    """Makes harnesses, and closes them when the test ends. Options given to it win over those of the marker."""
    from penstock.testing import Harness

    marker = request.node.get_closest_marker("penstock")
    defaults: dict[str, Any] = dict(marker.kwargs) if marker is not None else {}
    with ExitStack() as stack:
        yield lambda app, **options: stack.enter_context(Harness(app, **{**defaults, **options}))
