"""The checkout example: every order ends in one of its ends, and money and goods are where that end says."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.checkout import app as shop
from examples.checkout import bank
from examples.checkout.orders import Order, order, orders_until
from penstock.testing import Crash, FailingSink, Harness
from tests.kill import checkout_checker

ROOT = Path(__file__).resolve().parent.parent.parent
ORDERS = 60
WAYS = [
    {},
    {"parallelism": 4},
    {"always_replay": True},
    {"parallelism": 4, "always_replay": True},
    {"parallelism": 2, "restart_every": 7},
]

if "orders" not in shop.app.ingresses:
    shop.connect(Path("nowhere"), orders_until(0))


@pytest.fixture(autouse=True)
def quick_bank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHECKOUT_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(bank, "LATENCY_S", 0.0)


def an_order(**changes: Any) -> Order:
    """One tea for 4, that is delivered after 200 ms if nothing is changed."""
    usual: dict[str, Any] = {"number": "o", "customer": "ada", "item": "tea", "quantity": 1, "price": 4, "city": "Ulm"}
    return Order(**usual | {"patience_ms": 60_000, "travels_ms": 200, "gets_lost": False} | changes)


def money() -> tuple[int, int]:
    """What the shop has, and how much was moved back and forth."""
    amounts = [row["amount"] for row in bank.rows("bookings")]
    return sum(amounts), sum(map(abs, amounts))


def check(h: Harness) -> None:
    """As after kills: the rows are those of the files."""
    ends = {row["order"]: row for row in h.egress("checkout/orders")}
    assert len(h.egress("checkout/orders")) == len(ends) == ORDERS
    assert h.dead_letters() == []
    with checkout_checker.opened(bank.path()) as books:
        checkout_checker.check_money(ends, books)
        checkout_checker.check_keys(books)
    checkout_checker.check_stock(ends, h.egress("checkout/stock"))
    outcomes = Counter(row["outcome"] for row in ends.values())
    told = Counter[str]()
    for purse in h.states(shop.customer).values():
        told.update(purse.orders)
    assert told == outcomes
    assert {"delivered", "cancelled", "undeliverable"} <= outcomes.keys()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way) or "plain")
def test_orders_end_in_the_same_way_however_they_are_run(way: dict[str, Any]) -> None:
    with Harness(shop.app, **way) as h:
        h.feed("orders", map(order, range(ORDERS)))
        h.advance("1m")
        check(h)


@pytest.mark.parametrize("seed", range(4))
def test_crashes_at_any_moment_lose_and_double_nothing(seed: int) -> None:
    with Harness(shop.app, seed=seed, parallelism=2, always_replay=seed % 2 > 0).faults(
        Crash(every=20), FailingSink()
    ) as h:
        h.feed("orders", map(order, range(ORDERS)))
        h.advance("1m")
        assert h.crashes
        check(h)


def test_an_order_is_paid_for_and_delivered() -> None:
    with Harness(shop.app) as h:
        assert h.call(shop.order, "o", an_order()) == "delivered"
        assert money() == (4, 4)
        assert (h.state(shop.shelf, "tea").sold, h.state(shop.shelf, "tea").reserved) == (1, {})


def test_nothing_is_charged_for_what_is_sold_out() -> None:
    with Harness(shop.app) as h:
        assert h.call(shop.order, "o", an_order(quantity=shop.STOCK + 1)) == "sold out"
        assert money() == (0, 0)


def test_what_cannot_be_paid_goes_back_onto_the_shelf() -> None:
    with Harness(shop.app) as h:
        assert h.call(shop.order, "o", an_order(price=bank.OPENING + 1)) == "declined"
        assert h.state(shop.shelf, "tea").available == shop.STOCK


def test_a_parcel_that_is_lost_is_refunded() -> None:
    with Harness(shop.app) as h:
        assert h.call(shop.order, "o", an_order(gets_lost=True)) == "undeliverable"
        assert money() == (0, 8)
        assert h.state(shop.shelf, "tea").lost == 1


def test_a_courier_in_a_storm_is_given_up() -> None:
    with Harness(shop.app) as h:
        assert h.call(shop.order, "o", an_order(city="stormy Sylt")) == "undeliverable"
        assert h.state(shop.courier, "stormy Sylt").parcels == {"o": "called back"}
        assert (money(), h.state(shop.shelf, "tea").available) == ((0, 8), shop.STOCK)


@pytest.mark.parametrize("patience_ms", [0, 1, 100, 199, 200, 201, 300])
def test_a_cancelled_order_is_undone_or_delivered(patience_ms: int) -> None:
    with Harness(shop.app) as h:
        h.feed("orders", [an_order(patience_ms=patience_ms)])
        h.advance("10s")
        (ended,) = h.egress("checkout/orders")
        delivered = ended["outcome"] == "delivered"
        assert ended["outcome"] in ("delivered", "cancelled")
        assert delivered or patience_ms <= 201
        assert (money()[0], h.state(shop.shelf, "tea").sold) == ((4, 1) if delivered else (0, 0))
        assert h.state(shop.customer, "ada").orders == {ended["outcome"]: 1}


def test_an_order_that_is_cancelled_while_it_is_undone_is_undone_once() -> None:
    with Harness(shop.app) as h:
        h.feed("orders", [an_order(city="stormy Sylt", patience_ms=1_200)])  # The courier is given up after a second.
        h.advance("10s")
        assert [row["outcome"] for row in h.egress("checkout/orders")] == ["cancelled"]
        assert (money(), h.state(shop.shelf, "tea").available) == ((0, 8), shop.STOCK)


def test_the_program_shows_that_all_fits_together(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.checkout", "--dir", str(tmp_path), "--orders", "30"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    checkout_checker.check(tmp_path, 30)
    assert "How orders ended" in done.stdout
    assert "for what it delivered, at a price of" in done.stdout
