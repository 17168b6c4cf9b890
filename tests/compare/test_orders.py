from __future__ import annotations

from penstock.compare.checkout import data
from penstock.compare.orders import Outcome, Place, blamed_orders, classify, orders_of
from penstock.compare.records import Event, Invariant, Verdict


def offered(t: float, order: str = "o-0-1") -> Event:
    return Event(t, "offered", order=order, key="ada")


def reply(t: float, outcome: str, order: str = "o-0-1", dur_ms: float | None = None) -> Event:
    return Event(t, "reply", "client", order=order, outcome=outcome, dur_ms=dur_ms)


def blaming(text: str) -> Verdict:
    return Verdict({"I6": Invariant(1, [text])}, {}, {})


def test_an_answer_makes_an_order_what_it_is() -> None:
    (order,) = orders_of([offered(1.0), reply(1.5, "CONFIRMED", dur_ms=480.0)], None)
    assert (order.outcome, order.right, order.latency_ms, order.answered_s) == (Outcome.CONFIRMED, True, 480.0, 1.5)


def test_a_latency_that_is_not_told_counts_from_the_intended_time() -> None:
    (order,) = orders_of([offered(1.0), reply(1.25, "CONFIRMED")], None)
    assert order.latency_ms == 250.0


def test_a_refusal_is_a_result_and_right() -> None:
    (order,) = orders_of([offered(0.0), reply(0.1, "REJECTED:stock")], None)
    assert (order.outcome, order.reason, order.right) == (Outcome.REJECTED, "stock", True)


def test_an_order_that_was_undone_after_a_failure_has_failed() -> None:
    assert classify(f"REJECTED:{data.NO_FUNDS}") is Outcome.REJECTED
    assert classify(f"REJECTED:{data.FAILED}") is Outcome.FAILED


def test_an_application_of_ones_own_answers_ok() -> None:
    assert classify("OK") is Outcome.CONFIRMED


def test_an_error_is_no_result_whatever_it_is() -> None:
    assert classify("PEN0816") is Outcome.FAILED
    assert classify("") is Outcome.FAILED
    (order,) = orders_of([offered(0.0), reply(0.1, "PEN0816")], None)
    assert (order.outcome, order.right, order.reason) == (Outcome.FAILED, False, "PEN0816")


def test_without_an_answer_an_order_is_silent() -> None:
    (order,) = orders_of([offered(0.0)], None)
    assert (order.outcome, order.right, order.reason, order.latency_ms) == (Outcome.SILENT, False, "no answer", None)


def test_of_two_answers_the_first_result_counts_even_after_an_error() -> None:
    events = [offered(0.0), reply(0.1, "PEN0816"), reply(0.9, "REJECTED:funds"), reply(0.5, "CONFIRMED")]
    (order,) = orders_of(events, None)
    assert (order.outcome, order.answered_s) == (Outcome.CONFIRMED, 0.5)


def test_an_order_that_a_violation_names_is_not_right() -> None:
    events = [offered(0.0), reply(0.1, "CONFIRMED"), offered(1.0, "o-0-12"), reply(1.1, "CONFIRMED", "o-0-12")]
    first, second = orders_of(events, blaming("client of o-0-12 was told CONFIRMED."))
    assert (first.right, second.right) == (True, False)


def test_blame_falls_on_whole_names_only() -> None:
    assert blamed_orders(blaming("o-0-12: two captures"), {"o-0-1", "o-0-12"}) == {"o-0-12"}


def test_the_places_of_an_order_are_where_its_handlers_began() -> None:
    start = Event(0.1, "start", "1", fn="shop/order", id="o-0-1", order="o-0-1")
    other = Event(0.2, "start", "1", fn="shop/payment", id="ada", order="o-0-1")
    (order,) = orders_of([offered(0.0), start, other, start], None)
    assert order.starts == 3
    assert order.places == {Place("shop/order", "o-0-1"), Place("shop/payment", "ada")}


def test_what_was_never_offered_is_no_order() -> None:
    assert orders_of([reply(0.1, "CONFIRMED")], None) == []
