"""Plays many schedules on all processors: python -m tests.simulation [--first SEED] [--only KIND] SCHEDULES

What is done is noted in build/simulation.json after every few seconds: the same command goes on from there, as long as
no module of Penstock or of the simulation that takes part in it has changed. A schedule that fails is made short and
printed as a test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tests.simulation.cluster_schedules import CLUSTERS
from tests.simulation.minimise import as_test, minimise
from tests.simulation.schedules import WORLDS, Kind, collecting_seldom
from tests.simulation.tree_schedules import TREE_WORLDS

NOTES = Path("build", "simulation.json")
KINDS: dict[str, Kind[Any]] = {kind.name: kind for kind in (WORLDS, CLUSTERS, TREE_WORLDS)}
TREES_SHARE = 6
"""One in so many schedules is of trees."""
PER_THOUSAND_MIN = {"recoveries": 2_000, "zombies": 500, "abandoned": 200, "handoffs": 200, "replays": 100}
"""What worlds and clusters together must have seen in each thousand schedules, whichever kind saw it."""
CHUNK = 200
"""Schedules between two notes: a few seconds."""
VIOLATIONS_MAX = 10
"""After so many it is clear that something is wrong."""


class Chunk(NamedTuple):
    """Some schedules of one kind."""

    kind: str
    seeds: range


class Played(NamedTuple):
    """What became of a chunk."""

    seen: dict[str, int]
    failed: list[int]


class Notes:
    """How far a run has come, in a file."""

    def __init__(self, what: dict[str, Any]) -> None:
        self._what = what
        self.chunks = 0
        self.seconds = 0.0
        self.seen = {kind: Counter[str]() for kind in KINDS}

    @classmethod
    def read(cls, what: dict[str, Any]) -> Notes:
        """Those of the same run, if there are any; else new ones."""
        notes = cls(what)
        if NOTES.exists():
            found = json.loads(NOTES.read_bytes())
            if found["what"] == what:
                notes.chunks, notes.seconds = found["chunks"], found["seconds"]
                notes.seen = {kind: Counter(seen) for kind, seen in found["seen"].items()}
        return notes

    def write(self) -> None:
        NOTES.parent.mkdir(exist_ok=True)
        noted = {"what": self._what, "chunks": self.chunks, "seconds": self.seconds, "seen": self.seen}
        fresh = NOTES.with_suffix(".new")
        fresh.write_text(json.dumps(noted))
        fresh.replace(NOTES)

    def totals(self) -> Counter[str]:
        """What worlds and clusters have seen."""
        both = self.seen["worlds"] + self.seen["clusters"]
        both["zombies"] = both["zombie_records"] + both["zombie_frames"]
        return both

    def forget(self) -> None:
        NOTES.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("schedules", type=int, help="how many to play; one seed each")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="where to begin (default 0)")
    parser.add_argument("--only", choices=list(KINDS), help="of one process, of many, or of handlers that await")
    arguments = parser.parse_args()
    commit = _commit()
    notes = Notes.read({**vars(arguments), "code": _code()})
    shares = _shares(arguments.schedules, arguments.only)
    chunks = list(_chunks(shares, arguments.first))
    if notes.chunks:
        _say(f"going on after {sum(len(chunk.seeds) for chunk in chunks[: notes.chunks]):,} schedules")
    try:
        failed = _play_all(chunks, notes)
    except KeyboardInterrupt:
        _say("\ninterrupted; the same command goes on from here")
        return 130
    notes.forget()
    if failed:
        return 1
    _say(_line(shares, arguments.first, commit, notes))
    missing = _missing(notes, shares)
    for line in missing:
        _say(line)
    return 1 if missing else 0


def _shares(schedules_wanted: int, only: str | None) -> dict[str, int]:
    if only is not None:
        return {kind: schedules_wanted if kind == only else 0 for kind in KINDS}
    trees = schedules_wanted // TREES_SHARE
    clusters = (schedules_wanted - trees) // 2
    return {"worlds": schedules_wanted - trees - clusters, "clusters": clusters, "trees": trees}


def _chunks(shares: dict[str, int], first: int) -> Iterable[Chunk]:
    """Of all kinds in turn, so that a run that is interrupted has seen some of each."""
    for start in range(0, max(shares.values()), CHUNK):
        for kind, count in shares.items():
            seeds = range(first + start, first + min(start + CHUNK, count))
            if seeds:
                yield Chunk(kind, seeds)


def _play_all(chunks: list[Chunk], notes: Notes) -> int:
    """Play all that is not noted yet. Returns how many failed."""
    rest = chunks[notes.chunks :]
    began, before, played, failed = time.monotonic(), notes.seconds, 0, 0
    with ProcessPoolExecutor(_processes()) as pool:
        try:
            for chunk, result in zip(rest, pool.map(_play, rest), strict=True):
                notes.seen[chunk.kind].update(result.seen)
                notes.chunks += 1
                notes.seconds = before + time.monotonic() - began
                notes.write()
                played += len(chunk.seeds)
                _show(f"\r{played:,} schedules, {played / (time.monotonic() - began):,.0f}/s, {failed} violations")
                for seed in result.failed:
                    failed += 1
                    _explain(seed, KINDS[chunk.kind])
                if failed >= VIOLATIONS_MAX:
                    return failed
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    _show("\n")
    return failed


def _play(chunk: Chunk) -> Played:
    """In a process of its own. A schedule that fails does not keep the others from being played."""
    seen, failed, kind = Counter[str](), list[int](), KINDS[chunk.kind]
    with kind.staged(), collecting_seldom():
        for seed in chunk.seeds:
            try:
                coverage = kind.play(seed)
            except Exception:  # noqa: BLE001  # Played again, and explained, by whoever started this.
                failed.append(seed)
            else:
                seen.update(coverage._asdict())
    return Played(dict(seen), failed)


def _explain(seed: int, kind: Kind[Any]) -> None:
    steps, said = minimise(seed, kind)
    _say(f"\n{kind.name}, seed {seed}: {said}\nAs a test, with {len(steps)} steps:\n")
    _say(as_test(seed, kind, steps, said))


def _missing(notes: Notes, shares: dict[str, int]) -> list[str]:
    """What was seen too rarely for the run to mean anything. Of few schedules nothing can be said."""
    missing = []
    for name, kind in KINDS.items():
        if shares[name] >= 1_000:
            missing += kind.thin(kind.seen(**notes.seen[name]), shares[name])
    total, seen = shares["worlds"] + shares["clusters"], notes.totals()
    if min(shares["worlds"], shares["clusters"]) >= 500:
        missing += [
            f"{name}: {seen[name]:,} in {total:,} worlds and clusters, and {floor:,} in each thousand are wanted"
            for name, floor in PER_THOUSAND_MIN.items()
            if seen[name] * 1_000 < floor * total
        ]
    return missing


def _line(shares: dict[str, int], first: int, commit: str, notes: Notes) -> str:
    """For docs/guarantees.md."""
    total = sum(shares.values())
    both = notes.totals()
    table = [
        f"  {kind:<10}{name:<16}{seen:>14,}{1000 * seen // shares[kind]:>10,} in 1,000\n"
        for kind, counts in notes.seen.items()
        for name, seen in counts.items()
    ]
    kinds = ", ".join(f"{count:,} of {kind}" for kind, count in shares.items() if count)
    today = datetime.now(UTC).date()
    return (
        f"{''.join(table)}\n"
        f"{total:,} schedules, {kinds}, seeds from {first:,}, at commit {commit} on {today}: no violation, in "
        f"{notes.seconds / 60:,.0f} minutes on {_processes()} processors ({total / notes.seconds / _processes():,.0f} "
        f"per second and processor); {both['recoveries']:,} recoveries, {both['zombies']:,} records of zombies, "
        f"{both['abandoned']:,} checkpoints given up, {both['handoffs']:,} hand-offs, {both['replays']:,} replays."
    )


def _commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _code() -> str:
    """A hash of every module that takes part: those that are loaded when one schedule of each kind has been played."""
    for kind in KINDS:
        _play(Chunk(kind, range(1)))
    digest = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        if name.startswith(("penstock.", "tests.")) and module.__file__:
            digest.update(name.encode() + b"\0" + Path(module.__file__).read_bytes())
    return digest.hexdigest()


def _processes() -> int:
    return os.cpu_count() or 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _show(text: str) -> None:
    sys.stderr.write(text)


if __name__ == "__main__":
    sys.exit(main())
