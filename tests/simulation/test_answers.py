"""What becomes of answers when a person goes back: those that are taken back are void whenever they are told, and all
others must be true."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest

from penstock.ids import Address
from tests.simulation.dice import Dice
from tests.simulation.invariants import RepliesStand, Violation
from tests.simulation.mix import EVERYTHING, Move
from tests.simulation.walks import NATURE
from tests.simulation.world import Client, World

ROUNDS = 6
"""Enough for a request to be answered by a complete checkpoint."""


class Fate(Dice):
    """Whatever may happen by chance always does, or never."""

    def __init__(self, happens: bool) -> None:
        super().__init__(0)
        self._happens = happens

    def chance(self, probability: float) -> bool:
        return self._happens


class LateAnswer(World):
    """A person goes back to the checkpoint that decided the answer of the first client, and tasks that don't know of it
    read then that the answer of the second is complete. What happens again is the opposite of what happened first."""

    def __init__(self, *, stumbles: bool, meanwhile: Callable[[World], None]) -> None:
        super().__init__(0, EVERYTHING, only=[0])
        self.dice = Fate(False)
        self._stumbles = stumbles
        self._meanwhile = meanwhile
        self.invariants.append(Unforgiving())

    def _draw_inputs(self) -> None:
        self.walks, self.poison = 2, 0
        self.clients = [Client(0, Address("walks/flaky", "ada")), Client(1, Address("walks/flaky", "cyd"))]

    def perform(self, move: Move) -> bool:
        first, second = self.clients
        old = self.current
        NATURE.dice = Fate(self._stumbles)
        self._ask(first)
        self._rounds()
        self._hear_of_it(old)
        self._ask(second)
        self._rounds()
        self.rolled_back = True
        self.recover(replay=first.decided[1])
        assert second.answer is None
        self._hear_of_it(old)
        assert second.answer is not None
        assert second.decided[1] > first.decided[1]
        NATURE.dice = Fate(not self._stumbles)
        self._meanwhile(self)
        return True

    def _rounds(self) -> None:
        for _ in range(ROUNDS):
            self.clock_ms += 20
            self._fair_round(self.current)


class Unforgiving(RepliesStand):
    """Lets nobody take back an answer, and so shows that the second one is not true in the end."""

    def ended(self, world: World) -> None:
        with patch.object(world, "rolled_back", False), pytest.raises(Violation, match="walk 1 was"):
            super().ended(world)


def _nothing(world: World) -> None:
    pass


def _answer_the_wrong_client(world: World) -> None:
    first, second = world.clients
    first.answer = second.answer


@pytest.mark.parametrize("stumbles", [False, True], ids=["a value", "an error"])
def test_an_answer_that_was_taken_back_on_its_way_is_void(stumbles: bool) -> None:
    LateAnswer(stumbles=stumbles, meanwhile=_nothing).run()


def test_an_answer_that_was_not_taken_back_must_be_true() -> None:
    world = LateAnswer(stumbles=False, meanwhile=_answer_the_wrong_client)
    with pytest.raises(Violation, match="RepliesStand: walk 1 was told"):
        world.run()
