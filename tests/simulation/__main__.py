"""Plays many schedules, on all processors: python -m tests.simulation [--first SEED] SCHEDULES"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.schedules import simulate, thin
from tests.simulation.world import Coverage

CHUNK = 200
"""Schedules between two reports: about two seconds."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("schedules", type=int, help="how many to play; one seed each")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="where to begin (default 0)")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.schedules)
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    processes = min(os.cpu_count() or 1, len(chunks)) or 1
    began = time.monotonic()
    coverage, played = Coverage(), 0
    with ProcessPoolExecutor(processes) as pool:
        for chunk, seen in zip(chunks, pool.map(simulate, chunks), strict=True):
            coverage, played = coverage.plus(seen), played + len(chunk)
            rate = played / (time.monotonic() - began)
            sys.stderr.write(f"\r{played:,} schedules, {rate:,.0f}/s")
    took_s = time.monotonic() - began
    say = sys.stdout.write
    say(f"\n{played:,} schedules without a violation in {took_s:.0f} s\n")
    say(f"  on {processes} processes, {played / took_s:,.0f}/s\n")
    for name, seen in coverage._asdict().items():
        say(f"  {name:<16}{seen:>12,}\n")
    missing = thin(coverage, played) if played >= 1_000 else []
    for line in missing:
        say(f"{line}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
