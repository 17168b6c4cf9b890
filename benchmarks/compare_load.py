"""Whether the load generator of `penstock compare` is on time: `python -m benchmarks.compare_load [RATE [SECONDS]]`.

It offers 2,000 requests a second, for 20 s, to a server that does nothing, both in processes of their own, and prints
how much later than intended they left. Two cores that do nothing else are needed for an answer about the generator.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec

from penstock.compare.load import LoadOptions
from penstock.compare.records import Head
from penstock.loops import loop_factory

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\n{"outcome":"CONFIRMED"}'
LEAD_S = 3.0
"""The generator imports and makes its requests before the first one is due."""


class Trivial(asyncio.Protocol):
    """Answers every request at once, whatever it is: each comes in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # Those of uvloop have no such base class.

    def data_received(self, data: bytes) -> None:
        self._transport.write(ANSWER)


async def serve() -> None:
    """Until it is killed. Prints where it is."""
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Where it is."""
    with subprocess.Popen([sys.executable, "-m", __spec__.name, "serve"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


def measure(rate: float, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, served() as url:
        options = LoadOptions(
            url=url,
            out=str(Path(folder) / "load.jsonl"),
            head=Head("bench", "bench", "X0", 0),
            origin=time.monotonic() + LEAD_S,
            seed=0,
            rate=rate,
            warmup_s=0.0,
            seconds=seconds,
            steps=[],
        )
        path = Path(folder) / "load.json"
        path.write_bytes(msgspec.json.encode(options))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "penstock.compare.load", path], stdout=subprocess.PIPE, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        result: dict[str, float] = json.loads(done.stdout)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"rate": rate, "seconds": seconds, "cpu_us_per_request": 1e6 * cpu_s / result["offered"], **result}


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serve())
    numbers = [float(each) for each in sys.argv[1:]]
    print(json.dumps(measure(*(numbers + [2_000.0, 20.0][len(numbers) :]))))


if __name__ == "__main__":
    main()
