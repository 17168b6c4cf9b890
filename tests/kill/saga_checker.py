"""What must be true of `tests.kill.sagas` when all its sagas have ended, whatever was killed meanwhile.

It knows what participants have in their states, what the bank has in its books, and how each saga says that it ended.
How sagas are carried out it does not know.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.kill.sagas import STEPS, Entry, declines


def check(sagas: Mapping[int, Mapping[str, Any]], entries: Iterable[Entry], folder: Path) -> Counter[str]:
    """Every saga is done as a whole or undone as a whole, and nothing was done twice. Returns how they ended."""
    done: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        done[entry.saga].append(entry)
    asked_bank = (folder / "bank").read_text().splitlines()
    ends = Counter[str]()
    paid = set[str]()
    for number, ended in sagas.items():
        saga = f"kills/trip/{number}"
        completed = ended["outcome"]["type"] == "Completed"
        ends[ended["outcome"]["type"]] += 1
        if completed:
            assert declines(number) == ""
            paid.add(f"{saga}/charge")
            _check_completed(done.pop(saga))
        else:
            _check_compensated(list(ended["steps"]), done.pop(saga, []))
    assert not done, "nobody knows of these sagas"
    assert set(asked_bank) == paid
    return ends


def _check_completed(done: Sequence[Entry]) -> None:
    counts = Counter((entry.step, entry.what) for entry in done)
    assert counts == Counter([*((step, "do") for step in STEPS), ("rent", "confirm")]), done


def _check_compensated(started: Sequence[str], done: Sequence[Entry]) -> None:
    did, undid = _in_order(done, "do"), _in_order(done, "undo")
    assert len(did) + len(undid) == len(done), f"something was confirmed and undone: {done}"
    assert sorted(set(did)) == sorted(did) == sorted(undid), f"something was not undone, or done twice: {done}"
    assert undid == [step for step in reversed(started) if step in undid], f"started {started}, and {done}"
    for step in did:
        first, last = (next(each for each in done if (each.step, each.what) == (step, what)) for what in ("do", "undo"))
        assert first.at_ns < last.at_ns


def _in_order(done: Sequence[Entry], what: str) -> list[str]:
    return [entry.step for entry in sorted(done, key=lambda entry: entry.at_ns) if entry.what == what]
