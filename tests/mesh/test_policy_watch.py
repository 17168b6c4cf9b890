"""A policy file that changes while requests go on."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from random import Random

import pytest

from penstock.errors import ConfigurationError
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import PolicySet
from penstock.mesh.policy_watch import PolicyWatch

GOOD = "routes:\n- timeout: 1s\n"
BETTER = "routes:\n- timeout: 250ms\n"
BAD = "routes:\n- timeout: never\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.yaml"
    path.write_text(GOOD)
    return path


def policies() -> Policies:
    return Policies(PolicySet(), draw=Random(1).random)


def settle(watch: PolicyWatch) -> None:
    """The two looks after which a change is in force."""
    for _ in range(2):
        asyncio.run(watch.look())


def started(path: Path) -> tuple[Policies, PolicyWatch]:
    live = policies()
    watch = PolicyWatch(path, live)
    watch.start()
    return live, watch


def timeouts(live: Policies) -> list[float]:
    return [route.timeout_s for route in live.policy_set.routes]


def test_a_changed_file_is_acknowledged_and_in_force(path: Path) -> None:
    live, watch = started(path)

    path.write_text(BETTER)
    settle(watch)

    assert timeouts(live) == [0.25]
    assert (watch.status.version, watch.status.refused) == (2, "")


def test_a_file_that_is_refused_leaves_the_last_good_one_in_force(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live, watch = started(path)

    path.write_text(BAD)
    settle(watch)

    assert timeouts(live) == [1.0]
    assert watch.status.version == 1
    assert "mesh.yaml line 2, routes[0].timeout: expected a duration" in watch.status.refused
    assert "policies refused, version 1 goes on" in caplog.text


def test_a_file_that_is_gone_leaves_the_last_good_one_in_force(path: Path) -> None:
    live, watch = started(path)

    path.unlink()
    settle(watch)

    assert timeouts(live) == [1.0]
    assert "can't be read" in watch.status.refused


def test_a_refused_file_that_is_mended_is_in_force_again(path: Path) -> None:
    live, watch = started(path)

    for text in (BAD, BETTER):
        path.write_text(text)
        settle(watch)

    assert timeouts(live) == [0.25]
    assert (watch.status.version, watch.status.refused) == (2, "")


def test_a_file_that_is_still_being_written_is_not_read(path: Path) -> None:
    live, watch = started(path)

    for text in ("", "routes:\n", BETTER):
        path.write_text(text)
        asyncio.run(watch.look())
        assert timeouts(live) == [1.0]
    asyncio.run(watch.look())

    assert timeouts(live) == [0.25]


def test_an_application_does_not_start_with_a_file_that_is_refused(path: Path) -> None:
    path.write_text(BAD)

    with pytest.raises(ConfigurationError) as caught:
        PolicyWatch(path, policies()).start()

    assert caught.value.code == "PEN0840"


def test_without_the_library_for_policy_files_an_application_does_not_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "penstock.mesh.policy_file", None)

    with pytest.raises(ConfigurationError, match=r"PEN0850 .* pip install 'penstock\[policies\]'"):
        PolicyWatch(path, policies()).start()


def test_a_change_is_in_force_within_two_seconds(path: Path) -> None:
    class Noticing(Policies):
        def apply(self, policy_set: PolicySet, now_s: float) -> None:
            super().apply(policy_set, now_s)
            noticed.set()

    async def run_until_noticed() -> None:
        running = asyncio.create_task(watch.run())
        async with asyncio.timeout(2):
            await noticed.wait()
        running.cancel()

    noticed = asyncio.Event()
    live = Noticing(PolicySet(), draw=Random(1).random)
    watch = PolicyWatch(path, live)
    watch.start()
    noticed.clear()

    path.write_text(BETTER)
    asyncio.run(run_until_noticed())

    assert timeouts(live) == [0.25]


def test_warnings_of_a_file_are_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text("functions: {shop/payment: {outlier_detection: {}}}")

    with caplog.at_level(logging.WARNING):
        PolicyWatch(path, policies(), replicas=3).start()

    assert "one of 3 endpoints is 33.3 % of them" in caplog.text


def test_names_that_the_application_does_not_have_are_warned_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(
        "functions: {shop/paymint: {}, app/stock: {}, actor/Clerk: {}}\n"
        "routes: [{match: {function: shop/cart}}, {match: {function: {prefix: bank/}}}]\n"
        "access: [{destination: 'shop/*', sources: [shop/order]}]\n"
    )

    with caplog.at_level(logging.WARNING):
        PolicyWatch(path, policies(), functions=["shop/payment", "shop/cart"]).start()

    warning, source = caplog.messages
    assert warning.startswith("mesh.yaml functions: shop/paymint is no function of this application")
    assert warning.endswith("(did you mean shop/payment?), so nothing is done for it")
    assert source.startswith("mesh.yaml access, sources: shop/order is no function of this application")
    assert source.endswith("(there are shop/cart, shop/payment), so nobody asks under that name")


def test_a_change_that_needs_a_restart_is_warned_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text("tls: {mode: STRICT}")
    _, watch = started(path)
    assert caplog.messages == []

    path.write_text("tls: {mode: PERMISSIVE}")
    settle(watch)

    assert caplog.messages == ["mesh.yaml tls: a process reads it when it starts; start this one again"]
