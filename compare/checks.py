"""Asks the check functions of a user what is wrong with a run: `python -m penstock.compare.checks RUN CHECK ...`

A check is a function, module:name. It takes the directory of the run as a `RunDirectory`, and returns or yields a text
for each violation. Writes verdict.json, with an invariant for each check. What a check raises is told as its only
finding, and is no harm that was found; the others go on.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Final

from penstock.compare.messages import named
from penstock.compare.records import Invariant, RunDirectory, Verdict, write_json

RAISED: Final = "the check itself raised"


def verdict_of(run: RunDirectory, checks: list[str], folder: Path) -> Verdict:
    """Of these functions, loaded from `folder`. Raises InvalidInput for one that can't be."""
    invariants: dict[str, Invariant] = {}
    for name in checks:
        check = named(name, folder)
        try:
            invariants[name] = Invariant(checked=1, violations=[str(each) for each in check(run) or ()])
        except Exception as error:  # noqa: BLE001  # It is code of a user, and a mistake in it ends nothing of ours.
            place = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{RAISED} {error!r} at {Path(place.filename).name}:{place.lineno}"
            invariants[name] = Invariant(checked=0, violations=[told])
    wrong = sum(len(each.violations) for each in invariants.values() if each.checked)
    return Verdict(invariants, {"wrong": wrong}, {})


def raised(verdict: Verdict) -> str:
    """The first check that did, and what; empty if none did."""
    texts = ((name, text) for name, found in verdict.invariants.items() for text in found.violations)
    return next((f"{name}: {text}" for name, text in texts if text.startswith(RAISED)), "")


def main() -> None:
    """Judge the run."""
    run = RunDirectory(Path(sys.argv[1]))
    write_json(run.directory / "verdict.json", verdict_of(run, sys.argv[2:], Path.cwd()))


if __name__ == "__main__":
    main()
