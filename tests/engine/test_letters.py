"""Dead letters: what is kept of a failure, and how a message comes back out of one."""

from __future__ import annotations

import json

import pytest

from penstock.engine.letters import TEXT_BYTES_MAX, DeadLetters, copy_of
from penstock.errors import InvalidInput
from penstock.functions.failures import describe, user_traceback
from penstock.ids import Address
from penstock.records import Envelope, Meta
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import Overlay

ENVELOPE = Envelope(
    "t/f", "a", b"payload", 7, Address("t/x", "y"), Meta({"h": "1"}, idempotency_key="k", origin="line 3")
)


def write(letters: DeadLetters, error: BaseException) -> int:
    return letters.write(ENVELOPE, error, attempts=2, clock_ms=9, state=b"state").number


def raised() -> ValueError:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        return error


def test_a_letter_says_what_failed_and_how() -> None:
    letters = DeadLetters(Overlay(MemoryBackend()), task=0, tasks=1)

    letter = letters.get(write(letters, raised()))

    assert letter is not None
    assert (letter.code, letter.reason) == ("PEN0210", "Handler raised ValueError: two lines")
    assert letter.traceback.endswith("ValueError: two\nlines\n")
    assert (letter.attempts, letter.clock_ms, letter.state, letter.origin) == (2, 9, b"state", "line 3")


def test_a_letter_of_ours_has_the_code_and_no_traceback() -> None:
    letters = DeadLetters(Overlay(MemoryBackend()), task=0, tasks=1)

    letter = letters.get(write(letters, InvalidInput("PEN0203", "An empty id.")))

    assert letter is not None
    assert (letter.code, letter.reason, letter.traceback) == ("PEN0203", "An empty id.", "")


def test_an_error_without_words_is_named() -> None:
    assert describe(KeyError()) == ("PEN0210", "Handler raised KeyError.")


def test_numbers_are_unique_in_the_application_and_never_used_again() -> None:
    overlay = Overlay(MemoryBackend())
    letters = DeadLetters(overlay, task=3, tasks=4)
    numbers = [write(letters, raised()) for _ in range(2)]
    dropped = letters.get(numbers[1])
    assert dropped is not None
    letters.drop(dropped)

    again = DeadLetters(overlay, task=3, tasks=4)
    again.next_number = letters.next_number

    assert [*numbers, write(again, raised())] == [7, 11, 15]
    assert [letter.number for letter in again.all()] == [7, 15]


def test_redriving_takes_the_letter_out_as_the_message_it_was() -> None:
    letters = DeadLetters(Overlay(MemoryBackend()), task=0, tasks=1)
    letter = letters.get(write(letters, raised()))
    assert letter is not None

    assert letters.redrive(letter) == ENVELOPE
    assert letters.get(letter.number) is None
    assert list(letters.all()) == []


def test_a_traceback_begins_with_the_code_of_the_user() -> None:
    lines = user_traceback(raised()).splitlines()

    assert lines[0] == "Traceback (most recent call last):"
    assert "in raised" in lines[1]


def test_a_copy_is_a_row_that_any_tool_can_read() -> None:
    letters = DeadLetters(Overlay(MemoryBackend()), task=0, tasks=1)
    letter = letters.get(write(letters, InvalidInput("PEN0203", "An empty id.")))
    assert letter is not None

    row = copy_of(letter)

    assert (row.key, row.cause) == (b"a", 7)
    assert json.loads(row.value) == {
        "number": letter.number,
        "at_ms": 9,
        "code": "PEN0203",
        "reason": "An empty id.",
        "origin": "line 3",
        "function": "t/f",
        "id": "a",
        "attempts": 2,
        "traceback": "",
        "headers": {"h": "1"},
        "payload": "cGF5bG9hZA==",
        "text": "payload",
    }


@pytest.mark.parametrize("payload", [b"\xff", b"x" * (TEXT_BYTES_MAX + 1)], ids=["binary", "long"])
def test_a_copy_shows_as_text_only_what_is_short_text(payload: bytes) -> None:
    letters = DeadLetters(Overlay(MemoryBackend()), task=0, tasks=1)
    envelope = ENVELOPE._replace(payload=payload, id="")
    letter = letters.write(envelope, raised(), attempts=0, clock_ms=9, state=b"")

    row = copy_of(letter)

    assert (row.key, json.loads(row.value)["text"]) == (None, None)
