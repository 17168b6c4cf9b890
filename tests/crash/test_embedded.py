"""One process is killed at every point there is, and what it writes is what it would have written undisturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.faults import POINTS
from tests.crash.matrix import findings_of, try_embedded
from tests.crash.points import ON_KAFKA, embedded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

GROUPS = {
    "turns and cuts": ("turn", "cut", "delta", "settle"),
    "folds and bases": ("fold", "base", "forget"),
    "decisions": ("reserve", "begin", "complete", "attempt"),
    "restores": ("restore",),
    "egresses": ("egress", "file"),
}


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_is_lost_or_doubled_wherever_a_process_is_killed(tmp_path: Path, group: str) -> None:
    cases = [case for case in embedded("kill") if case.point.partition(".")[0] in GROUPS[group]]

    assert findings_of(try_embedded(tmp_path, cases)) == []


def test_an_exception_or_a_halt_in_the_middle_loses_and_doubles_nothing(tmp_path: Path) -> None:
    cases = [case for action in ("raise", "hang") for case in embedded(action)[:: 8 if action == "raise" else 13]]

    assert findings_of(try_embedded(tmp_path, cases)) == []


def test_every_point_of_one_process_is_tried() -> None:
    tried = {case.point for case in embedded("kill") if case.point.partition(".")[0] in sum(GROUPS.values(), ())}

    assert tried == {point for point in POINTS if point not in ON_KAFKA}


def test_a_build_that_does_not_look_at_markers_is_found_out(tmp_path: Path) -> None:
    cases = [case for case in embedded("kill") if case.point == "file.marked"]

    findings = findings_of(try_embedded(tmp_path, cases, program="tests.crash.broken"))

    assert any("doubled: booking" in finding for finding in findings)
