"""Proves which frames and checkpoints belong to a history: by cases, and against one that is simply remembered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis.strategies import DataObject, data, integers

from penstock.checkpoint.lineage import Lineage


def test_a_frame_of_the_running_attempt_counts_whatever_its_epoch() -> None:
    assert Lineage(3, ((1, 7), (2, 12))).accepts(3, 10_000)


@pytest.mark.parametrize(
    ("attempt", "epoch", "accepted"),
    [(2, 11, True), (2, 12, False), (2, 13, False), (1, 6, True), (1, 7, False), (4, 1, False), (0, 0, False)],
)
def test_a_frame_of_an_ancestor_counts_if_it_was_sent_before_the_cut_it_was_left_at(
    attempt: int, epoch: int, accepted: bool
) -> None:
    assert Lineage(3, ((1, 7), (2, 12))).accepts(attempt, epoch) is accepted


def test_the_checkpoint_an_ancestor_was_left_at_belongs_to_the_history() -> None:
    lineage = Lineage(3, ((1, 7), (2, 12)))

    assert lineage.contains(2, 12)
    assert not lineage.contains(2, 13)
    assert not lineage.contains(9, 1)


def test_going_back_behind_an_ancestor_rolls_back_what_it_did_later() -> None:
    lineage = Lineage(2, ((1, 7),)).descend(3, 5)

    assert lineage == Lineage(3, ((1, 5), (2, 5)))
    assert not lineage.accepts(1, 6)


def test_an_attempt_never_descends_from_a_later_one() -> None:
    with pytest.raises(AssertionError):
        Lineage(2).descend(2, 1)


def test_pruning_forgets_the_ancestors_nobody_needs() -> None:
    lineage = Lineage(3, ((1, 7), (2, 12)))

    assert lineage.prune(frozenset({2, 3})) == Lineage(3, ((2, 12),))
    assert lineage.attempts == {1, 2, 3}


@given(data())
def test_any_sequence_of_restores_accepts_exactly_the_surviving_history(data: DataObject) -> None:
    """The oracle keeps the epochs of the surviving history, each with the attempt that ran it."""
    surviving = dict.fromkeys(range(4), 1)
    lineages = {1: Lineage(1)}
    histories = {1: dict(surviving)}
    highest = 4
    for attempt in range(2, data.draw(integers(2, 6)) + 1):
        left = data.draw(integers(1, attempt - 1))
        cuts = sorted(histories[left])
        cut = cuts[data.draw(integers(0, len(cuts) - 1))]
        taken_by = histories[left][cut]
        lineages[attempt] = lineages[taken_by].descend(attempt, cut)
        histories[attempt] = {e: a for e, a in histories[left].items() if e < cut}
        own = range(highest, highest + 3)
        histories[attempt].update(dict.fromkeys(own, attempt))
        highest += 3

    for attempt, lineage in lineages.items():
        for epoch in range(highest):
            for sender in range(1, len(lineages) + 1):
                if sender != attempt and epoch in histories[sender] and histories[sender][epoch] == sender:
                    assert lineage.accepts(sender, epoch) is (histories[attempt].get(epoch) == sender)


def test_what_an_attempt_did_comes_of_the_last_replay_up_to_it() -> None:
    lineage = Lineage(9, ((1, 5), (4, 8), (6, 9)), (4, 9))

    assert [lineage.replay_of(attempt) for attempt in (1, 4, 6, 9)] == [0, 4, 4, 9]


def test_replays_are_remembered_by_all_that_follow() -> None:
    replayed = Lineage(2, ((1, 5),)).replayed()

    assert replayed.descend(3, 7).replays == (2,)
    assert replayed.descend(3, 7).prune(frozenset()) == Lineage(3, (), (2,))
