"""A run is told to prove nothing when its load or faults were not as they were meant, when it does not come to rest, or
a control shows no harm; and what is under way is seen wherever it is."""

from __future__ import annotations

from penstock.compare.load import LoadResult
from penstock.compare.records import StateRecord, Verdict
from penstock.compare.rest import Look
from penstock.compare.runner import doubt, looked_at, unended

ON_TIME = LoadResult(offered=100, late_p99_ms=1.0, late_max_ms=2.0)
HARMLESS = Verdict({}, {"duplicated": 0, "orphaned": 0}, {})


def test_one_that_went_as_it_was_meant_is_not_in_doubt() -> None:
    assert doubt(ON_TIME, 0.01, [], HARMLESS, "") == ""


def test_a_load_that_fell_behind_proves_nothing() -> None:
    late = LoadResult(offered=100, late_p99_ms=5.1, late_max_ms=9.0)

    assert doubt(late, 0.0, [], HARMLESS, "") == "the load generator was late by 5.1 ms (p99), and 5 ms are allowed"


def test_a_fault_that_was_late_proves_nothing() -> None:
    assert "late by 80 ms" in doubt(ON_TIME, 0.08, [], HARMLESS, "")


def test_a_fault_that_struck_nobody_proves_nothing() -> None:
    assert "kill found no worker" in doubt(ON_TIME, 0.0, ["kill found no worker"], HARMLESS, "")


def test_a_control_without_harm_proves_nothing() -> None:
    assert "(duplicated) shows none" in doubt(ON_TIME, 0.0, [], HARMLESS, "duplicated")


def test_a_control_with_harm_is_what_was_meant() -> None:
    harmful = Verdict({}, {"duplicated": 2}, {})

    assert doubt(ON_TIME, 0.0, [], harmful, "duplicated") == ""


def test_a_run_that_did_not_come_to_rest_proves_nothing() -> None:
    assert doubt(ON_TIME, 0.01, [], None, "duplicated", "it has not come to rest") == "it has not come to rest"


def test_whatever_is_under_way_is_added_up_and_what_is_held_is_not() -> None:
    """Of either runtime: a stream knows no hosts, and a mesh stages nothing by the same name."""
    status = {"queued": 1, "staged": None, "waiting": 2, "calls_in_flight": 3, "held": 40, "hosts": [{"answers": True}]}

    assert looked_at(status, (5,)) == Look(busy=6, held=40, done=(5,))
    assert looked_at({"queued": 0, "held": 0}, ()) == Look(0, 0, ())


def test_a_host_that_does_not_answer_may_be_busy() -> None:
    assert looked_at({"hosts": [{"answers": True}, {"answers": False}]}, ()).busy == 1


def test_orders_that_have_not_ended_are_told_with_what_they_do_not_get_over() -> None:
    going = {"phase": "backward", "ended": None}
    orders = [
        StateRecord("shop/order", "plain", {"outcome": "CONFIRMED", "reason": ""}),
        StateRecord("shop/order", "saga", {"phase": "new", "ended": {"outcome": {"type": "Completed"}}}),
        StateRecord("shop/order", "waits", {**going, "trouble": None}),
        StateRecord("shop/order", "stuck", {**going, "trouble": {"reason": "the bank is gone"}}),
        StateRecord("shop/order", "begun", None),
    ]

    assert unended(orders) == ["waits", "stuck (the bank is gone)", "begun"]
