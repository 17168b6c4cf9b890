"""What a commit of the mesh costs: python -m benchmarks.mesh_store [--seconds S] [--store PLACE]

Each caller loads an address, and commits a new state of it with an answer under a key and one message, as an invocation
does. What is committed is durable: SQLite syncs its log (synchronous=FULL), once for all that wait meanwhile. The
processor time is that of this process with all its threads, and without a server, if there is one. Prints one JSON
object for each number of callers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from tempfile import TemporaryDirectory
from typing import NamedTuple

from penstock.mesh.store import Answer, Commit, Outgoing, Store
from penstock.mesh.stores import open_store

ADDRESSES = 10_000
VALUE = b"x" * 100
CALLERS = (1, 16, 64, 256)


class StoreFigures(NamedTuple):
    callers: int
    commits: int
    commits_per_s: float
    commits_per_cpu_s: float


async def measure_store(store: Store, callers: int, seconds: float) -> StoreFigures:
    """Load and commit for so long, by so many at once."""
    session = await store.begin_session("benchmark")
    commits = 0
    until_s = time.perf_counter() + seconds

    async def call(caller: int) -> None:
        nonlocal commits
        number = 0
        while time.perf_counter() < until_s:
            number += 1
            # Every caller has addresses of its own, as turns would see to it.
            address = ("bench/count", f"{caller}-{number % (ADDRESSES // callers)}")
            key = f"{session}-{caller}-{number}"
            loaded = await store.load(*address, key)
            message = Outgoing("bench/other", address[1], VALUE, key)
            answer = Answer(200, b"\x01")
            committed = await store.commit(
                Commit(
                    session,
                    *address,
                    version=loaded.version,
                    value=VALUE,
                    key=key,
                    answer=answer,
                    answer_until_ms=1 << 50,
                    outgoing=[message],
                )
            )
            await store.done(session, [kept.number for kept in committed.kept])
            commits += 1

    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(call(caller) for caller in range(callers)))
    took_s, took_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return StoreFigures(callers, commits, round(commits / took_s, 1), round(commits / took_cpu_s, 1))


async def run(place: str, seconds: float) -> None:
    store = await open_store(place)
    try:
        for callers in CALLERS:
            print(json.dumps((await measure_store(store, callers, seconds))._asdict()), flush=True)
    finally:
        await store.close()


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.mesh_store", description=__doc__)
    options.add_argument("--seconds", type=float, default=5.0)
    options.add_argument("--store", help="a directory, or postgresql://...; a directory of its own if left out")
    chosen = options.parse_args()
    with TemporaryDirectory(prefix="penstock-bench-") as directory:
        asyncio.run(run(chosen.store or directory, chosen.seconds))


if __name__ == "__main__":
    main()
