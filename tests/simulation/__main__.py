"""Plays many schedules, on all processors: python -m tests.simulation [--clusters] [--first SEED] SCHEDULES"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.cluster_schedules import simulate_clusters, thin_clusters
from tests.simulation.cluster_world import ClusterCoverage
from tests.simulation.schedules import simulate, thin
from tests.simulation.world import Coverage

CHUNK = 200
"""Schedules between two reports: about two seconds."""

Play = Callable[[range], Coverage | ClusterCoverage]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("schedules", type=int, help="how many to play; one seed each")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="where to begin (default 0)")
    parser.add_argument("--clusters", action="store_true", help="of many workers and their leaders, not of one process")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.schedules)
    play: Play = simulate_clusters if arguments.clusters else simulate
    coverage = _play_all(play, [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)])
    for name, seen in coverage.items():
        sys.stdout.write(f"  {name:<16}{seen:>12,}{1000 * seen // len(seeds):>10,} in 1,000\n")
    missing = _thin(coverage, len(seeds)) if len(seeds) >= 1_000 else []
    for line in missing:
        sys.stdout.write(f"{line}\n")
    return 1 if missing else 0


def _play_all(play: Play, chunks: list[range]) -> Counter[str]:
    """Play all on all processors. Returns what they saw."""
    processes = min(os.cpu_count() or 1, len(chunks)) or 1
    began = time.monotonic()
    coverage, played = Counter[str](), 0
    with ProcessPoolExecutor(processes) as pool:
        for chunk, seen in zip(chunks, pool.map(play, chunks), strict=True):
            coverage.update(seen._asdict())
            played += len(chunk)
            sys.stderr.write(f"\r{played:,} schedules, {played / (time.monotonic() - began):,.0f}/s")
    took_s = time.monotonic() - began
    sys.stdout.write(f"\n{played:,} schedules without a violation in {took_s:.0f} s\n")
    sys.stdout.write(f"  on {processes} processes, {played / took_s:,.0f}/s\n")
    return coverage


def _thin(coverage: Counter[str], schedules: int) -> list[str]:
    if coverage.keys() == set(Coverage._fields):
        return thin(Coverage(**coverage), schedules)
    return thin_clusters(ClusterCoverage(**coverage), schedules)


if __name__ == "__main__":
    sys.exit(main())
