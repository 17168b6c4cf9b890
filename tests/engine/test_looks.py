"""Questions to tasks: how each answers, and how the answers of all are put together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock import App, Context, State
from penstock.engine.looks import (
    IdsOf,
    LetterCounts,
    LetterOf,
    LettersOf,
    Looks,
    Nothing,
    Question,
    StateOf,
    answer,
    id_of_task,
)
from penstock.engine.views import View, task_view
from penstock.errors import InvalidInput
from penstock.functions.types import codec_for
from penstock.ids import Address, key_group
from penstock.records import Envelope
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import Overlay

TASKS = 4


class Note(State):
    text: str = ""


def noting() -> App:
    app = App("noting")

    @app.function("n/note")
    def note(ctx: Context[Note], text: str) -> None:
        ctx.state.text = text

    return app


class Everywhere:
    """All tasks, each with a store of its own, and what was asked of them."""

    def __init__(self, *, bytes_max: int | None = None) -> None:
        self.app = noting()
        self.overlays = [Overlay(MemoryBackend()) for _ in range(TASKS)]
        self.tasks = [task_view(self.app, each, task=n, tasks=TASKS) for n, each in enumerate(self.overlays)]
        self.asked: list[tuple[int, Question]] = []
        self.looks = Looks(TASKS, self.ask)
        self._bytes_max = bytes_max

    async def ask(self, task: int, question: Question) -> Any:
        self.asked.append((task, question))
        return answer(question, View([self.tasks[task]], 0), bytes_max=self._bytes_max)

    def note(self, id: str, text: str) -> None:
        overlay = self.overlays[key_group(id) % TASKS]
        overlay.put_value(overlay.cells("n/note"), id, codec_for(Note).encode(Note(text)))
        overlay.take_batch()

    def bury(self, task: int, code: str = "PEN0210") -> int:
        envelope = Envelope("n/note", id_of_task(task, TASKS), b"\xa1x", 7, None, None)
        letters = self.tasks[task].letters
        return letters.write(envelope, InvalidInput(code, "No."), attempts=1, clock_ms=0, state=b"").number


def test_state_is_asked_of_the_task_that_has_it() -> None:
    everywhere = Everywhere()
    everywhere.note("a", "x")

    shown = asyncio.run(everywhere.looks.state(Address("n/note", "a")))

    assert shown == {"function": "n/note", "id": "a", "exists": True, "state": {"text": "x"}}
    assert everywhere.asked == [(key_group("a") % TASKS, StateOf("n/note", "a"))]


@pytest.mark.parametrize("bytes_max", [None, 40])
def test_ids_of_all_tasks_come_in_order_however_small_the_pages_are(bytes_max: int | None) -> None:
    everywhere = Everywhere(bytes_max=bytes_max)
    ids = sorted(f"id-{number}" for number in range(50))
    for id in [*ids, "other"]:
        everywhere.note(id, "x")

    assert asyncio.run(everywhere.looks.ids("n/note", prefix="id-", limit=100)) == ids
    assert asyncio.run(everywhere.looks.ids("n/note", prefix="id-", limit=7)) == ids[:7]


@pytest.mark.parametrize("bytes_max", [None, 300])
def test_letters_of_all_tasks_come_by_number(bytes_max: int | None) -> None:
    everywhere = Everywhere(bytes_max=bytes_max)
    numbers = sorted(everywhere.bury(task) for task in (3, 1, 1, 0, 3, 3))
    everywhere.bury(2, "PEN0203")

    looks = everywhere.looks
    chosen = asyncio.run(looks.letters(typename="n/note", code="PEN0210", limit=100))
    assert [letter["number"] for letter in chosen] == numbers
    assert len(asyncio.run(looks.letters(typename=None, code=None, limit=2))) == 2
    assert asyncio.run(looks.letter_counts()) == [
        {"function": "n/note", "code": "PEN0210", "letters": 6},
        {"function": "n/note", "code": "PEN0203", "letters": 1},
    ]


def test_a_letter_is_asked_of_the_task_that_its_number_names() -> None:
    everywhere = Everywhere()
    number = everywhere.bury(3)

    assert asyncio.run(everywhere.looks.letter(number))["message"] == "x"
    assert everywhere.asked == [(3, LetterOf(number))]


def test_to_settle_every_task_is_asked_for_nothing() -> None:
    everywhere = Everywhere()

    asyncio.run(everywhere.looks.settle())

    assert sorted(task for task, _ in everywhere.asked) == list(range(TASKS))
    assert {type(question) for _, question in everywhere.asked} == {Nothing}


def test_what_is_too_large_to_travel_is_refused() -> None:
    everywhere = Everywhere(bytes_max=100)
    everywhere.note("a", "x" * 100)

    with pytest.raises(InvalidInput, match=r"PEN0311 What is stored takes 1[0-9]{2} bytes to show"):
        asyncio.run(everywhere.looks.state(Address("n/note", "a")))


@pytest.mark.parametrize(
    "question",
    [StateOf("n/note", "a"), IdsOf("n/note", "", "", 1), LettersOf(None, None, 0, 1), LetterOf(4), LetterCounts()],
    ids=lambda question: type(question).__name__,
)
def test_what_cant_be_shown_is_an_answer_too(question: Question) -> None:
    class Broken(View):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("a decoder failed")

    with pytest.raises(InvalidInput, match="PEN0310 What is stored can't be shown: RuntimeError: a decoder failed"):
        answer(question, Broken([], 0))
