"""Leases are judged by what was seen of them, and a registry that can't be asked takes nothing out of a view."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock.errors import ConfigurationError, PenstockError, Unavailable
from penstock.mesh.registry import Endpoint, Listing, LocalRegistry, Registry, Sighting, Sightings, Watch
from tests.mesh.registry_contract import RegistryContract, endpoint


def names(endpoints: Sequence[Endpoint]) -> list[str]:
    return [one.name for one in endpoints]


def listing(*sightings: Sighting, origin: str = "first") -> Listing:
    return Listing(sightings, origin)


def leased(name: str, renewal: int = 1, age_s: float = 0.0) -> Sighting:
    return Sighting(endpoint(name), 10.0, renewal, age_s)


class TestSightings:
    def test_a_lease_that_is_renewed_holds(self) -> None:
        sightings = Sightings()
        for now_s in range(0, 60, 9):
            assert names(sightings.seen(listing(leased("h1", renewal=now_s)), now_s)) == ["h1"]

    def test_one_that_is_not_runs_out_after_its_ttl(self) -> None:
        sightings = Sightings()
        sightings.seen(listing(leased("h1")), 0)

        assert names(sightings.seen(listing(leased("h1")), 9.9)) == ["h1"]
        assert sightings.seen(listing(leased("h1")), 10) == ()

    def test_one_that_ran_out_comes_back_when_it_is_renewed(self) -> None:
        sightings = Sightings()
        sightings.seen(listing(leased("h1", renewal=1)), 0)
        assert sightings.seen(listing(leased("h1", renewal=1)), 50) == ()

        assert names(sightings.seen(listing(leased("h1", renewal=2)), 51)) == ["h1"]

    def test_one_that_is_met_after_it_ran_out_was_never_there(self) -> None:
        assert Sightings().seen(listing(leased("h1", age_s=11)), 100) == ()

    def test_a_holder_whose_clock_is_ahead_gets_no_longer_lease(self) -> None:
        sightings = Sightings()
        sightings.seen(listing(leased("h1", age_s=-3600)), 0)

        assert sightings.seen(listing(leased("h1", age_s=-3600)), 10) == ()

    def test_a_wall_clock_that_jumps_ends_no_lease(self) -> None:
        sightings = Sightings()
        sightings.seen(listing(leased("h1", renewal=1)), 0)

        assert names(sightings.seen(listing(leased("h1", renewal=1, age_s=3600)), 5)) == ["h1"]

    def test_after_an_outage_every_lease_runs_anew(self) -> None:
        """Nobody could renew: taking them all for dead would leave no one to ask."""
        sightings = Sightings()
        sightings.seen(listing(leased("h1"), leased("h2")), 0)
        sightings.failed()

        assert names(sightings.seen(listing(leased("h1"), leased("h2")), 1000)) == ["h1", "h2"]
        assert names(sightings.seen(listing(leased("h1", 2), leased("h2")), 1009)) == ["h1", "h2"]
        assert names(sightings.seen(listing(leased("h1", 2), leased("h2")), 1010)) == ["h1"]

    def test_what_is_no_longer_listed_was_released(self) -> None:
        sightings = Sightings()
        sightings.seen(listing(leased("h1"), leased("h2")), 0)

        assert names(sightings.seen(listing(leased("h2")), 1)) == ["h2"]

    def test_a_registry_that_began_anew_has_released_nobody(self) -> None:
        sightings = Sightings()
        sightings.seen(listing(leased("h1"), leased("h2")), 0)

        assert names(sightings.seen(listing(origin="second"), 1)) == ["h1", "h2"]
        assert names(sightings.seen(listing(leased("h1"), origin="second"), 4)) == ["h1", "h2"]
        assert names(sightings.seen(listing(leased("h1", 2), origin="second"), 10)) == ["h1"]

    def test_in_one_that_began_anew_a_host_that_is_back_can_be_released(self) -> None:
        sightings = Sightings()
        sightings.seen(listing(leased("h1")), 0)
        sightings.seen(listing(origin="second"), 1)
        sightings.seen(listing(leased("h1"), origin="second"), 2)

        assert sightings.seen(listing(origin="second"), 3) == ()

    def test_what_has_no_lease_stays_as_long_as_it_is_listed(self) -> None:
        sightings = Sightings()
        assert names(sightings.seen(listing(Sighting(endpoint("h1"))), 0)) == ["h1"]
        assert names(sightings.seen(listing(Sighting(endpoint("h1"))), 1e9)) == ["h1"]


class _Source:
    """What a watch looks at. An error stands for a look that fails."""

    def __init__(self, *says: Listing | PenstockError) -> None:
        self.says = list(says)

    async def look(self) -> Listing:
        said = self.says.pop(0)
        if isinstance(said, PenstockError):
            raise said
        return said


DOWN = Unavailable("PEN0870", "The registry is down.")


class TestWatch:
    def test_an_outage_is_said_once_and_the_view_stays(self, caplog: pytest.LogCaptureFixture) -> None:
        up = listing(leased("h1"))

        async def check() -> None:
            watch = Watch(_Source(up, DOWN, DOWN, up, DOWN).look)
            await watch.refresh()
            for _ in range(4):
                await watch.refresh()
                assert names(watch.view().endpoints) == ["h1"]
                assert watch.view().number == 1

        with caplog.at_level(logging.INFO, logger="penstock"):
            asyncio.run(check())
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]
        assert "PEN0870 The registry is down. The last view goes on serving: 1 endpoints." in caplog.text

    def test_a_registry_that_is_down_at_first_is_asked_again(self) -> None:
        async def check() -> None:
            watch = Watch(_Source(DOWN, DOWN, *[listing(leased("h1"))] * 100).look, poll_s=0.001)
            await watch.start()
            assert names((await asyncio.wait_for(watch.changed(0), 5)).endpoints) == ["h1"]
            await watch.close()

        asyncio.run(check())

    def test_what_waiting_does_not_mend_is_raised_at_the_start(self) -> None:
        wrong = ConfigurationError("PEN0871", "There is no registry.")

        with pytest.raises(ConfigurationError):
            asyncio.run(Watch(_Source(wrong).look).start())

    def test_a_look_that_does_not_return_is_an_outage(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("penstock.mesh.registry.READ_S", 0.01)

        async def check() -> None:
            async def hangs() -> Listing:
                await asyncio.Event().wait()
                raise AssertionError

            await Watch(hangs).refresh()

        asyncio.run(check())
        assert "has not answered for 0.01 s" in caplog.text


class TestLocalRegistry(RegistryContract):
    def registry(self, folder: Path) -> Registry:
        return LocalRegistry()

    def test_endpoints_known_beforehand_are_there_at_once(self) -> None:
        async def check() -> None:
            registry = LocalRegistry([endpoint("h1"), endpoint("h2")])
            await registry.open()
            assert names(registry.view().endpoints) == ["h1", "h2"]

        asyncio.run(check())
