"""Who should own what: evenly, with few changes, and the same for all who know the same."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis.strategies import dictionaries, integers, lists, sampled_from

from penstock.checkpoint.ownership import balance

NAMES = [f"w{number}" for number in range(9)]


def test_the_first_worker_gets_everything() -> None:
    assert balance(4, {}, ["a"]) == dict.fromkeys(range(4), "a")


def test_a_second_worker_gets_half_and_the_other_half_stays() -> None:
    before = dict.fromkeys(range(4), "a")

    after = balance(4, before, ["a", "b"])

    assert Counter(after.values()) == {"a": 2, "b": 2}


def test_what_a_lost_worker_had_goes_to_the_others_and_nothing_else_moves() -> None:
    before = {0: "a", 1: "b", 2: "c", 3: "a", 4: "b", 5: "c"}

    after = balance(6, before, ["a", "b"])

    assert all(after[task] == owner for task, owner in before.items() if owner != "c")
    assert Counter(after.values()) == {"a": 3, "b": 3}


def test_more_workers_than_tasks_leave_some_without() -> None:
    before = {0: "b", 1: "c"}

    assert balance(2, before, ["a", "b", "c"]) == before


@given(
    integers(1, 40),
    dictionaries(integers(0, 39), sampled_from(NAMES)),
    lists(sampled_from(NAMES), min_size=1, unique=True),
)
def test_it_is_even_complete_and_settled(tasks: int, owners: dict[int, str], workers: list[str]) -> None:
    owners = {task: owner for task, owner in owners.items() if task < tasks}

    balanced = balance(tasks, owners, workers)

    counts = [list(balanced.values()).count(worker) for worker in workers]
    assert set(balanced) == set(range(tasks))
    assert max(counts) - min(counts) <= 1
    assert balance(tasks, balanced, workers) == balanced
    # A task moves only from a worker that has gone, or that has more than its share.
    for worker in workers:
        kept = sum(owners.get(task) == worker for task, owner in balanced.items() if owner == worker)
        held = sum(owner == worker for owner in owners.values())
        assert kept == min(held, list(balanced.values()).count(worker))
