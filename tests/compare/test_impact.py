from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from penstock.compare.impact import (
    Baseline,
    blast_of,
    heat_of,
    homes_of,
    is_affected,
    is_during,
    owners_of,
    recovery_of,
    windows_of,
)
from penstock.compare.orders import Order, Outcome, Place
from penstock.compare.records import Event
from penstock.compare.series import seconds_of

BASELINE = Baseline(p99_ms=100, p999_ms=150)
KILL = Event(4.0, "fault_on", "A", what="kill", where="worker")


def order(t: float, *, latency_ms: float | None = 50.0, right: bool = True, key: str = "k", fn_id: str = "") -> Order:
    return Order(
        name=f"o{t:.3f}{key}",
        key=key,
        offered_s=t,
        outcome=Outcome.CONFIRMED if right else Outcome.FAILED,
        reason="",
        answered_s=None if latency_ms is None else t + latency_ms / 1000,
        latency_ms=latency_ms,
        right=right,
        places=frozenset({Place("shop/payment", fn_id)}) if fn_id else frozenset(),
        starts=1,
    )


def every_tenth(until_s: float = 20.0) -> Iterable[float]:
    return (number / 10 for number in range(int(until_s * 10)))


def outage(start: float, end: float) -> list[Order]:
    """Ten orders a second; those of the outage are answered when it is over."""
    return [order(t, latency_ms=50 + (1000 * (end - t) if start <= t < end else 0)) for t in every_tenth()]


def starts(t: float = 1.0) -> list[Event]:
    return [
        Event(t, "start", "A", fn="shop/payment", id="ada"),
        Event(t, "start", "B", fn="shop/payment", id="bob"),
    ]


# ---- faults


def test_a_fault_lasts_until_the_same_is_removed() -> None:
    on, off = Event(4.0, "fault_on", what="cut", where="bank"), Event(9.0, "fault_off", what="cut", where="bank")
    other = Event(5.0, "fault_off", what="cut", where="client")
    (window,) = windows_of([off, other, on], 20.0)
    assert (window.on_s, window.off_s) == (4.0, 9.0)


def test_a_kill_ends_where_it_begins() -> None:
    (window,) = windows_of([KILL], 20.0)
    assert (window.on_s, window.off_s, window.node) == (4.0, 4.0, "A")


def test_the_same_fault_twice_is_two_windows() -> None:
    events = [Event(t, kind, what="cut", where="bank") for t, kind in ((1, "fault_on"), (2, "fault_off"))]  # type: ignore[arg-type]
    events += [Event(t, kind, what="cut", where="bank") for t, kind in ((5, "fault_on"), (7, "fault_off"))]  # type: ignore[arg-type]
    assert [(window.on_s, window.off_s) for window in windows_of(events, 20.0)] == [(1, 2), (5, 7)]


def test_every_time_is_during_a_fault_that_does_not_last() -> None:
    assert is_during(1.0, windows_of([KILL], 20.0))
    lasting = windows_of([KILL, Event(6.0, "fault_off", "A", what="kill", where="worker")], 20.0)
    assert [is_during(t, lasting) for t in (3.9, 4.0, 5.9, 6.0)] == [False, True, True, False]


# ---- recovery


def test_recovery_is_the_first_of_five_healthy_seconds() -> None:
    orders = outage(4.0, 7.0)
    found = recovery_of(orders, seconds_of(orders, 20.0), windows_of([KILL], 20.0), [], BASELINE)
    assert found is not None
    assert found.recovery_s == 3.0
    assert found.hit


def test_four_healthy_seconds_are_no_recovery() -> None:
    orders = [order(t, right=not (4.0 <= t < 5.0 or t in (9.5, 14.5))) for t in every_tenth()]
    # Seconds 5 to 8 are healthy, and 10 to 13; from second 15 on there are five.
    found = recovery_of(orders, seconds_of(orders, 20.0), windows_of([KILL], 20.0), [], BASELINE)
    assert found is not None
    assert found.recovery_s == 11.0


def test_slow_answers_are_no_recovery_even_if_all_are_right() -> None:
    orders = [order(t, latency_ms=201.0 if t >= 4.0 else 50.0) for t in every_tenth()]
    found = recovery_of(orders, seconds_of(orders, 20.0), windows_of([KILL], 20.0), [], BASELINE)
    assert found is not None
    assert found.recovery_s is None
    assert found.catch_up_s is None


def test_what_nobody_noticed_is_over_at_once() -> None:
    orders = [order(t) for t in every_tenth()]
    found = recovery_of(orders, seconds_of(orders, 20.0), windows_of([KILL], 20.0), [], BASELINE)
    assert found is not None
    assert (found.recovery_s, found.hit, found.repair_s) == (0.0, False, None)


def test_detection_repair_and_catching_up_follow_one_another() -> None:
    orders = outage(4.0, 6.5)
    events = [Event(3.0, "rollback", "door"), Event(5.0, "rollback", "door"), Event(4.5, "retry", "client")]
    found = recovery_of(orders, seconds_of(orders, 20.0), windows_of([KILL], 20.0), events, BASELINE)
    assert found is not None
    assert found.detect_s == 1.0
    assert found.repair_s == pytest.approx(1.55)  # At 6.55 the first of those that waited is answered.
    assert found.recovery_s == 3.0
    assert found.catch_up_s == pytest.approx(0.45)


