"""From the declaration of an egress to its sink; and the sinks that need no more than this process.

Memory and standard output are here, files, PostgreSQL and HTTP in modules of their own, which are imported only when
an application declares such an egress.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from penstock.errors import ConfigurationError, Unavailable
from penstock.files import make_directory, write_atomically
from penstock.functions.io import (
    EgressSpec,
    FileEgress,
    HttpEgress,
    MemoryEgress,
    PostgresEgress,
    StdoutEgress,
)
from penstock.records import EgressRow
from penstock.router.sink import Sink


def sink_for(
    spec: EgressSpec,
    data_directory: Path,
    *,
    application: str,
    egress: str,
    instance: str = "",
    contested: bool = False,
    clock: Callable[[], float] = time.time,
) -> Sink:
    """The sink of the egress named `egress`. It opens nothing before `open`.

    `instance` names the history that markers are of; left out, it is that of the data directory. `contested`: other
    processes have other tasks of the same application.
    """
    if isinstance(spec, MemoryEgress):
        return MemorySink(spec)
    if isinstance(spec, StdoutEgress):
        return StdoutSink(sys.stdout.buffer)
    if isinstance(spec, FileEgress):
        from penstock.router.file_egress import FileSink

        instance = instance or instance_of(data_directory)
        if contested:
            return TaskSinks(
                lambda task: FileSink(
                    spec, application=application, instance=instance, clock=clock, hidden=f"task-{task:03d}"
                )
            )
        return FileSink(spec, application=application, instance=instance, clock=clock)
    if isinstance(spec, PostgresEgress):
        try:
            from penstock.router.postgres import PostgresSink
        except ImportError as error:
            raise ConfigurationError(
                "PEN0146",
                f"Egress {egress} writes to PostgreSQL, for which psycopg is missing. Install it: "
                "pip install 'penstock[postgres]'.",
            ) from error
        instance = instance or instance_of(data_directory)
        return PostgresSink(spec, application=application, instance=instance, egress=egress)
    if isinstance(spec, HttpEgress):
        from penstock.router.http import HttpSink

        return HttpSink(spec)
    raise ConfigurationError(
        "PEN0141",
        f"Egress {egress} has {spec!r}, which is no egress. Use FileEgress, PostgresEgress, HttpEgress, StdoutEgress "
        "or MemoryEgress.",
    )


def instance_of(data_directory: Path) -> str:
    """The name of the history that `data_directory` holds: random, made with the directory, copied by a backup.

    Attempts and checkpoints count from one in every new data directory. Without this name in it, a marker that an
    earlier history left at the same destination would pass for ours, and our first rows for committed. A backup is
    the same history up to a point; what the original wrote after it is told apart by its attempts
    (`History.pass_attempt`).
    """
    path = data_directory / "instance"
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        name = uuid.uuid4().hex
        make_directory(data_directory)
        write_atomically(path, name.encode() + b"\n")
        return name


class TaskSinks:
    """A sink for each task, opened when the task comes to this process: for one that has a destination to itself."""

    def __init__(self, make: Callable[[int], Sink]) -> None:
        self._make = make
        self._sinks: dict[int, Sink] = {}

    async def open(self) -> None:
        pass

    async def read_marker(self, task: int) -> dict[int, int]:
        sink = self._sinks.get(task)
        if sink is None:
            sink = self._make(task)
            try:
                await sink.open()
            except asyncio.CancelledError:
                await sink.close(False)  # It may be open already, and nobody knows of it.
                raise
            self._sinks[task] = sink
        return await sink.read_marker(task)

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
        await self._sinks[task].commit(task, rows, marker)

    async def release(self, task: int, *, final: bool) -> None:
        sink = self._sinks.pop(task, None)
        if sink is not None:
            await sink.close(final)

    async def tick(self) -> None:
        for sink in list(self._sinks.values()):
            await sink.tick()

    async def close(self, final: bool) -> None:
        for task in list(self._sinks):
            await self.release(task, final=final)


class MemorySink:
    """Appends rows to the lists of a `MemoryEgress`, which outlive the sink as a database would."""

    def __init__(self, spec: MemoryEgress) -> None:
        self._spec = spec

    async def open(self) -> None:
        pass

    async def read_marker(self, task: int) -> dict[int, int]:
        return dict(self._spec.markers.get(task, {}))

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
        self._spec.rows.extend(rows)
        self._spec.markers[task] = dict(marker)

    async def release(self, task: int, *, final: bool) -> None:
        pass

    async def tick(self) -> None:
        pass

    async def close(self, final: bool) -> None:
        pass


class StdoutSink:
    """Writes rows to a stream. There is no marker: after a restart, rows whose fate is unknown are written again."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    async def open(self) -> None:
        pass

    async def read_marker(self, task: int) -> dict[int, int]:
        return {}

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
        # In a thread: the reader of a pipe may be slow, and the event loop must not wait for it.
        await asyncio.to_thread(self._write, b"".join(row.value for row in rows))

    async def release(self, task: int, *, final: bool) -> None:
        pass

    async def tick(self) -> None:
        pass

    async def close(self, final: bool) -> None:
        pass

    def _write(self, data: bytes) -> None:
        try:
            self._stream.write(data)
            self._stream.flush()
        except (OSError, ValueError) as error:
            raise Unavailable(
                "PEN0528",
                f"Standard output takes no more rows: {error}. Keep its reader running, or write to a file. The rows "
                "are kept and tried again.",
            ) from error
