"""Copies a checkpoint of a running application to a savepoint, in a process of its own.

What always holds: the application has its interpreter for itself, and a copy that is given up ends at once. The process
reads the directory as it lies, like every tool; that the checkpoint stays retained is for whoever asks. It gets its
order on standard input, where no other user sees it, and answers on standard output, in JSON: nothing, or a coded
error.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from penstock.checkpoint.blobs import Blobs, BucketOptions
from penstock.checkpoint.savepoint import Savepoint, SavepointReader
from penstock.engine.config import Config
from penstock.engine.offline import Directory
from penstock.engine.savepoints import open_place_of, take
from penstock.engine.told import heard, told
from penstock.errors import PenstockError, Unavailable

PATIENCE: Final = 5
"""Added to the niceness of the process: where processors are scarce, messages come first."""


class _Order(msgspec.Struct):
    directory: str
    checkpoint: int
    place: str
    bucket: BucketOptions
    committed: dict[str, int]


async def copy_aside(config: Config, checkpoint: int, place: str, committed: Mapping[str, int]) -> Savepoint:
    """Copy a checkpoint of the data directory of `config`, and return what is there then. Raises what went wrong."""
    order = _Order(str(config.directory.absolute()), checkpoint, place, config.bucket, dict(committed))
    return await carry_out("penstock.engine.copying", msgspec.json.encode(order), open_place_of(place, config))


async def carry_out(module: str, order: bytes, blobs: Blobs) -> Savepoint:
    """Let a process of `module` carry out an order, by way of `obey`, and return what is at the place then."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        answer, _ = await process.communicate(order)
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise Unavailable(
            "PEN0440",
            f"No savepoint was taken: the process that copies ended with code {process.returncode}. What it said is on "
            "standard error. Try again.",
        )
    if answer:
        raise heard(msgspec.json.decode(answer))
    return SavepointReader(blobs).savepoint


def obey(copy: Callable[[bytes], None]) -> None:
    """What that process does with its order."""
    os.nice(PATIENCE)
    try:
        copy(sys.stdin.buffer.read())
    except PenstockError as error:
        sys.stdout.buffer.write(msgspec.json.encode(told(error)))


def _copy(data: bytes) -> None:
    order = msgspec.json.decode(data, type=_Order)
    config = Config(directory=Path(order.directory), bucket=order.bucket)
    with Directory(config.directory) as directory:
        take(
            directory,
            directory.retained(order.checkpoint),
            open_place_of(order.place, config),
            committed=order.committed,
            now_ms=int(time.time() * 1000),
        )


if __name__ == "__main__":
    obey(_copy)
