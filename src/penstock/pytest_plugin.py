"""What pytest learns by itself once Penstock is installed: a fixture for the harness, and its marker.

    @pytest.mark.penstock(seeds=50, parallelism=4)
    def test_departures(penstock_harness):
        h = penstock_harness(app).faults(Crash(every=5))

With `seeds` a test runs once for each seed, and says how to repeat the one that failed. Imports what it needs only when
the fixture is used: every run of pytest in an environment with Penstock loads this.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from penstock.functions.app import App
    from penstock.testing import Harness


class HarnessFactory(Protocol):
    """The type of the fixture `penstock_harness`: it takes what `penstock.testing.Harness` takes."""

    def __call__(self, app: App, **options: Any) -> Harness: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("penstock")
    group.addoption(
        "--penstock-seeds",
        type=int,
        metavar="N",
        help="run tests with @pytest.mark.penstock(seeds=...) under the seeds 0 to N - 1, whatever the marker says",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "penstock(seeds, **options): run the test under so many seeds; options of `penstock_harness`, such as "
        "parallelism=4 or restart_every=3",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("penstock")
    if marker is None or "seeds" not in marker.kwargs or "penstock_seed" not in metafunc.fixturenames:
        return
    wanted: int | None = metafunc.config.getoption("--penstock-seeds")
    seeds = range(marker.kwargs["seeds"] if wanted is None else wanted)
    metafunc.parametrize("penstock_seed", seeds, indirect=True, ids=[f"seed{seed}" for seed in seeds])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    seed = item.callspec.params.get("penstock_seed") if hasattr(item, "callspec") else None
    if seed is not None and report.failed:
        report.sections.append(("penstock", f"Seed {seed}. Again: python -m pytest '{item.nodeid}'"))
    return report


@pytest.fixture
def penstock_seed(request: pytest.FixtureRequest) -> int | None:
    """The seed of this run; None for a test that is not run under several."""
    seed: int | None = getattr(request, "param", None)
    return seed


@pytest.fixture
def penstock_harness(request: pytest.FixtureRequest, penstock_seed: int | None) -> Iterator[HarnessFactory]:
    """Makes harnesses, and closes them when the test ends. Options given to it win over those of the marker."""
    from penstock.testing import Harness

    marker = request.node.get_closest_marker("penstock")
    defaults: dict[str, Any] = {"seed": penstock_seed, **(marker.kwargs if marker is not None else {})}
    defaults.pop("seeds", None)
    with ExitStack() as stack:
        yield lambda app, **options: stack.enter_context(Harness(app, **{**defaults, **options}))
