"""The figures of small runs, computed by hand beside what must come out; and what must hold for any run."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.compare.costs import cost_of, interval_of, work_of
from penstock.compare.figures import figures_of, truth_of
from penstock.compare.impact import Baseline
from penstock.compare.orders import orders_of
from penstock.compare.records import Event, Invariant, LedgerEntry, Run, Verdict
from penstock.compare.series import Counts, counts_of, latency_of, seconds_of, timeline_of
from tests.compare.synthetic import KILL, MESH, NODES, NOTHING, STREAM, Behaviour, plan_of, played

RUN = Run("M3-X2-0", "M3", "X2", 0, "plan", "complete", seconds=4.0, rate=1.0)
BY_HAND = [
    Event(-0.5, "offered", order="w"),
    Event(-0.5, "sent", "client", order="w"),
    Event(-0.4, "reply", "client", order="w", outcome="CONFIRMED", dur_ms=100),
    Event(0.2, "offered", order="a"),
    Event(0.2, "sent", "client", order="a"),
    Event(0.25, "start", "A", fn="f", id="1", order="a"),
    Event(0.3, "reply", "client", order="a", outcome="CONFIRMED", dur_ms=100),
    Event(0.7, "offered", order="b"),
    Event(0.7, "sent", "client", order="b"),
    Event(0.75, "start", "A", fn="f", id="2", order="b"),
    Event(0.8, "start", "A", fn="f", id="2", order="b"),
    Event(1.1, "reply", "client", order="b", outcome="REJECTED:stock", dur_ms=400),
    Event(2.0, "offered", order="c"),
    Event(2.0, "sent", "client", order="c"),
    Event(2.1, "retry", "client", order="c"),
    Event(2.2, "sent", "client", order="c"),
    Event(2.5, "reply", "client", order="c", outcome="PEN0816", status=503, dur_ms=500),
    Event(2.6, "retry", "door", value=3.0),
    Event(3.4, "offered", order="d"),
    Event(3.4, "sent", "client", order="d"),
]


def test_orders_of_the_warm_up_do_not_count() -> None:
    found = figures_of(RUN, BY_HAND, [], None, None)
    assert found.counts == Counts(offered=4, confirmed=1, rejected=1, failed=1, silent=1, right=2)
    assert found.availability == 0.5
    assert found.goodput_per_s == 0.5


def test_latency_is_of_results_alone() -> None:
    latency = figures_of(RUN, BY_HAND, [], None, None).latency
    assert latency is not None
    assert (latency.count, latency.p50, latency.p99, latency.largest) == (2, 100, 400, 400)


def test_seconds_are_those_in_which_requests_were_meant_to_be_sent() -> None:
    found = figures_of(RUN, BY_HAND, [], None, None).seconds
    assert [(each.offered, each.right, each.p99_ms) for each in found] == [
        (2, 2, 400), (0, 0, None), (1, 0, None), (1, 0, None),
    ]  # fmt: skip
    assert [each.availability for each in found] == [1.0, None, 0.0, 0.0]


def test_a_timeline_has_answers_when_they_came() -> None:
    line = figures_of(RUN, BY_HAND, [], None, None).timeline
    assert [at for at, count in enumerate(line.offered) if count] == [2, 7, 20, 34]
    assert [at for at, count in enumerate(line.good) if count] == [3, 11]
    assert [at for at, count in enumerate(line.errors) if count] == [25]


def test_attempts_are_those_of_clients_and_of_the_runtime() -> None:
    work = figures_of(RUN, BY_HAND, [], None, None).work
    assert work.attempts == 5 + 3
    assert work.amplification == 2.0
    # Failed are the two orders without a result, the one that the client sent again, and three within the runtime.
    assert work.actual_error_rate == 6 / 8
    assert work.effective_error_rate == 0.5
    assert work.starts == 3
    assert work.wasted is None


def test_work_is_wasted_that_was_not_needed_without_the_fault() -> None:
    baseline = Baseline(100, 100, starts={"a": 1, "b": 1, "c": 1})
    # Of three that began for orders of both runs, one was needless; order c did not come so far.
    assert figures_of(RUN, BY_HAND, [], None, baseline).work.wasted == 0.5


def test_without_a_witness_nothing_is_known_of_repeated_work() -> None:
    counts = counts_of(orders_of(BY_HAND, None))
    work = work_of([], [event for event in BY_HAND if event.kind != "start"], [], counts, Baseline(1, 1, {"a": 1}))
    assert (work.starts, work.wasted) == (None, None)


def test_requests_at_the_bank_count_for_each_order_that_came() -> None:
    ledger = [LedgerEntry(0.2, "request", order="a")] * 3 + [LedgerEntry(0.3, "request", order="b")]
    assert figures_of(RUN, BY_HAND, ledger, None, None).work.bank_requests == 2.0


def test_cpu_time_is_that_of_the_measured_time() -> None:
    events = [Event(t, "proc", "1", cpu_s=cpu_s, rss=100) for t, cpu_s in ((-1, 3.0), (0, 4.0), (1, 5.0), (2, 7.0))]
    cost = cost_of(events, 2.0, Counts(confirmed=4))
    assert cost.cpu_s == 4.0  # From 3.0 just before to 7.0.
    assert cost.cpu_ms_per_confirmed == 1000.0
    assert cost.rss_max == 100


def test_a_process_that_is_started_later_counts_from_its_beginning() -> None:
    old = [Event(float(t), "proc", "1", cpu_s=1.0) for t in range(-1, 10)]
    new = [Event(5.0, "proc", "2", cpu_s=0.4), Event(6.0, "proc", "2", cpu_s=0.6)]
    assert cost_of([*old, *new], 10.0, Counts()).cpu_s == pytest.approx(0.6)


def test_a_counter_that_falls_is_that_of_another_process() -> None:
    events = [Event(float(t), "proc", "1", cpu_s=cpu_s) for t, cpu_s in ((-1, 9.0), (0, 9.0), (1, 10.0), (2, 0.5))]
    assert cost_of(events, 5.0, Counts()).cpu_s == pytest.approx(1.5)


def test_without_samples_the_cost_is_not_known() -> None:
    cost = cost_of(BY_HAND, 4.0, Counts(confirmed=1))
    assert (cost.cpu_s, cost.cpu_ms_per_confirmed, cost.bytes_per_confirmed, cost.rss_max) == (None,) * 4


def test_the_interval_of_checkpoints_is_the_one_that_was_kept() -> None:
    events = [Event(t, "ckpt_commit", epoch=1) for t in (-1.0, 0.5, 1.0, 2.5, 9.0)]
    assert interval_of(events, 4.0) == 1.0
    assert interval_of(events, 0.9) is None


def test_the_oracle_is_quoted_and_not_second_guessed() -> None:
    verdict = Verdict({"I1": Invariant(9, []), "I4": Invariant(9, ["x", "y"])}, {"duplicated": 2, "lied": 1}, {})
    truth = truth_of(verdict)
    assert truth is not None
    assert (truth.lost, truth.duplicated, truth.lied, truth.harm) == (None, 2, 1, 3)
    assert truth.counted == {"duplicated": 2, "lied": 1}
    assert not truth.is_whole
    assert truth.violations == {"I1": 0, "I4": 2}
    assert truth_of(None) is None


def test_an_order_that_the_oracle_blames_is_no_goodput() -> None:
    verdict = Verdict({"I6": Invariant(4, ["the client of order a was told CONFIRMED"])}, {"lied": 1}, {})
    found = figures_of(RUN, BY_HAND, [], verdict, None)
    assert (found.counts.confirmed, found.counts.right) == (1, 1)


# ---- what holds for any run

PLAN = plan_of([STREAM, MESH], [NOTHING, KILL], [0])
BEHAVIOUR = Behaviour(outage=(8, 11), only_node=NODES[0], rollback_at=9.0)


@settings(max_examples=8, deadline=None)
@given(st.integers())
def test_the_order_of_the_records_changes_nothing(seed: int) -> None:
    events, ledger = played(PLAN, KILL, 0, BEHAVIOUR)
    run = Run("S2-X2-0", "S2", "X2", 0, "plan", "complete", seconds=20.0, rate=20.0)
    baseline = Baseline(28.0, 30.0)
    before = figures_of(run, events, ledger, None, baseline)
    rng = random.Random(seed)
    assert figures_of(run, rng.sample(events, len(events)), rng.sample(ledger, len(ledger)), None, baseline) == before


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 400)), st.integers(0, 3))
def test_the_counts_of_two_halves_add_up(chosen: set[int], seed: int) -> None:
    orders = orders_of(played(PLAN, KILL, seed, Behaviour(failing=(3, 9)))[0], None)
    one = [order for place, order in enumerate(orders) if place in chosen]
    other = [order for place, order in enumerate(orders) if place not in chosen]
    assert counts_of(one) + counts_of(other) == counts_of(orders)
    lines = [timeline_of(part, 20.0) for part in (one, other, orders)]
    assert [a + b for a, b in zip(lines[0].good, lines[1].good, strict=True)] == lines[2].good
    seconds = [seconds_of(part, 20.0) for part in (one, other, orders)]
    assert [a.right + b.right for a, b in zip(seconds[0], seconds[1], strict=True)] == [s.right for s in seconds[2]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 20), st.floats(0, 5))
def test_every_order_is_counted_once(seed: int, start: float, length: float) -> None:
    orders = orders_of(played(PLAN, NOTHING, seed, Behaviour(failing=(start, start + length)))[0], None)
    counts = counts_of(orders)
    assert counts.offered == counts.confirmed + counts.rejected + counts.failed + counts.silent == len(orders)
    latency = latency_of(orders)
    assert latency is not None
    assert latency.p50 <= latency.p90 <= latency.p99 <= latency.p999 <= latency.largest


def test_figures_can_be_written_and_read_again() -> None:
    found = figures_of(RUN, BY_HAND, [], None, Baseline(100, 100))
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


def test_the_generator_makes_the_same_again(tmp_path: Path) -> None:
    assert played(PLAN, KILL, 3, BEHAVIOUR) == played(PLAN, KILL, 3, BEHAVIOUR)
