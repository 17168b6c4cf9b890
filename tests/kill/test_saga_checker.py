"""What judges the sagas that were killed finds what it is there to find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kill.saga_checker import check
from tests.kill.sagas import STEPS, Entry

COMPLETED = {"outcome": {"type": "Completed"}, "steps": dict.fromkeys(STEPS, "confirmed")}
COMPENSATED = {"outcome": {"type": "Compensated"}, "steps": dict.fromkeys(STEPS[:3], "cancelled")}
DONE = [*((step, "do") for step in STEPS), ("rent", "confirm")]
UNDONE = [("reserve", "do"), ("hold", "do"), ("hold", "undo"), ("reserve", "undo")]
NUMBER = 3
"""Of a saga that may not hold a car, and of one that may have all."""
FREE = 0


def judged(folder: Path, number: int, ended: dict[str, Any], did: list[tuple[str, str]], booked: list[str]) -> None:
    (folder / "bank").write_text("".join(f"{key}\n" for key in booked))
    entries = [Entry(f"kills/trip/{number}", step, what, at_ns) for at_ns, (step, what) in enumerate(did)]
    check({number: ended}, entries, folder)


def test_what_is_whole_passes(tmp_path: Path) -> None:
    judged(tmp_path, FREE, COMPLETED, DONE, ["kills/trip/0/charge"] * 2)
    judged(tmp_path, NUMBER, COMPENSATED, UNDONE, [])
    judged(tmp_path, NUMBER, COMPENSATED, [], [])


@pytest.mark.parametrize(
    ("number", "ended", "did", "booked"),
    [
        pytest.param(FREE, COMPLETED, DONE[:-1], ["kills/trip/0/charge"], id="not confirmed"),
        pytest.param(FREE, COMPLETED, [*DONE, ("ship", "do")], ["kills/trip/0/charge"], id="done twice"),
        pytest.param(FREE, COMPLETED, DONE, [], id="not booked"),
        pytest.param(NUMBER, COMPLETED, DONE, ["kills/trip/3/charge"], id="done although it was declined"),
        pytest.param(NUMBER, COMPENSATED, UNDONE, ["kills/trip/3/charge"], id="booked and undone"),
        pytest.param(NUMBER, COMPENSATED, UNDONE[:3], [], id="an orphan"),
        pytest.param(NUMBER, COMPENSATED, [*UNDONE, ("hold", "undo")], [], id="undone twice"),
        pytest.param(NUMBER, COMPENSATED, [*UNDONE[:2], UNDONE[3], UNDONE[2]], [], id="undone in the wrong order"),
        pytest.param(NUMBER, COMPENSATED, [*UNDONE[2:], *UNDONE[:2]], [], id="undone before it was done"),
        pytest.param(NUMBER + 1, COMPENSATED, DONE, [], id="confirmed and undone"),
    ],
)
def test_what_is_not_is_noticed(
    tmp_path: Path, number: int, ended: dict[str, Any], did: list[tuple[str, str]], booked: list[str]
) -> None:
    with pytest.raises(AssertionError):
        judged(tmp_path, number, ended, did, booked)