def test_a_breaker_that_closes_is_no_detection() -> None:
    orders = outage(4.0, 6.0)
    events = [Event(4.2, "cb_state", "door", value=0.0), Event(4.8, "cb_state", "door", value=1.0)]
    found = recovery_of(orders, seconds_of(orders, 20.0), windows_of([KILL], 20.0), events, BASELINE)
    assert found is not None
    assert found.detect_s == pytest.approx(0.8)


def test_without_a_baseline_there_is_nothing_to_recover_to() -> None:
    orders = outage(4.0, 6.0)
    assert recovery_of(orders, seconds_of(orders, 20.0), windows_of([KILL], 20.0), [], None) is None
    assert recovery_of(orders, seconds_of(orders, 20.0), [], [], BASELINE) is None


# ---- the blast


def blast(
    orders: Sequence[Order], events: Sequence[Event], baseline: Baseline = BASELINE
) -> tuple[float | None, float | None]:
    windows = windows_of(events, 20.0)
    recovery = recovery_of(orders, seconds_of(orders, 20.0), windows, events, baseline)
    found = blast_of(orders, events, windows, recovery, baseline, 20.0)
    assert found is not None
    return found.own, found.collateral


def test_affected_is_wrong_unanswered_or_slower_than_all_but_one_in_a_thousand() -> None:
    assert [
        is_affected(each, BASELINE)
        for each in (order(0), order(0, latency_ms=150.1), order(0, right=False), order(0, latency_ms=None))
    ] == [False, True, True, True]


def test_what_lived_on_the_process_is_its_own_and_the_rest_collateral() -> None:
    orders = [order(t, right=not 4.0 <= t < 6.0, fn_id="ada") for t in every_tenth()]
    orders += [order(t + 0.05, fn_id="bob") for t in every_tenth()]
    assert blast(orders, [KILL, *starts()]) == (1.0, 0.0)


def test_a_failure_of_everything_has_collateral() -> None:
    orders = [order(t, right=not 4.0 <= t < 6.0, fn_id=who) for t in every_tenth() for who in ("ada", "bob")]
    assert blast(orders, [KILL, *starts()]) == (1.0, 1.0)


def test_an_order_that_never_ran_belongs_where_it_ran_without_the_fault() -> None:
    orders = [order(t, right=not 4.0 <= t < 6.0) for t in every_tenth()]
    there = {each.name: frozenset({Place("shop/payment", "ada")}) for each in orders}
    assert blast(orders, [KILL, *starts()], BASELINE._replace(places=there)) == (1.0, None)
    assert blast(orders, [KILL, *starts()]) == (None, None)


def test_where_no_process_is_hit_there_is_no_blast() -> None:
    orders = outage(4.0, 6.0)
    slow = [Event(4.0, "fault_on", what="slow", where="handler"), *starts()]
    windows = windows_of(slow, 20.0)
    recovery = recovery_of(orders, seconds_of(orders, 20.0), windows, slow, BASELINE)
    assert blast_of(orders, slow, windows, recovery, BASELINE, 20.0) is None


def test_an_owner_is_where_a_function_ran_last_before() -> None:
    events = [
        *starts(1.0),
        Event(2.0, "start", "B", fn="shop/payment", id="ada"),
        Event(5.0, "start", "C", fn="f", id="x"),
    ]
    assert owners_of(events, before_s=4.0) == {Place("shop/payment", "ada"): "B", Place("shop/payment", "bob"): "B"}


# ---- the map


def test_a_cell_is_the_worst_that_happened_in_it() -> None:
    orders = [order(0.1), order(0.2, latency_ms=500), order(1.1), order(2.1, right=False), order(2.2)]
    heat = heat_of(orders, [], [], BASELINE, 4.0)
    assert [row for row in heat.rows if row.strip(".")] == ["sox."]


def test_rows_of_one_process_stand_together() -> None:
    orders = [order(t, key=f"{who}{t}", fn_id=who) for t in (0.5, 1.5) for who in ("ada", "bob")]
    heat = heat_of(orders, starts(0.1), [], BASELINE, 2.0)
    assert heat.owners == sorted(heat.owners)
    assert set(heat.owners) == {"A", "B"}


def test_one_process_owns_what_was_not_seen_before_the_fault() -> None:
    orders = [order(0.5, fn_id="ada"), order(1.5, fn_id="bob")]
    alone = [Event(0.1, "start", "A", fn="shop/payment", id="ada")]
    assert set(heat_of(orders, alone, [], BASELINE, 2.0).owners) == {"A"}


def test_an_order_is_at_home_where_others_are_too() -> None:
    one, two = order(0.5, key="x"), order(1.5, key="y")
    common = frozenset({Place("shop/payment", "ada"), Place("shop/stock", "tea"), Place("shop/stock", "rice")})
    homes = homes_of([one, two], BASELINE._replace(places={one.name: common, two.name: common}))
    assert set(homes.values()) == {Place("shop/payment", "ada")}
    assert homes_of([one, two], None) == {one.name: Place("", "x"), two.name: Place("", "y")}


def test_work_is_repeated_if_more_handlers_begin_than_without_the_fault() -> None:
    baseline = BASELINE._replace(starts={order(0.1).name: 1, order(1.1).name: 0})
    assert [row for row in heat_of([order(0.1), order(1.1)], [], [], baseline, 2.0).rows if row.strip(".")] == ["or"]
