"""The checker of the proof finds each kind of anomaly in what is in order but for that, and names where it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.kafka.proof.checker import INPUTS, OUTPUTS, Row, check

Topics = dict[str, list[Row]]


def rows(topic: str, *values: dict[str, Any]) -> list[Row]:
    return [Row(f"{topic}-0@{offset}", value) for offset, value in enumerate(values)]


def in_order() -> Topics:
    topics: Topics = {topic: [] for topic in (*INPUTS, *OUTPUTS)}
    topics["transfers"] = rows("transfers", {"number": 1, "payer": "a", "payee": "b", "amount": 5, "way": "held"})
    topics["bookings"] = rows(
        "bookings",
        {"account": "a", "number": 1, "transfer": 1, "amount": -5, "balance": 995},
        {"account": "b", "number": 1, "transfer": 1, "amount": 5, "balance": 1_005},
    )
    leaf = {"walk": 1, "step": 1, "node": "y", "following": []}
    topics["walks"] = rows("walks", {"walk": 1, "step": 0, "node": "x", "following": [leaf]})
    topics["steps"] = rows(
        "steps", {"walk": 1, "step": 0, "node": "x", "visit": 1}, {"walk": 1, "step": 1, "node": "y", "visit": 1}
    )
    topics["readings"] = rows("readings", *({"key": "k", "number": number} for number in (1, 2, 3)))
    for topic in ("sequenced", "followed"):
        topics[topic] = rows(topic, *({"key": "k", "number": n, "count": n} for n in (1, 2, 3)))
    topics["told"] = rows("told", {"request": "r/1", "place": 1}, {"request": "r/2", "place": None})
    topics["registered"] = rows("registered", {"registry": "r", "request": "r/1", "place": 1})
    return topics


def test_nothing_is_found_where_all_is_in_order() -> None:
    assert check(in_order()) == []


def double(topic: str, at: int) -> Callable[[Topics], None]:
    return lambda topics: topics[topic].append(topics[topic][at])


def lose(topic: str, at: int) -> Callable[[Topics], None]:
    return lambda topics: topics[topic].__delitem__(at)


def change(topic: str, at: int, **fields: Any) -> Callable[[Topics], None]:
    return lambda topics: topics[topic][at].value.update(fields)


def swap(topic: str) -> Callable[[Topics], None]:
    return lambda topics: topics[topic].insert(0, topics[topic].pop(1))


@pytest.mark.parametrize(
    ("harm", "found", "place"),
    [
        pytest.param(double("bookings", 0), "doubled: booking", "bookings-0@0", id="a booking again"),
        pytest.param(lose("bookings", 1), "lost: booking", "transfers-0@0", id="a booking lost"),
        pytest.param(lose("bookings", 1), "all accounts together", "995", id="money lost"),
        pytest.param(change("bookings", 1, balance=7), "balance of b", "bookings-0@1", id="a balance wrong"),
        pytest.param(change("bookings", 1, number=3), "a gap: bookings of b", "bookings-0@1", id="a booking skipped"),
        pytest.param(double("steps", 1), "doubled: step", "steps-0@1", id="a step again"),
        pytest.param(lose("steps", 1), "lost: step", "walks-0@0", id="a step lost"),
        pytest.param(change("steps", 1, step=9), "invented: step", "steps-0@1", id="a step from nowhere"),
        pytest.param(lose("sequenced", 1), "sequenced of k", "sequenced-0@2", id="a reading lost"),
        pytest.param(swap("followed"), "followed of k", "followed-0@1", id="readings out of order"),
        pytest.param(lose("registered", 0), "is not registered", "told-0@0", id="an answer to nothing"),
        pytest.param(change("told", 0, place=2), "was told place 2", "registered-0@0", id="an answer that is wrong"),
        pytest.param(double("registered", 0), "was registered 2 times", "registered-0@0", id="a request twice"),
        pytest.param(lose("told", 0), "that nobody made", "registered-0@0", id="a request from nowhere"),
    ],
)
def test_an_anomaly_is_found(harm: Callable[[Topics], None], found: str, place: str) -> None:
    topics = in_order()
    harm(topics)
    assert [anomaly for anomaly in check(topics) if found in anomaly and place in anomaly]


def test_of_a_run_that_goes_on_only_that_is_told_which_nothing_can_mend() -> None:
    topics = in_order()
    for topic in ("bookings", "steps", "sequenced", "followed", "registered"):
        topics[topic].pop()
    assert check(topics, finished=False) == []

    topics = in_order()
    for topic in ("steps", "sequenced"):
        topics[topic].append(topics[topic][0])
    anomalies = check(topics, finished=False)
    assert [anomaly for anomaly in anomalies if anomaly.startswith("doubled: step")]
    assert [anomaly for anomaly in anomalies if anomaly.startswith("sequenced of k")]
