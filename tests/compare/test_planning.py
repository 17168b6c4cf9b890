"""What a plan tells of the machine, so that runs of another one are never added to it."""

from __future__ import annotations

import penstock
from penstock.compare.planning import machine


def test_runs_of_another_version_belong_to_another_plan() -> None:
    assert machine()["penstock"] == penstock.__version__
