"""The shop of the comparison: right under every way of going about an order, and wrong where it is meant to be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from penstock.compare.checkout import data, settings
from penstock.compare.checkout.bank import Mode
from penstock.errors import ConfigurationError
from penstock.functions.commands import Command
from penstock.functions.fence import Asked
from penstock.testing import Crash, Harness, Repeats
from tests.compare.shops import Fate, Till, orders, play, shop_with

FLOWS = ("plain", "saga", "parallel", "tcc", "choreography")
NO_HARM = dict.fromkeys(("lost", "duplicated", "orphaned", "lied", "wrong"), 0)


def sometimes(seed: int, *fates: Fate, share: float = 0.2) -> Callable[[], Fate]:
    """One of these in so many cases."""
    dice = Random(seed)
    return lambda: dice.choice(fates) if dice.random() < share else Fate.DONE


@pytest.mark.parametrize(
    ("flow", "mode"),
    [*((flow, Mode.TRANSACTIONAL) for flow in FLOWS), ("plain", Mode.PLAIN), ("saga", Mode.KEYED)],
)
def test_every_way_comes_to_the_same_ends_without_faults(flow: str, mode: Mode) -> None:
    till = Till(mode)
    shop = shop_with(till, COMPARE_FLOW=flow, COMPARE_BANK_MODE=mode)
    with Harness(shop.app, always_replay=mode is Mode.KEYED) as harness:
        verdict = play(harness, till, orders(40))

        assert harness.dead_letters() == []
    assert verdict["counts"] == NO_HARM
    assert verdict["terminal"].keys() == {"CONFIRMED", "REJECTED:no stock", "REJECTED:no funds"}, verdict["terminal"]


@pytest.mark.parametrize("flow", FLOWS)
def test_a_stream_whose_bank_knows_keys_is_right_whatever_is_killed(flow: str) -> None:
    fates = sometimes(3, Fate.REPLY_LOST, Fate.LOST)
    till = Till(Mode.TRANSACTIONAL, fates)
    shop = shop_with(till, COMPARE_FLOW=flow, COMPARE_BANK_MODE="transactional", COMPARE_BANK_TRIES="1000")
    with Harness(shop.app, seed=3, parallelism=2).faults(Crash(every=40), Repeats()) as harness:
        verdict = play(harness, till, orders(20))

        assert harness.crashes > 3
    assert verdict["counts"] == NO_HARM
    assert sum(verdict["terminal"].values()) == 20


def test_the_saga_by_hand_is_right_while_nothing_goes_wrong() -> None:
    till = Till(Mode.KEYED)
    shop = shop_with(till, COMPARE_FLOW="saga", COMPARE_FENCE="off")
    with Harness(shop.app) as harness:
        assert play(harness, till, orders(40))["counts"] == NO_HARM


# The negative controls. If one of them does no harm, nothing is proven by those that do none.


@pytest.mark.parametrize(("mode", "doubled"), [(Mode.PLAIN, True), (Mode.KEYED, False), (Mode.TRANSACTIONAL, False)])
def test_a_reply_that_is_lost_after_its_effect_doubles_a_charge_where_the_bank_knows_no_keys(
    mode: Mode, doubled: bool
) -> None:
    till = Till(mode, sometimes(5, Fate.REPLY_LOST))
    shop = shop_with(till, COMPARE_FLOW="plain", COMPARE_BANK_MODE=mode, COMPARE_BANK_TRIES="100")
    with Harness(shop.app) as harness:
        counts = play(harness, till, orders(30))["counts"]

    assert (counts["duplicated"] > 0) == doubled
    assert counts["orphaned"] == counts["lost"] == counts["lied"] == 0


@pytest.mark.parametrize("fenced", [True, False])
def test_a_reservation_that_comes_behind_its_compensation_is_an_orphan_without_fences(fenced: bool) -> None:
    till, order = Till(Mode.KEYED), orders(1)[0]
    sku, quantity = order.lines[0]
    shop = shop_with(till, COMPARE_FLOW="saga", COMPARE_FENCE="on" if fenced else "off")
    reserve, settle = shop.Reserve(order.id, quantity), shop.Settle(order.id, is_sold=False)
    if fenced:
        body = shop.take.message_codec.encode(reserve)
        messages = [Command(each, "take", f"shop/order/{order.id}", "take", body) for each in (Asked.CANCEL, Asked.TRY)]
    else:
        messages = [settle, reserve]
    with Harness(shop.app) as harness:
        for message in messages:
            harness.send("shop/inventory", sku, message)
        counts = play(harness, till, [])["counts"]

    assert counts == NO_HARM | {"orphaned": 0 if fenced else 1}


@pytest.mark.parametrize(
    ("fenced", "mode", "orphans"),
    [(True, Mode.TRANSACTIONAL, False), (False, Mode.KEYED, True)],
    ids=["with fences", "without"],
)
def test_a_charge_that_comes_behind_its_refund_is_an_orphan_without_fences(
    fenced: bool, mode: Mode, orphans: bool
) -> None:
    till = Till(mode, sometimes(7, Fate.LATE, share=0.5))
    fence = "on" if fenced else "off"
    shop = shop_with(till, COMPARE_FLOW="saga", COMPARE_FENCE=fence, COMPARE_BANK_TRIES="2")
    with Harness(shop.app) as harness:
        verdict = play(harness, till, orders(30))

    assert (verdict["counts"]["orphaned"] > 0) == orphans
    assert verdict["terminal"]["REJECTED:failed"] > 0
    assert fenced is False or verdict["counts"] == NO_HARM


# What the environment says.


def test_poison_raises_before_anything_is_done() -> None:
    till, placed = Till(Mode.KEYED), orders(3)
    shop = shop_with(till, COMPARE_POISON=placed[1].id)
    with Harness(shop.app) as harness:
        verdict = play(harness, till, placed)

        assert [letter.id for letter in harness.dead_letters()] == [placed[1].id]
    assert verdict["counts"] == NO_HARM
    assert verdict["terminal"]["none"] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("COMPARE_FLOW", "both"), ("COMPARE_FENCE", "perhaps"), ("COMPARE_BANK_TRIES", "0"), ("COMPARE_STOCK", "much")],
)
def test_what_the_shop_cannot_be_run_with_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"PEN0920 {name}='{value}'"):
        settings.read({name: value})


def test_handlers_tell_when_they_begin_and_end(tmp_path: Path) -> None:
    till, placed = Till(Mode.KEYED), orders(2)
    shop = shop_with(till, COMPARE_WITNESS=str(tmp_path / "witness"), COMPARE_POISON=placed[1].id)
    with Harness(shop.app) as harness:
        play(harness, till, placed)

    seen = [json.loads(line) for line in (tmp_path / "witness").read_text().splitlines()]
    poisoned = [each["outcome"] for each in seen if each["kind"] == "end" and each["order"] == placed[1].id]
    assert poisoned == ["raised ValueError"] * 3
    right = [each for each in seen if each["order"] == placed[0].id]
    assert {each["fn"] for each in right} == set(data.FUNCTIONS)
    assert {each["id"] for each in right if each["fn"] == "shop/payment"} == {placed[0].user}
    assert all(each["attempt"] == 1 and each["t"] > 0 and each["node"] for each in right)


def test_orders_of_a_seed_are_the_same_and_crowd_with_theta() -> None:
    assert data.order(1, 7, 0.8) == data.order(1, 7, 0.8) != data.order(2, 7, 0.8)
    shares = [sum(data.order(1, number, theta).user == "user-0" for number in range(500)) for theta in (0, 0.8, 1.2)]
    assert shares == sorted(set(shares))
    for number in range(200):
        order = data.order(3, number, 1.2)
        assert 1 <= len(order.lines) <= data.LINES_MAX
        assert len({sku for sku, _ in order.lines}) == len(order.lines)
        assert order.amount > 0
