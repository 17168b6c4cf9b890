"""Keeps workers running that have no supervisor, as a platform of containers does.

    python -m tests.kafka.proof.keeper WORKERS DIRECTORY COMMAND ...

Each worker is COMMAND with a directory of its own, DIRECTORY/worker-N. One that has ended is started again, whatever it
ended with, until this program is asked to terminate: then they all are. It ends with the first exit code that is not 0.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from pathlib import Path

PAUSE_S = 0.3


async def keep(command: list[str], stopping: asyncio.Event) -> int:
    """One worker after the other. Returns what the last one ended with."""
    while True:
        process = await asyncio.create_subprocess_exec(*command)
        ended, stopped = asyncio.create_task(process.wait()), asyncio.create_task(stopping.wait())
        await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set() and process.returncode is None:
            process.terminate()
        status = await ended
        stopped.cancel()
        if stopping.is_set():
            return status
        sys.stderr.write(f"a worker ended with {status}\n")
        with suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_S):
                await stopping.wait()
                return 0


async def main(workers: int, directory: Path, command: list[str]) -> int:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    each = [[*command, "--dir", str(directory / f"worker-{number}")] for number in range(workers)]
    return max(map(abs, await asyncio.gather(*(keep(one, stopping) for one in each))))


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
